// SPDX-License-Identifier: Apache-2.0
// Attention of darkformer-pytorch, the port of DARKFormer (arXiv 2603.04127): positive features of a learned
// geometry M, kernel exp(q^T M^T M k / sqrt(D)), with masks on features, maxima and queries, and a running
// shift when causal. Of the references it alone is causal to the last digit and corrects the signs of QR.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace performer::references::darkformer {

struct FeatureMap {
  at::Tensor projection;   // [M, R] for all heads, or [H, M, R]
  at::Tensor geometry;     // [H or 1, R, D], learned; undefined: the identity (R = D)
  at::Tensor log_weights;  // [H or 1, M] of an importance-sampling proposal; undefined: none
};

// log phi = u - |y|^2/2 + log_weights with y = geometry x D^(-1/4) and u = projection y. x [B, T, H, D] ->
// [B, T, H, M].
at::Tensor log_features(const at::Tensor& x, const FeatureMap& map);

// Sums over the keys of a sequence so far, kv [B, H, M, E] and key_sum [B, H, M]; the true ones are
// exp(log_scale), [B, H], times these.
struct State {
  at::Tensor kv, key_sum, log_scale;
};

struct AttentionOptions {
  double epsilon = 0;                         // eps, added to features that are not shifted
  bool causal = false;                        // needs as many keys as queries
  int64_t chunk = 256;                        // causal_chunk_size: tokens at a time
  std::optional<at::Tensor> key_mask = {};    // bool [B, S]: masked keys do not exist, in sums and maxima
  std::optional<at::Tensor> query_mask = {};  // bool [B, T]: masked rows are zero
};

// query [B, T, H, D], key [B, S, H, D], value [B, S, H, E] -> [B, T, H, E]. Features (exp(log phi - shift) +
// epsilon exp(-shift)) / sqrt(M); shift is the largest log phi of a query, of all keys, or when causal of the
// keys so far, without gradient, and at least 0 with an epsilon. Rows whose denominator is not a normal
// number are zero. Causal attention continues from `state` and leaves the new one there when it is given.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const FeatureMap& map, const AttentionOptions& options = {}, State* state = nullptr);

// int(D ln D), at least 1: the default number of features.
int64_t default_features(int64_t head_size);
// [features, rank] float32 from Haar-distributed blocks with lengths of Gaussian rows, one for all heads.
at::Tensor draw_projection(int64_t features, int64_t rank, int64_t seed, int64_t layer, int64_t redraw);

// For inputs y whose common covariance is `covariance` [H or 1, R, R]: rows drawn from N(0, (I + 2C)(I -
// 2C)^-1), the variance-optimal proposal for centred Gaussian inputs, made of rows [M, R] of N(0, I), and
// half the logarithm of the ratio of densities. The expectation of the kernel does not change. Throws
// UsageError unless all eigenvalues are in [0, 1/2).
FeatureMap variance_optimal_proposal(const at::Tensor& projection, const at::Tensor& covariance);

// Geometry [H, D, D] = scale C'^(-1/2), C' = (1 - shrinkage) C + (shrinkage + regularization) mean(diag C) I:
// whitens inputs of covariance C [H, D, D]. Default scale D^(-1/4).
at::Tensor whitening_geometry(const at::Tensor& covariance, double regularization = 1e-4,
                              double shrinkage = 0, std::optional<double> scale = {});

}  // namespace performer::references::darkformer
