// SPDX-License-Identifier: Apache-2.0
// SLiM Performer (arXiv 2012.11346) as google-research's performer/models/slim_performer computes its
// attention: causal only, features without epsilon, shift or 1/sqrt(M), 1e-16 added to the denominator, no
// output projection.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "performer/references/jax/attention.h"

namespace performer::references::slim {

// relu, elu+1, sqr, abs, favor+ and favor+_K for a whole number K >= 1: K D features. sqr is the training
// default. (The reference's own check of names fails for the plain favor+ and refuses abs; both are computed
// here.)
struct FeatureType {
  std::string function;  // a name of ops::activation; empty for favor+
  int64_t blocks = 0;    // K: D x D blocks of the projection; 0 without one
};
// Throws UsageError naming the known types.
FeatureType feature_type(const std::string& name);

// One D x D matrix a Gaussian [..., D, D]: reflections along the columns of its lower triangle, each
// normalised, in the compact WY form I - V S^-1 V^T, S the upper triangle of V^T V with half its diagonal.
// The vectors are far from those of a Haar-distributed product: entry (i, i) is near 1, and the features
// greatly overestimate the kernel along early axes.
at::Tensor householder_product(const at::Tensor& gaussian);

// gaussian [H, K, D, D] -> projection [H, K D, D]: the products' columns as rows, all of length sqrt(D), one
// for each head.
at::Tensor householder_projection(const at::Tensor& gaussian);
// The same from the counter-based generator, float32; head h draws as `name.head` + h.
at::Tensor draw_projection(int64_t heads, int64_t blocks, int64_t head_size, const jax::DrawName& name);

// exp(W x - |x|^2/2), x D^(-1/4), for favor+ types; relu, elu + 1, square or abs of x itself otherwise.
// x [B, T, H, D], projection [H, M, D] -> [B, T, H, M].
at::Tensor features(const at::Tensor& x, const std::string& type,
                    const std::optional<at::Tensor>& projection);

// Running sums between the steps of a long sequence: kv [B, H, M, E], key_sum [B, H, M].
struct Sums {
  at::Tensor kv, key_sum;
};

// Causal attention query [B, T, H, D], key [B, T, H, D], value [B, T, H, E] -> [B, T, H, E], continuing from
// `sums` and leaving the new ones there when it is given (undefined: the start). `causal` false: the same
// quotient over all keys, which the reference does not have; then no sums.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const std::string& type, const std::optional<at::Tensor>& projection, bool causal = true,
                     Sums* sums = nullptr);

}  // namespace performer::references::slim
