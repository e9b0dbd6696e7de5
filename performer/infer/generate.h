// SPDX-License-Identifier: Apache-2.0
// Sampling from a causal model with constant state a token: the prefix is never computed again, except with
// attention kinds that do not stream.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "performer/data/vocabulary.h"
#include "performer/infer/sampling.h"
#include "performer/models/language_model.h"

namespace performer {

struct GenerateRequest {
  int64_t count = 1;
  std::vector<data::Token> prompt = {};  // symbols that every sequence starts with; fewer than max_length
  int64_t max_length = 512;              // symbols of a sequence at most, prompt included
  bool exact_length = false;  // the end marker is never drawn: every sequence has max_length symbols (images)
  uint64_t seed = 0;          // sequence i draws from its own stream (seed, i), whatever the batch size
  int64_t batch_size = 32;
  SamplingOptions sampling = {};
};

struct GeneratedSequence {
  int64_t index = 0;
  std::vector<data::Token> tokens = {};  // symbols, prompt included, without the end marker
  // Of the sampled symbols and end marker under the model itself, natural logarithm.
  double log_likelihood = 0;
  int64_t sampled = 0;  // tokens that log_likelihood sums over: symbols after the prompt, and the end marker
  bool ended = false;   // by the end marker, not by max_length
};

// The symbols of a prompt that a user gives as text. Throws InputError naming the position of what is no
// symbol.
std::vector<data::Token> encode_prompt(const data::Vocabulary& vocabulary, const std::string& text);

// Calls `sink` in order of index. A sequence has at least one symbol: the end marker cannot be drawn first,
// as no format of ours has empty records. Throws UsageError for a masked model, a vocabulary of another size
// than the model's and for impossible requests.
void generate(LanguageModel& model, const data::Vocabulary& vocabulary, const GenerateRequest& request,
              const std::function<void(const GeneratedSequence&)>& sink);

}  // namespace performer
