// SPDX-License-Identifier: Apache-2.0
#include "performer/train/loss.h"

#include <ATen/ATen.h>

#include <algorithm>

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

CrossEntropySums cross_entropy_gradient(const at::Tensor& logits, const at::Tensor& targets,
                                        const at::Tensor& weights, double divisor) {
  constexpr int64_t kPart = 1 << 20;  // logits that are worked on at a time
  const at::NoGradGuard no_grad;
  const at::Tensor matrix = logits.detach().view({-1, logits.size(-1)});
  const Rows rows = flatten(matrix, targets, weights);
  const int64_t size = std::max<int64_t>(1, kPart / std::max<int64_t>(1, matrix.size(1)));
  CrossEntropySums sums;
  for (int64_t begin = 0; begin < matrix.size(0); begin += size) {
    const int64_t count = std::min(size, matrix.size(0) - begin);
    const auto part = [&](const at::Tensor& tensor) { return tensor.narrow(0, begin, count); };
    const at::Tensor values = part(matrix), chosen = part(rows.targets).unsqueeze(1);
    const at::Tensor weight = part(rows.weights).unsqueeze(1);
    const at::Tensor hits = values.argmax(-1, /*keepdim=*/true).eq(part(targets.reshape({-1, 1})));
    at::Tensor result = at::log_softmax(values, -1, sum_type(logits));
    sums.loss -= (result.gather(1, chosen) * weight).sum().item<double>();
    sums.correct += (weight * hits).sum().item<double>();
    result.exp_().scatter_add_(1, chosen, at::full_like(weight, -1)).mul_(weight / divisor);
    values.copy_(result);
  }
  sums.loss /= divisor;
  return sums;
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
