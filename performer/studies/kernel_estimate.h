// SPDX-License-Identifier: Apache-2.0
// Estimates of the softmax kernel for pairs of vectors, over many draws of a map's randomness.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "performer/ops/feature_maps.h"
#include "performer/studies/statistics.h"

namespace performer::studies {

// Pairs x, y [P, D] float64, already times D^(-1/4): the kernel is exp(x y).
struct Pairs {
  at::Tensor x, y;
  at::Tensor kernel() const;       // exp(x y) [P]
  at::Tensor squared_sum() const;  // |x + y|^2 [P]
  at::Tensor squared_gap() const;  // |x - y|^2 [P]
};

// `count` pairs of random directions with |x + y|^2 = squared_sum and x y = product. Throws UsageError where
// no such pair exists (4 product > squared_sum).
Pairs pairs_at(double squared_sum, double product, int64_t count, int64_t head_size, int64_t seed);

// sum_f phi_f(x) phi_f(y) of each pair under each of `draws` independent projections, relative to the kernel:
// [draws, P] float64. Maps with statistics take those of the pairs.
at::Tensor relative_estimates(const Pairs& pairs, const ops::FeatureMapOptions& options, int64_t draws,
                              int64_t seed);

// Mean over draws of the squares of (estimates - 1).
Mean mean_square_error(const at::Tensor& estimates);

// Relative mean square error that the papers derive for independent projections with M features in all, or
// NaN for maps without a formula: favor+ and hyperbolic (arXiv 2009.14794, lemma 2 and theorem 1 of its
// appendix) and trigonometric.
double predicted_mean_square(const ops::FeatureMapOptions& options, double squared_sum, double product);

}  // namespace performer::studies
