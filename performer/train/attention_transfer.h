// SPDX-License-Identifier: Apache-2.0
// Attention transfer: before a converted model is trained as a whole, the attention kind of each layer learns
// to give what exact attention gives for the queries, keys and values of the original. Zhang et al. 2024
// (LoLCATs), arXiv 2410.10254, section 3.1; Zhang et al. 2024 (Hedgehog), arXiv 2402.04347.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "performer/data/config.h"
#include "performer/data/corpus.h"
#include "performer/models/language_model.h"

namespace performer::train {

struct TransferOptions {
  int64_t steps = 200;
  double learning_rate = 1e-2;
  std::function<void(int64_t step, double error)> progress = {};  // the mean relative error of a step
};

// Of the output of each head before the output projection, in exact attention's place: Euclidean norm of the
// difference over that of the exact output, over all tokens of a batch; [layers][heads].
using HeadErrors = std::vector<std::vector<double>>;

// The errors of `student`, a model with the weights of `exact` and another attention kind, on the first batch
// of an evaluation of `corpus`.
HeadErrors head_errors(LanguageModel& exact, LanguageModel& student, const data::Corpus& corpus,
                       const DataConfig& data);

// Trains the parameters of the student's attention kinds alone: the mean over heads of squared relative
// errors, by Adam. Kinds without parameters stay as they are, but for the moments that some measure. Both
// models have the same weights else; `exact` has exact attention. Leaves both in evaluation mode.
void transfer_attention(LanguageModel& exact, LanguageModel& student, const data::Corpus& corpus,
                        const DataConfig& data, const TransferOptions& options);

// The student with exact attention in the heads whose error is above `threshold`, as a model of kind
// `hybrid`; what the other heads have learned stays. The student itself when no head is. Throws UsageError
// for a student whose kind is none of the favor-* kinds.
LanguageModel with_exact_heads(const LanguageModel& student, const HeadErrors& errors, double threshold);

}  // namespace performer::train
