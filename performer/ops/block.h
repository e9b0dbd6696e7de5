// SPDX-License-Identifier: Apache-2.0
// The parts of a Transformer block between its matrix products as one pass each, in float32 and bfloat16 on
// the CPU; for everything else composed of LibTorch operations. Each is differentiable and computes what its
// comment says in LibTorch's terms; gradients of gradients exist for the composed forms only.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "performer/ops/dropout.h"

namespace performer::ops {

// Dropout within an operation: one number is taken from LibTorch's generator, and the mask is that of
// dropout() with the same number. None with probability 0.
struct Dropping {
  double probability = 0;
  TokenWindow window = {};
};

// dropout(activation(name, x + bias)); x [..., N], bias [N] or undefined. Names: those of feature functions,
// and silu.
at::Tensor activate(const std::string& name, const at::Tensor& x, const at::Tensor& bias,
                    const Dropping& dropping);

// x + dropout(branch + bias); bias [N] or undefined. The type is that of x + branch.
at::Tensor add_branch(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& bias,
                      const Dropping& dropping);

// at::layer_norm over the last dimension, rounded to `type`.
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& gain, const at::Tensor& bias, double epsilon,
                      at::ScalarType type);

// Queries and keys turned by their positions (nn::rotate), values as they are, each [B, T, H, D].
struct ProjectedHeads {
  at::Tensor query, key, value;
};
// projected [B, T, 3 H D]: queries, keys and values of all heads behind each other, which are overwritten:
// the results lie in its memory. table: complex [B, T, 1, D / 2] of nn::rotary_table, undefined for no turn.
// Throws c10::ValueError unless splits_in_place(projected).
ProjectedHeads split_projection(const at::Tensor& projected, const at::Tensor& table, int64_t heads);
bool splits_in_place(const at::Tensor& x);  // float32 or bfloat16, on the CPU

}  // namespace performer::ops
