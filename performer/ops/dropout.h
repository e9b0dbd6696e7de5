// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace performer::ops {

// Elements of x dropped with `probability` in [0, 1), the others divided by 1 - probability. One number is
// taken from LibTorch's default CPU generator a call and names the mask, which is never stored: on all
// threads, in forward and backward pass, it is computed again. With probability 0 x itself.
at::Tensor dropout(const at::Tensor& x, double probability);

}  // namespace performer::ops
