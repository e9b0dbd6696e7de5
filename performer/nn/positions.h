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

// Rotary encodings: unit complex numbers exp(i p 10000^(-2i / head_size)) for positions [B, T]:
// [B, T, 1, head_size / 2], complex in the precision that goes with `type` (double for float64, else float).
// Source: Su et al. 2021, arXiv 2104.09864, section 3.4.2.
at::Tensor rotary_table(const at::Tensor& positions, int64_t head_size, at::ScalarType type);

// Turns neighbouring pairs of x [B, T, H, D] by the table; same type as x.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& table);

}  // namespace performer::nn
