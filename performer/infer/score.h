// SPDX-License-Identifier: Apache-2.0
// Log-likelihoods of sequences, whole and token by token.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "performer/data/reader.h"
#include "performer/infer/reading_ranks.h"
#include "performer/models/language_model.h"

namespace performer {

struct SequenceScore {
  std::string id;
  std::vector<data::Token> tokens;
  std::vector<float> log_probabilities;  // natural logarithm, one a token
  double total() const;
  double mean() const;
};

struct ScoreRequest {
  int64_t batch_tokens = 16384;
  // Null: this process alone. Otherwise all ranks call score(), and `sink` and `progress` are called on rank
  // 0.
  const ReadingRanks* ranks = nullptr;
  std::string temporary_folder = "/tmp";  // of a long sequence in slices
};

// Told while one sequence is scored by pseudo-likelihood: how many of its tokens are.
struct ScoreProgress {
  std::string id;
  int64_t done = 0, total = 0;
};

// Scores all that `reader` reads; `source` is what messages call it. Causal: log p(x_i | x_<i). Masked:
// pseudo-log-likelihood, each token masked alone (one forward pass a token, batched). Calls `sink` in input
// order; memory stays bounded by a few batches of `batch_tokens` tokens. A longer sequence is alone in its
// batch; causal models whose attention has a state of constant size read it in chunks of batch_tokens, with
// request.ranks in slices where that is asked. Ranks divide the forward passes, and results do not depend on
// their number but for sequences in slices, which agree up to rounding. The end marker is not scored. Returns
// what the reader met. Throws what the reader throws, UsageError when its vocabulary has another size than
// the model's and for slices that the model cannot read in, and InputError naming the record for a sequence
// longer than the model's positions cover (learned and axial ones).
data::ReadReport score(LanguageModel& model, data::Reader& reader, const std::string& source,
                       const ScoreRequest& request, const std::function<void(const SequenceScore&)>& sink,
                       const std::function<void(const ScoreProgress&)>& progress = {});

}  // namespace performer
