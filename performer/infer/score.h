// SPDX-License-Identifier: Apache-2.0
// Log-likelihoods of sequences, whole and token by token.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "performer/data/reader.h"
#include "performer/models/language_model.h"

namespace performer {

struct SequenceScore {
  std::string id;
  std::vector<data::Token> tokens;
  std::vector<float> log_probabilities;  // natural logarithm, one a token
  double total() const;
  double mean() const;
};

// Scores all that `reader` reads; `source` is what messages call it. Causal: log p(x_i | x_<i). Masked:
// pseudo-log-likelihood, each token masked alone (one forward pass a token, batched). Calls `sink` in input
// order; memory stays bounded by a few batches of `batch_tokens` tokens, a longer sequence alone in its
// batch. The end marker is not scored. Returns what the reader met. Throws what the reader throws, UsageError
// when its vocabulary has another size than the model's, and InputError naming the record for a sequence
// longer than the model's positions cover (learned and axial ones).
//
// `progress` is called while one sequence is scored by pseudo-likelihood, with how many of its tokens are.
struct ScoreProgress {
  std::string id;
  int64_t done = 0, total = 0;
};
data::ReadReport score(LanguageModel& model, data::Reader& reader, const std::string& source,
                       int64_t batch_tokens, const std::function<void(const SequenceScore&)>& sink,
                       const std::function<void(const ScoreProgress&)>& progress = {});

}  // namespace performer
