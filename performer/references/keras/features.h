// SPDX-License-Identifier: Apache-2.0
// Feature transforms of the Keras KernelAttention layer (TensorFlow Model Garden 2.19), its behaviour kept
// where it is questionable: docs/kernel_attention.md lists what and what our own layer does instead. Computed
// in double, results in the type of x.
// Letters: B, T (tokens), H (heads), D (head size), M (features).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace performer::references::keras {

// elu, exp, expmod, expplus, identity, relu, square.
std::vector<std::string> transform_names();
// Throws UsageError with the known names for another.
void check_transform(const std::string& name);
// Whether the reference lets the transform stream (all but expplus, whose statistics span the sequence).
bool transform_streams(const std::string& name);

// Features [B, T, H, M] of x [B, T, H, D], which has its scale already; projection [M, D], or none (M = D).
//   elu  elu(u) + 1     relu  relu(u) + 1e-3     square  u^2     identity  u
//   exp  exp(u - max) exp(-|x|^2 / 2)     expmod  exp(u - max) exp(-sqrt(D) / 2)     expplus  see below
// with u = W x or x and max over (T, H, M) of each example, through which gradient flows; all but expplus are
// divided by sqrt(M) when projected. `other` (the keys when x are queries, and the other way round) matters
// to expplus only. A tensor without tokens gives features without tokens.
at::Tensor transform(const std::string& name, const at::Tensor& x, const at::Tensor& other, bool is_query,
                     const std::optional<at::Tensor>& projection);

struct ExpPlusOptions {
  double numerical_stabilizer = 1e-6;
  bool normalize_data = true;  // D^(-1/4) on x and other; else x (not other) at unit length
  bool numerical_renormalizer = true;
  bool extra_renormalize_exp_fun = false;  // shift by at least max over T of |x|^2 / 2
};

// FAVOR++ (arXiv 2205.15317, optimal positive random features) as the reference has it:
//   D (exp(B u + A |w|^2 - |x|^2 / 2 - shift) + stabilizer) / sqrt(M)
// A from sums over tokens of x and other, both divided by the number of tokens of x, without gradient; masks
// play no part. Shift: B max over features for a query, B times one maximum of the whole tensor for keys.
// Without a projection x itself.
at::Tensor expplus(const at::Tensor& x, const at::Tensor& other, bool is_query,
                   const std::optional<at::Tensor>& projection, const ExpPlusOptions& options = {});

}  // namespace performer::references::keras
