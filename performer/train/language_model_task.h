// SPDX-License-Identifier: Apache-2.0
// The task that trains a language model on a corpus: the cross entropy of the next or of hidden tokens.
#pragma once

#include <optional>
#include <span>

#include "performer/train/model_task.h"

namespace performer::train {

// The loss of a batch is that of loss.h, in the memory of a chunk when train.slim_chunk is on (slim.h).
class LanguageModelTask final : public ModelTask {
 public:
  // As ModelTask's. Without `valid` nothing is evaluated. `weights` multiply the losses of the training
  // sequences: a step's loss is their weighted mean (protein_lm divides by the number of targets instead).
  LanguageModelTask(const LanguageModelConfig& config, const data::Corpus& train,
                    const data::Corpus* valid = nullptr, std::span<const float> weights = {});

  BatchSums backward(const Batch& batch, double divisor) override;
  std::optional<EvaluationReport> evaluate() override;

 private:
  BatchSums model_backward(const data::SharedBatch& part, double divisor);
};

}  // namespace performer::train
