// SPDX-License-Identifier: Apache-2.0
// Weighted sums over tokens that losses and metrics are made of (protein_lm utils.py, compute_weighted_*).
// All return sums; whoever calls divides once, by the weight of everything that belongs together.
//
// logits [..., V] of any floating type (sums are made in float32 or wider), targets [...] int64, weights
// [...] of any type. A target outside 0..V-1 counts nothing.
#pragma once

#include <ATen/core/Tensor.h>

namespace performer::train {

// -sum of weight * log softmax(logits)[target]; a scalar through which gradients flow.
at::Tensor weighted_cross_entropy(const at::Tensor& logits, const at::Tensor& targets,
                                  const at::Tensor& weights);

// Sum of the weights where the largest logit (the first of equal ones) is the target's.
at::Tensor weighted_correct(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& weights);

// Both of the above and the gradient of weighted_cross_entropy / divisor, which takes the place of the
// logits: these, [..., V] without a gradient of their own, are held once, and nothing else of their size.
struct CrossEntropySums {
  double loss = 0;     // over the divisor
  double correct = 0;  // weighted_correct
};
CrossEntropySums cross_entropy_gradient(const at::Tensor& logits, const at::Tensor& targets,
                                        const at::Tensor& weights, double divisor);

// weighted_correct with partial credit: 1 for a hit, else substitution[prediction, target], a matrix [V, V]
// (for example BLOSUM62) that is first mapped to 0..1 by its own minimum and maximum.
at::Tensor weighted_soft_correct(const at::Tensor& logits, const at::Tensor& targets,
                                 const at::Tensor& weights, const at::Tensor& substitution);

}  // namespace performer::train
