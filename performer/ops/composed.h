// SPDX-License-Identifier: Apache-2.0
// Linear attention composed of LibTorch operations: slower than favor_attention and with every intermediate
// kept, but free to put each epsilon, shift and mask where a reference system has it. The kinds of reference
// systems (performer/references) are made of these. Differentiable by LibTorch. Letters as in ops/favor.h: B,
// T, S, H, D, E, M.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace performer::ops {

// Element-wise functions of the references by name: relu, elu, elu+1, square, abs, requ, gelu (exact),
// gelu-tanh, sigmoid, tanh, cos, sin, identity, exp, softplus, silu, mish, leaky-relu. Throws c10::ValueError
// with the known names for another.
at::Tensor activation(const std::string& name, const at::Tensor& x);
std::vector<std::string> activation_names();

// u = W x: x [B, T, H, D] with W [M, D], [H, M, D] or [B, H, M, D] -> [B, T, H, M]; no W: x itself.
at::Tensor project(const at::Tensor& x, const std::optional<at::Tensor>& projection);

// |x|^2 / 2 over the last dimension, which is kept with size 1.
at::Tensor half_square(const at::Tensor& x);

// What attention divides: numerator [B, T, H, E] = sum_j (phi_q.phi_k) v_j and denominator [B, T, H, 1] =
// sum_j phi_q.phi_k, over all keys or, when causal, over j <= i (needs S == T; c10::ValueError otherwise).
struct AttentionSums {
  at::Tensor numerator, denominator;
};

// phi_q [B, T, H, M], phi_k [B, S, H, M], value [B, S, H, E]; `chunk` tokens at a time when causal.
AttentionSums attention_sums(const at::Tensor& phi_q, const at::Tensor& phi_k, const at::Tensor& value,
                             bool causal, int64_t chunk = 64);

// Orthogonal rows as all references but one make them: Q of a Householder QR of each Gaussian block [N, D,
// D], its signs as LAPACK leaves them (so not Haar: E[Q_ii] = -0.29 at D = 8), transposed, stacked, and cut
// to `rows`.
// -> [rows, D]. Throws c10::ValueError when N D < rows.
at::Tensor uncorrected_orthogonal_rows(const at::Tensor& gaussian_blocks, int64_t rows);

}  // namespace performer::ops
