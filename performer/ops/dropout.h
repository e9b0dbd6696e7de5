// SPDX-License-Identifier: Apache-2.0
// Dropout whose mask is never stored, by the operator performer::dropout.
#pragma once

#include <ATen/core/Tensor.h>

namespace performer::ops {

// Elements of x dropped with `probability` in [0, 1), rounded to a multiple of 2^-16, the others divided by
// 1 - probability. One number is taken from LibTorch's default CPU generator a call and names the mask, which
// is never stored: on all threads and devices, in forward and backward pass, it is computed again (for a
// tensor that is not on the CPU: on the CPU, and copied). With probability 0 x itself. Throws c10::ValueError
// for another probability.
at::Tensor dropout(const at::Tensor& x, double probability);

// Where a chunk stands in the batch that it was cut from: x [B, C, ...] holds the tokens start to
// start + C - 1 of rows of `length` tokens. Tokens count through all rows: rows r, r + 1, .. begin at
// r * length.
struct TokenWindow {
  int64_t start = 0, length = 0;
};

// The part of dropout(whole batch, probability) that falls to a chunk: with the generator in the same state,
// chunks put together are the whole bit for bit. Throws c10::ValueError for a window that x does not fit
// into.
at::Tensor dropout(const at::Tensor& x, double probability, const TokenWindow& window);

}  // namespace performer::ops
