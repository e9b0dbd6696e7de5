// SPDX-License-Identifier: Apache-2.0
// Representations of one sequence of any length, in memory that the length hardly touches.
//
// Causal models stream: a chunk of tokens goes through all layers, which keep a state of what came before.
// Where that state grows with the length (exact attention), and in bidirectional models, the layers go one
// after the other and the activations between two of them lie in an ActivationStore. A bidirectional layer
// takes two passes: the keys and values of all chunks make its context (of linear attention a state of
// constant size), which then each chunk reads.
//
// A sequence may also lie in slices on several ranks, each of which reads its slice in chunks, layer by
// layer: first the chunks' keys make the state of the slice, then the ranks hand each other these states,
// then the chunks go on from the slices before (causal) or read all. So a layer takes one exchange, whatever
// the length, and a causal one a pass over its keys more than in one process.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "performer/models/language_model.h"
#include "performer/nn/state_exchange.h"

namespace performer {

// Whether represent_in_chunks() is possible, and why not: for messages, a sentence without its end such as
// "attention.kind = local of a masked model cannot be read in chunks"; empty when it is.
std::string why_not_in_chunks(const LanguageModel& model);
// The same of slices on several ranks: of models whose attention has a state of constant size.
std::string why_not_in_slices(const LanguageModel& model);

// A sequence of so many tokens, cut into slices of equal length up to one token.
std::shared_ptr<const nn::Slices> slices_of_sequence(int64_t tokens, int64_t slices,
                                                     const std::shared_ptr<nn::StateExchange>& exchange);

struct ChunkedRequest {
  std::vector<int64_t> layers = {};  // wanted, each once, ascending: 0 the embedding, i the output of block i
  int64_t chunk = 8192;              // tokens handled at a time
  std::string temporary_folder = {};  // for activations that are too large to stay in memory
  // Called between chunks with the share of the work that is done, in [0, 1].
  std::function<void(double)> progress = {};
  // Of the tokens, one slice for each rank; null: all of them are read here.
  std::shared_ptr<const nn::Slices> slices = nullptr;
};

// Calls `sink` for every wanted layer and chunk of tokens [L] int64 (markers included): the number of the
// layer, the first token of the chunk and rows [C, width]. The last layer comes after the final norm, as
// hidden() has it. Chunks of a layer come in order. What comes is what one forward pass gives, up to
// rounding. With slices all ranks call it together, with all tokens, and `sink` gets those of this rank's
// slice. Throws UsageError naming the cause where why_not_in_chunks() (with slices why_not_in_slices()) has
// one, and beyond the positions of the model.
void represent_in_chunks(
    const LanguageModel& model, const at::Tensor& tokens, const ChunkedRequest& request,
    const std::function<void(int64_t layer, int64_t first, const at::Tensor& rows)>& sink);

// Whether the time of a sequence grows with the square of its length.
bool takes_quadratic_time(const LanguageModel& model);
// Seconds that exact attention of all layers up to number `layers` will take for a sequence of that length,
// from its speed on this machine, which is measured at each call (some hundredths of a second).
double seconds_of_exact_attention(const LanguageModel& model, int64_t length, int64_t layers);

}  // namespace performer
