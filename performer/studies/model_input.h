// SPDX-License-Identifier: Apache-2.0
// Sequences as a model reads them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "performer/data/vocabulary.h"
#include "performer/models/language_model.h"
#include "performer/nn/sequence_batch.h"

namespace performer::studies {

// The tokens that a model reads of one sequence, nothing hidden. Causal: BOS x1 .. xn, or without the last
// token, which no prediction of the sequence needs (whole = false). Masked: BOS x1 .. xn EOS. Token k of the
// sequence, from 1, is input k.
std::vector<int64_t> model_input(const std::string& objective, const data::Vocabulary& vocabulary,
                                 const std::vector<data::Token>& sequence, bool whole);
SequenceBatch as_batch(const std::vector<int64_t>& tokens);  // [1, T]

// Calls `pass` while `observer` sees the model's attention, and ends that also when it throws.
void observe_during(LanguageModel& model, const LanguageModelImpl::LayerObserver& observer,
                    const std::function<void()>& pass);

}  // namespace performer::studies
