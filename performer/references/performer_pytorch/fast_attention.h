// SPDX-License-Identifier: Apache-2.0
// Attention of performer-pytorch 1.1.4 in its own arithmetic: projections, feature maps and linear attention,
// with every epsilon and shift where that package has it. For imported checkpoints and comparisons; the
// project's own attention is ops/favor.h. Letters as there: B, T, S, H, D, E, M; layout [B, T, H, D].
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace performer::references::performer_pytorch {

// Standard normal numbers behind one projection [rows, columns].
struct RandomMatrixDraws {
  at::Tensor blocks;  // [ceil(rows / columns), columns, columns]: directions come from their QR
  at::Tensor rows;    // [rows, columns]: row lengths are their norms; not used with scaling 1
};

// Draws from our counter-based generator, named by (seed, layer, redraw): float32, the same everywhere.
RandomMatrixDraws random_matrix_draws(int64_t rows, int64_t columns, int64_t seed, int64_t layer,
                                      int64_t redraw);

// Projection [rows, columns]: rows of Q of each block, signs as the QR leaves them (not Haar), cut to `rows`,
// times the norms of draws.rows (scaling 0) or sqrt(columns) (scaling 1). Computed in the type of
// draws.blocks. Throws UsageError for no rows, another scaling, or draws of another size.
at::Tensor gaussian_orthogonal_random_matrix(const RandomMatrixDraws& draws, int64_t rows, int64_t columns,
                                             int64_t scaling = 0);

// Features M when none are given: int(d ln d), which is 0 for head size 1. Throws UsageError for sizes < 1.
int64_t default_features(int64_t head_size);

// Positive softmax features [B, T, H, M] of x [B, T, H, D]: M^(-1/2) (exp(u - |x|^2 / 2 - shift) + epsilon),
// x first multiplied by D^(-1/4) if `normalize`. The shift is the largest u: of a query over its features, of
// keys over features and tokens of a head; no gradient flows through it. projection [M, D].
at::Tensor softmax_kernel(const at::Tensor& x, const at::Tensor& projection, bool is_query,
                          bool normalize = true, double epsilon = 1e-4);

// f(W x) + epsilon, or f(x) + epsilon without a projection, x first multiplied by D^(-1/4) if `normalize`.
// `kernel`: a name of ops::activation.
at::Tensor generalized_kernel(const at::Tensor& x, const std::optional<at::Tensor>& projection,
                              const std::string& kernel = "relu", double epsilon = 1e-3,
                              bool normalize = true);

// phi_q (phi_k^T v) / phi_q . sum phi_k, the denominator unguarded. phi_q [B, T, H, M], phi_k [B, S, H, M],
// value [B, S, H, E] -> [B, T, H, E].
at::Tensor linear_attention(const at::Tensor& phi_q, const at::Tensor& phi_k, const at::Tensor& value);

// Causal form. `epsilon` is added to each feature of the running key sum, so the denominator gains
// epsilon * sum(phi_q); the numerator has none. The reference splits queries and keys into at most `chunks`
// pieces each and pairs them up: lengths that differ, neither longer than `chunks`, are cut to the shorter;
// longer ones are paired piece by piece as there, a piece of one token with every token of the other.
// Keys whose float32 sums overflow give NaN where they do there.
// -> [B, min(T, S), H, E] (R rows for longer lengths that differ). Throws UsageError where pieces of
// different sizes meet.
at::Tensor causal_linear_attention(const at::Tensor& phi_q, const at::Tensor& phi_k, const at::Tensor& value,
                                   double epsilon = 1e-6, int64_t chunks = 128);

struct FastAttentionOptions {
  bool causal = false;
  bool generalized = false;     // generalized_kernel instead of softmax_kernel
  bool no_projection = false;   // queries softmaxed over features, keys over tokens (causal: exp(k), which
                                // overflows for large keys as there); takes precedence over `generalized`
  std::string kernel = "relu";  // of `generalized`
};

// query [B, T, H, D], key [B, S, H, D], value [B, S, H, E] -> [B, T, H, E] ([B, min(T, S), H, E] when
// causal). projection [M, D]; not read with no_projection. float32 inputs are mapped and summed in double,
// but overflow where float32 does. Throws UsageError when the projection is missing.
at::Tensor fast_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const at::Tensor& projection, const FastAttentionOptions& options);

// x [B, T, H, D] with neighbouring pairs turned by the angles whose sines are the first D/2 columns of table
// [T, D] (or [1, T, D]) and whose cosines are the others. Throws UsageError for another shape or odd D.
at::Tensor rotate_pairs(const at::Tensor& x, const at::Tensor& table);

}  // namespace performer::references::performer_pytorch
