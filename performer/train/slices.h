// SPDX-License-Identifier: Apache-2.0
// Sequence parallelism of a language model: which models take it, and how a batch is cut.
#pragma once

#include <memory>

#include "performer/data/share.h"
#include "performer/nn/state_exchange.h"
#include "performer/train/language_model_config.h"

namespace performer::train {

// As validate(data), but the ranks that share a sequence hold its tokens together: data.batch_tokens of each
// of them may be below data.length.
void validate_data(const DataConfig& data, const TrainConfig& train);

// Throws UsageError when train.sequence_parallel is on and something in the model needs neighbouring tokens,
// or all tokens of a sequence, beyond the attention's state.
void validate_slices(const LanguageModelConfig& config);

// How the part of a batch that `part` is a slice of is cut into `slices`.
std::shared_ptr<const nn::Slices> slices_of(const data::SharedBatch& part, int64_t slices,
                                            const std::shared_ptr<nn::StateExchange>& exchange);

}  // namespace performer::train
