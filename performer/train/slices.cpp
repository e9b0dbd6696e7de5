// SPDX-License-Identifier: Apache-2.0
#include "performer/train/slices.h"

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"

namespace performer::train {

void validate_data(const DataConfig& data, const TrainConfig& train) {
  const int64_t slices = train.sequence_parallel;
  check<UsageError>(slices <= 1 || data.batch_tokens >= (data.length + slices - 1) / slices,
                    "data.batch_tokens ({}) on each of the {} ranks that share a sequence "
                    "(train.sequence_parallel) must together be at least data.length ({})",
                    data.batch_tokens, slices, data.length);
  DataConfig together = data;
  if (slices > 1) together.batch_tokens *= slices;
  validate(together);
}

void validate_slices(const LanguageModelConfig& config) {
  const int64_t slices = config.train.sequence_parallel;
  if (slices == 1) return;
  const ModelConfig& model = config.model;
  const AttentionConfig& attention = config.attention;
  check<UsageError>(nn::capabilities_of(attention).chunks,
                    "train.sequence_parallel = {} needs an attention kind with a state that stands for the "
                    "tokens of a slice, "
                    "which attention.kind = {} does not have: choose favor-softmax or favor-relu, or set "
                    "train.sequence_parallel = 1",
                    slices, attention.kind);
  check<UsageError>(attention.local_heads == 0 && attention.begin_kernel == 0 && !model.token_shift &&
                        !model.reversible && !model.token_dropout,
                    "train.sequence_parallel = {} does not go with attention.local_heads, "
                    "attention.begin_kernel, model.token_shift, "
                    "model.reversible and model.token_dropout, of which one is set: unset it, or set "
                    "train.sequence_parallel = 1",
                    slices);
}

std::shared_ptr<const nn::Slices> slices_of(const data::SharedBatch& part, int64_t slices,
                                            const std::shared_ptr<nn::StateExchange>& exchange) {
  auto made = std::make_shared<nn::Slices>();
  made->exchange = exchange;
  const int64_t tokens = part.part_end - part.part_begin;
  for (int64_t slice = 0; slice <= slices; ++slice)
    made->cuts.push_back(data::slice_begin(tokens, slice, slices));
  made->bounds = part.part_bounds;
  return made;
}

}  // namespace performer::train
