// SPDX-License-Identifier: Apache-2.0
#include "performer/train/loss.h"

#include <ATen/ATen.h>

namespace performer::train {
namespace {

at::ScalarType sum_type(const at::Tensor& logits) {
  return logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

struct Rows {
  at::Tensor targets;  // [N], inside 0..V-1
  at::Tensor weights;  // [N], 0 where the target was outside
};

Rows flatten(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& weights) {
  const int64_t classes = logits.size(-1);
  const at::Tensor flat = targets.reshape({-1});
  const at::Tensor inside = flat.ge(0).logical_and_(flat.lt(classes));
  return {flat.clamp(0, classes - 1), weights.reshape({-1}).to(sum_type(logits)) * inside};
}

}  // namespace

at::Tensor weighted_cross_entropy(const at::Tensor& logits, const at::Tensor& targets,
                                  const at::Tensor& weights) {
  const Rows rows = flatten(logits, targets, weights);
  const at::Tensor log_probabilities =
      at::log_softmax(logits.reshape({-1, logits.size(-1)}), -1, sum_type(logits));
  const at::Tensor chosen = log_probabilities.gather(1, rows.targets.unsqueeze(1)).squeeze(1);
  return -(chosen * rows.weights).sum();
}

at::Tensor weighted_correct(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& weights) {
  const Rows rows = flatten(logits, targets, weights);
  const at::Tensor hits = logits.detach().argmax(-1).reshape({-1}).eq(targets.reshape({-1}));
  return (rows.weights * hits).sum();
}

at::Tensor weighted_soft_correct(const at::Tensor& logits, const at::Tensor& targets,
                                 const at::Tensor& weights, const at::Tensor& substitution) {
  const Rows rows = flatten(logits, targets, weights);
  const at::Tensor lowest = substitution.min();
  const at::Tensor credit = ((substitution - lowest) / (substitution.max() - lowest)).to(sum_type(logits));
  const at::Tensor predictions = logits.detach().argmax(-1).reshape({-1});
  const at::Tensor hits = predictions.eq(rows.targets);
  return (rows.weights *
          at::where(hits, at::ones_like(rows.weights), credit.index({predictions, rows.targets})))
      .sum();
}

}  // namespace performer::train
