// SPDX-License-Identifier: Apache-2.0
// The matrix product of a linear layer by the library that is fastest on this processor.
#pragma once

#include <ATen/core/Tensor.h>

namespace performer::ops {

// x weight^T + bias as at::linear has it, autocast included; x [..., K], weight [N, K], bias [N] or
// undefined. In float32 LibTorch takes MKL, which is at half of oneDNN's speed on processors that are not
// Intel's: there, products of some size and their gradients go to oneDNN. Gradients of gradients do not exist
// in that case.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

}  // namespace performer::ops
