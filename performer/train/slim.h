// SPDX-License-Identifier: Apache-2.0
// SLiM (sub-linear memory, arXiv 2012.11346): the gradient of a batch in the memory of a chunk.
//
// In a causal Performer the state of the attention is all that later tokens see of earlier ones, and
// everything else works on single tokens. A first pass without gradients runs over the chunks in order and
// keeps each layer's state at their bounds; a second one takes them from the last to the first, runs each
// again from its state with gradients, and hands the gradient of that state to the chunk before. Gradients
// are exact. States are kept, not recovered by subtracting what a chunk had added, which costs the method's
// own code its digits.
//
// Over several ranks the chunks go round: chunk i is the work of rank i mod S. A layer hands on its state, or
// the gradient of it, as soon as it has one, so that a rank follows the one before it at a distance of one
// layer, and all S work at the same time where the model has S layers.
#pragma once

#include "performer/distributed/communicator.h"
#include "performer/models/language_model.h"
#include "performer/train/config.h"
#include "performer/train/task.h"

namespace performer::train {

struct SlimOptions {
  int64_t chunk = 0;      // tokens of each row that are in memory at a time, at least 1; packed: of the batch
  double divisor = 1;     // of the summed loss: the weight of everything that belongs to the step
  bool bfloat16 = false;  // autocast of the forward passes
  distributed::Communicator* ranks = nullptr;  // that share the batch; null: this one alone
};

// Adds to the parameters' gradients those of weighted_cross_entropy(model(batch), targets, weights) /
// divisor; targets and weights [B, T] as in loss.h. Dropout, and what it takes from LibTorch's generator, is
// that of one pass over the whole batch. Where a chunk covers the batch, so is every other number. With
// `ranks` each adds the gradients of its chunks, and returns their losses; all call it with the same batch.
//
// Memory: activations of B x chunk tokens, and for each layer and each bound between chunks the state
// [B, H, M, E + 2]; packed: [1, H, M, E + 2] at the bounds that the longest segment crosses; of these every
// S-th on each of S ranks. Time: a forward pass more than without; packed: only over the segments that cross
// a bound.
BatchSums slim_backward(LanguageModel& model, const SequenceBatch& batch, const at::Tensor& targets,
                        const at::Tensor& weights, const SlimOptions& options);

// Throws UsageError when train.slim_chunk is on and the model is not causal, its attention has no state of
// constant size, or train.checkpoint_activations is on too.
void validate_slim(const ModelConfig& model, const AttentionConfig& attention, const TrainConfig& train);

}  // namespace performer::train
