// SPDX-License-Identifier: Apache-2.0
// Softmax attention over LibTorch's scaled_dot_product_attention: the quadratic reference of the linear
// kinds.
#pragma once

#include <ATen/core/Tensor.h>

#include "performer/nn/sequence_batch.h"

namespace performer::nn {

// softmax(q k / sqrt(D)) v over padded rows or packed segments; query, key, value [B, T, H, D] -> [B, T, H,
// D]. Masked keys are not seen, masked rows are 0. A key mask costs a boolean [B, 1, T or 1, T].
at::Tensor exact_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           bool causal, const SequenceBatch& batch);

// One more token: query, key, value [B, H, D] -> [B, H, D] over all tokens so far. `keys` and `values` [B, H,
// capacity, D] hold `length` tokens; they grow by doubling, so that T tokens cost O(T) copies.
at::Tensor exact_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      at::Tensor& keys, at::Tensor& values, int64_t& length);

}  // namespace performer::nn
