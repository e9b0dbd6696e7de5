// SPDX-License-Identifier: Apache-2.0
// Fixed position encodings: sinusoids, and the tables of rotary positions.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace performer::nn {

// Sinusoidal encodings of `positions` (int64, any shape S): [S..., width] float64, in which channel 2i is
// sin(p / 10000^(2i / width)) and channel 2i + 1 the cosine. Odd widths end in a sine. With `concatenate` all
// sines come before all cosines. Source: Vaswani et al. 2017, section 3.5; both orders as in protein_lm.
at::Tensor sinusoids(const at::Tensor& positions, int64_t width, bool concatenate = false);

// Angles by which the pairs of a head turn from one position to the next: base^(-2i / head_size) for
// i = 0 .. head_size / 2 - 1, float64. Source: Su et al. 2021, arXiv 2104.09864, section 3.4.2.
at::Tensor rotary_rates(int64_t head_size, double base, at::TensorOptions options = {});

// Rotary encodings: unit complex numbers exp(i p rate) for positions [B, T] and rates [D / 2]:
// [B, T, 1, D / 2], complex in the precision that goes with `type` (double for float64, else float).
at::Tensor rotary_table(const at::Tensor& positions, const at::Tensor& rates, at::ScalarType type);
// With the rates of a head size.
at::Tensor rotary_table(const at::Tensor& positions, int64_t head_size, at::ScalarType type,
                        double base = 10000);

// Turns neighbouring pairs of x [B, T, H, D] by the table; same type as x.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& table);

}  // namespace performer::nn
