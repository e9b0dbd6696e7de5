// SPDX-License-Identifier: Apache-2.0
// Held-out accuracy and perplexity of a model beside those of the unigram and bigram baselines.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "performer/data/baselines.h"
#include "performer/models/folder.h"

namespace performer {

// All over the same residues (end markers are counted apart, so that the three are comparable); masked
// models: over the chosen residues. Perplexity is exp of the token-weighted mean over everything, never of
// batch means.
struct Evaluation {
  data::Score model, unigram, bigram;
  data::Score end_marker;  // causal models: how well the end of sequences is predicted
  int64_t sequences = 0;
  double seconds = 0;
};

// One pass over `store`, in float32 and without dropout; leaves the model in the mode it found it in. The
// result does not depend on data.batch_tokens beyond rounding.
Evaluation evaluate(LanguageModel& model, const data::SequenceStore& store, const DataConfig& data,
                    const data::Baselines& baselines);

// {"model": {"accuracy", "perplexity", "tokens"}, "unigram": {...}, "bigram": {...}, "end_marker": {...},
// "sequences", "seconds"}; without "end_marker" when there was none to predict.
nlohmann::json to_json(const Evaluation& evaluation);

// A batch of the data layer as tensors (shares no memory with it).
SequenceBatch to_tensors(const data::Batch& batch);
at::Tensor target_tensor(const data::Batch& batch);  // int64 [rows, width]
at::Tensor weight_tensor(const data::Batch& batch);  // float32 [rows, width]

}  // namespace performer
