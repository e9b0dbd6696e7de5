// SPDX-License-Identifier: Apache-2.0
// Sampling from a causal model with constant state a token: the prefix is never computed again, except by
// presets of reference systems, which have no state.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "performer/base/philox.h"
#include "performer/data/vocabulary.h"
#include "performer/models/language_model.h"

namespace performer {

struct SamplingOptions {
  double temperature = 1;         // 0: the most probable residue
  int64_t top_k = 0;              // keep the k most probable (ties with the k-th kept); 0: all
  double top_p = 1;               // keep the smallest set with at least this probability
  double repetition_penalty = 1;  // for tokens seen lately: positive logits divided by it, others multiplied
  int64_t repetition_window = 4;  // how many of the last tokens count as seen lately
};
void validate(const SamplingOptions& options);  // throws UsageError naming the option

struct GenerateRequest {
  int64_t count = 1;
  std::string prompt = {};   // residues that every sequence starts with; must be shorter than max_length
  int64_t max_length = 512;  // residues, prompt included
  uint64_t seed = 0;         // sequence i draws from its own stream (seed, i), whatever the batch size
  int64_t batch_size = 32;
  SamplingOptions sampling = {};
};

struct GeneratedSequence {
  int64_t index = 0;
  std::string residues = {};
  // Of the sampled residues and end marker under the model itself, natural logarithm.
  double log_likelihood = 0;
  int64_t sampled = 0;  // tokens that log_likelihood sums over: residues after the prompt, and the end marker
  bool ended = false;   // by the end marker, not by max_length
};

// Markers that are never sampled.
inline const std::vector<int64_t> kNeverSampled = {data::kBos, data::kPad, data::kMask};

// Logits [V] -> log-probabilities [V] of what may be drawn; dropped tokens are -infinity. In protein_lm's
// order (sampling.py): temperature, forbidden tokens, repetition penalty over the last `repetition_window` of
// `recent`, top-k by threshold; then top-p. With temperature 0 one token is left, ties going to the smallest
// id. Throws Error when a logit is NaN or infinite, or when every token is forbidden.
std::vector<double> filter_logits(const std::vector<float>& logits, const std::vector<int64_t>& recent,
                                  const SamplingOptions& options,
                                  const std::vector<int64_t>& forbidden = kNeverSampled);

// Inverse of the cumulative distribution at u in [0, 1): the smallest token whose cumulative probability
// reaches u. Unlike protein_lm's it never returns a dropped token: not for u = 0, and not token 0 when
// rounding leaves u above the last cumulative value (then the last token that may be drawn).
int64_t draw_token(const std::vector<double>& log_probabilities, double u);

// Calls `sink` in order of index. A sequence has at least one residue: the end marker cannot be drawn first,
// as FASTA has no empty records. Throws UsageError for a masked model and for impossible requests, InputError
// for a prompt that is not made of residues.
void generate(LanguageModel& model, const GenerateRequest& request,
              const std::function<void(const GeneratedSequence&)>& sink);

}  // namespace performer
