// SPDX-License-Identifier: Apache-2.0
// How near a model's representations of whole sequences are to those of another model: what a conversion is
// worth where tokens are not what is predicted, as in encoders of sentences.
#pragma once

#include <ATen/core/Tensor.h>

#include "performer/data/config.h"
#include "performer/data/corpus.h"
#include "performer/models/language_model.h"

namespace performer::train {

// The final hidden states of each sequence, averaged over its symbols (markers left out): float64
// [sequences, width], of the first `most` sequences of `corpus` in its order. Nothing is masked. Leaves the
// model in evaluation mode. Throws UsageError for sequences beyond the model's positions.
at::Tensor sequence_representations(LanguageModel& model, const data::Corpus& corpus, const DataConfig& data,
                                    int64_t most = 10000);

// Means over sequences.
struct Similarity {
  double cosine = 0;          // of the angle between the two representations of a sequence
  double relative_error = 0;  // Euclidean norm of their difference over that of the wanted one
};
// Both [sequences, width], of the same sequences.
Similarity similarity(const at::Tensor& found, const at::Tensor& wanted);

// The mean cosine between representations [sequences, width] of different sequences: what a cosine is worth
// that has nothing to do with the sequence. NaN for a single sequence.
double cosine_between_sequences(const at::Tensor& representations);

}  // namespace performer::train
