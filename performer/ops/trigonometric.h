// SPDX-License-Identifier: Apache-2.0
// Attention with trigonometric random features (Performers, arXiv 2009.14794, lemma 1):
//
//   exp(q.k) = exp(|q|^2/2) E[cos(w.q - w.k)] exp(|k|^2/2)
//
// by the kernels on the CPU (family trigonometric of kernels/favor.h) and composed of LibTorch operations on
// other devices. The query's factor cancels; the keys' factors exp(|k|^2/2) are held with one running
// log-scale a head, their largest exponent so far, so that nothing overflows and no later key reaches an
// earlier output.
//
// The guard. Features have both signs, so a denominator may come out near zero or below it although the exact
// one is positive. It is a mean of cosines in [-1, 1] weighted by w_j = exp(|k_j|^2/2), so |denominator| <=
// sum_j w_j. Where it is smaller than kTrigonometricFloor times that sum, it is replaced by the floor with
// its own sign (zero counts as positive): outputs stay within max|v| / kTrigonometricFloor. Elsewhere nothing
// is changed. Estimates of m frequencies scatter by about 1/sqrt(2m) of the sum, far above the floor, so the
// guard acts only where an output is noise anyway: on large queries and keys, for which these features are
// useless.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "performer/kernels/favor.h"
#include "performer/ops/favor.h"

namespace performer::ops {

using kernels::kTrigonometricFloor;  // 1e-4

// `projection` [H or 1, m, D] float32; `scale` multiplies queries and keys first. Arguments, masks, packed
// segments, initial and final state as favor_attention has them. A state has 2m + 1 features, the last of
// which is the constant 1 (its key_sum is the sum of w_j that the guard compares with) and equal log-scales.
// Differentiable in query, key, value and the initial state's kv and key_sum. Computed in float32, float64
// for float64 inputs; with inputs.backend "composed" by LibTorch operations on the CPU too. Throws
// c10::ValueError for shapes that do not fit.
std::tuple<at::Tensor, State> trigonometric_attention(const AttentionInputs& inputs,
                                                      const at::Tensor& projection, double scale);
// One token: query, key [B, H, D], value [B, H, E] -> [B, H, E]; the tensors of `state` are updated in place
// and made when undefined. `factors` as in FeatureMap. Not differentiable.
at::Tensor trigonometric_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                              State& state, const at::Tensor& projection, double scale,
                              const std::string& backend = {}, const std::optional<at::Tensor>& factors = {});

}  // namespace performer::ops
