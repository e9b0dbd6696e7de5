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
};

// One token of exact causal attention: query, key [B, H, D], value [B, H, E] -> [B, H, E]; the cache takes
// the token in. Its memory doubles when it is full.
at::Tensor exact_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      KeyValueCache& cache);

}  // namespace performer::nn
