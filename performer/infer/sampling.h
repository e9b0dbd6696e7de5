// SPDX-License-Identifier: Apache-2.0
// The rules of sampling: from the logits of a model to one drawn token.
#pragma once

#include <cstdint>
#include <vector>

#include "performer/data/vocabulary.h"

namespace performer {

struct SamplingOptions {
  double temperature = 1;         // divides the logits; 0: always the most probable token
  int64_t top_k = 0;              // keep the k most probable (ties with the k-th kept); 0: all
  double top_p = 1;               // keep the smallest set with at least this probability
  double repetition_penalty = 1;  // for tokens seen lately: positive logits divided by it, others multiplied
  int64_t repetition_window = 4;  // how many of the last tokens count as seen lately
};
void validate(const SamplingOptions& options);  // throws UsageError naming the option

// The markers that are never sampled: BOS, PAD and MASK.
std::vector<int64_t> never_sampled(const data::Vocabulary& vocabulary);

// The logarithm of the softmax of logits, in double.
std::vector<double> log_probabilities(const std::vector<float>& logits);

// Logits [V] -> log-probabilities [V] of what may be drawn; dropped tokens are -infinity. In protein_lm's
// order (sampling.py): temperature, forbidden tokens, repetition penalty over the last `repetition_window` of
// `recent`, top-k by threshold; then top-p. With temperature 0 one token is left, ties going to the smallest
// id; so it is where a temperature or a penalty leads beyond the range of double: whatever finite values they
// have, no forbidden token is drawn. Throws Error when a logit is NaN or infinite, or when every token is
// forbidden.
std::vector<double> filter_logits(const std::vector<float>& logits, const std::vector<int64_t>& recent,
                                  const SamplingOptions& options, const std::vector<int64_t>& forbidden);

// Inverse of the cumulative distribution at u in [0, 1): the smallest token whose cumulative probability
// reaches u. Unlike protein_lm's it never returns a dropped token: not for u = 0, and not token 0 when
// rounding leaves u above the last cumulative value (then the last token that may be drawn).
int64_t draw_token(const std::vector<double>& log_probabilities, double u);

}  // namespace performer
