// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace performer::nn {

// All keys and values of streamed sequences: [B, H, capacity, D], of which the first `length` tokens are
// filled; undefined before the first token.
struct KeyValueCache {
  at::Tensor keys, values;
  int64_t length = 0;

  // Takes in tokens of each sequence, keys [B, H, T, D], values [B, H, T, E]. Memory doubles when it is full.
  void append(const at::Tensor& more_keys, const at::Tensor& more_values);
  // A copy that holds the sequences `rows` (int64), in that order.
  KeyValueCache select(const at::Tensor& rows) const;
};

// softmax(q k / sqrt(D)) v of one token over those of n keys that `allowed` (bool, broadcast to [B, H, n])
// keeps, zero without any: query [B, H, D], keys [B, H, n, D], values [B, H, n, E] -> [B, H, E]. Scores may
// be of any finite size, which LibTorch's own attention does not bear.
at::Tensor attend_among(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                        const at::Tensor& allowed);

// One token of exact causal attention: query, key [B, H, D], value [B, H, E] -> [B, H, E]; the cache takes
// the token in.
at::Tensor exact_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      KeyValueCache& cache);

}  // namespace performer::nn
