// SPDX-License-Identifier: Apache-2.0
// google-research's performer/fast_attention/tensorflow as it computes. Against the JAX version
// (references/jax): no guard of the denominator, ReLU features with 1/sqrt(M) inside the ReLU, and orthogonal
// matrices as products of Givens rotations.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "performer/references/jax/attention.h"

namespace performer::references::tensorflow {

// The random numbers of one product of Givens rotations: D ceil(ln D) of them, float64 uniforms [N] of [0, 1)
// and the indices [N, 2] int64 of the two rows of each, drawn with replacement.
struct GivensDraw {
  at::Tensor uniforms, pairs;
};

// Rotations by pi times the uniform (angles of half a turn only), applied to the rows i <= j of the identity
// in order. Where both indices are equal the row is multiplied by cos - sin of the angle, so the product is
// not orthogonal: rows shrink or grow. -> [D, D] float64.
at::Tensor givens_product(int64_t size, const GivensDraw& draw);
GivensDraw draw_givens(int64_t size, const jax::DrawName& name);
// What the reference draws from a seed: numpy's legacy generator (MT19937), uniform() then choice(size, 2).
GivensDraw draw_numpy_givens(int64_t size, uint32_t seed);

// create_projection_matrix with struct_mode: every block is this one product [D, D], the last cut to the rows
// needed; row_norms [rows, D] Gaussians for scaling 0. Blocks by QR are jax::orthogonal_projection. ->
// [rows, D]
at::Tensor givens_projection(const at::Tensor& product, const at::Tensor& row_norms, int64_t rows,
                             int64_t scaling = 0);

struct ProjectionOptions {
  int64_t rows = 256, columns = 64;  // m, d
  int64_t scaling = 0;               // 0 lengths of Gaussian rows, 1 all sqrt(D)
  bool givens = false;               // struct_mode
};
// [rows, columns] float32 of the counter-based generator.
at::Tensor draw_projection(const ProjectionOptions& options, const jax::DrawName& name);

// The layer's data-dependent seed, ceil(|sum(query) 1e8|) in float32, as int32. Beyond 21.5 the reference's
// conversion is undefined; here it saturates.
int32_t redraw_seed(const at::Tensor& query);

// x [B, T, H, D], projection [M, D] -> [B, T, H, M].
// (exp(u - |x|^2/2 - shift) + epsilon) / sqrt(M) of x D^(-1/4); shift over the features of a query, over
// features and tokens for keys. Throws UsageError without a projection.
at::Tensor softmax_features(const at::Tensor& x, bool is_query, const at::Tensor& projection,
                            double epsilon = 1e-6);
// relu(W x / sqrt(M)) + epsilon, or relu(x) + epsilon without a projection.
at::Tensor relu_features(const at::Tensor& x, const std::optional<at::Tensor>& projection,
                         double epsilon = 1e-3);

struct FavorOptions {
  std::string kernel = "softmax";      // kernel_transformation: softmax or relu
  std::optional<double> epsilon = {};  // numerical_stabilizer; 1e-6 for softmax, 1e-3 for relu
  bool causal = false;
  int64_t chunk = 64;  // tokens at a time when causal: rounding only
};
// favor_attention: query [B, T, H, D], key [B, S, H, D], value [B, S, H, E] -> [B, T, H, E]. The denominator
// is divided by as it is. Causal with more keys than queries uses the first T keys only, since the reference
// walks over the queries: decoding with its cache of keys sees key 0 alone. Fewer keys than queries:
// UsageError (it fails there too).
jax::Attended favor_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                              const std::optional<at::Tensor>& projection, const FavorOptions& options = {});

}  // namespace performer::references::tensorflow
