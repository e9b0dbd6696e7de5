// SPDX-License-Identifier: Apache-2.0
// Log-likelihoods of many sequences that begin like one of them, whose beginning is read once.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "performer/infer/likelihood.h"

namespace performer {

// Whether the model reads several tokens of a stream as fast as a whole sequence, so that this saves time.
bool shares_prefixes(const LanguageModel& model);

// The sums over their tokens of log p(x_i | x_<i) of a causal model, in double, in the order of the
// sequences. A state goes along `common`; from where a sequence leaves it, its own tokens are read, with
// those that leave it at the same place side by side, up to batch_tokens. So variants of one wild type take
// half the work of whole sequences on average. `progress` is told how many sequences are done.
std::vector<double> log_likelihoods_along(LanguageModel& model, const data::Vocabulary& vocabulary,
                                          const std::vector<data::Token>& common,
                                          const TokenSequences& sequences, int64_t batch_tokens,
                                          const std::function<void(int64_t done)>& progress = {});

}  // namespace performer
