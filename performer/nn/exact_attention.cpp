// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/exact_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

namespace performer::nn {
namespace {

constexpr int64_t kFirstCapacity = 16;

// Every segment by itself, side by side in the one row of a packed batch.
at::Tensor packed_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            bool causal, const at::Tensor& cu_seqlens) {
  const at::Tensor q = query.transpose(1, 2), k = key.transpose(1, 2), v = value.transpose(1, 2);
  const auto bounds = cu_seqlens.accessor<int64_t, 1>();
  std::vector<at::Tensor> outputs;
  for (int64_t segment = 0; segment + 1 < bounds.size(0); ++segment) {
    const int64_t begin = bounds[segment], length = bounds[segment + 1] - begin;
    if (length == 0) continue;
    outputs.push_back(at::scaled_dot_product_attention(q.narrow(2, begin, length), k.narrow(2, begin, length),
                                                       v.narrow(2, begin, length), {}, 0.0, causal));
  }
  return outputs.empty() ? at::zeros_like(value) : at::cat(outputs, 2).transpose(1, 2);
}

// Bool [B, 1, T or 1, T]: what each row may see. A masked row may see everything: its result is dropped, and
// a row that sees nothing would be 0 / 0.
at::Tensor visible(const at::Tensor& key_mask, bool causal) {
  at::Tensor allowed = key_mask.unsqueeze(1).unsqueeze(1);
  if (causal) {
    const int64_t length = key_mask.size(1);
    allowed = allowed.logical_and(at::ones({length, length}, key_mask.options()).tril());
  }
  return allowed.logical_or(key_mask.logical_not().unsqueeze(1).unsqueeze(-1));
}

at::Tensor grown(const at::Tensor& cache, const at::Tensor& token, int64_t length, int64_t capacity) {
  at::Tensor wider = at::empty({token.size(0), token.size(1), capacity, token.size(2)}, token.options());
  if (length > 0) wider.narrow(2, 0, length).copy_(cache.narrow(2, 0, length));
  return wider;
}

}  // namespace

at::Tensor exact_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           bool causal, const SequenceBatch& batch) {
  if (batch.cu_seqlens) return packed_attention(query, key, value, causal, *batch.cu_seqlens);
  const at::Tensor q = query.transpose(1, 2), k = key.transpose(1, 2), v = value.transpose(1, 2);
  if (!batch.key_mask) return at::scaled_dot_product_attention(q, k, v, {}, 0.0, causal).transpose(1, 2);
  const at::Tensor rows =
      at::scaled_dot_product_attention(q, k, v, visible(*batch.key_mask, causal)).transpose(1, 2);
  return rows.masked_fill(batch.key_mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
}

at::Tensor exact_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      at::Tensor& keys, at::Tensor& values, int64_t& length) {
  if (!keys.defined() || length == keys.size(2)) {
    const int64_t capacity = std::max(kFirstCapacity, 2 * length);
    keys = grown(keys, key, length, capacity);
    values = grown(values, value, length, capacity);
  }
  keys.select(2, length).copy_(key);
  values.select(2, length).copy_(value);
  ++length;
  return at::scaled_dot_product_attention(query.unsqueeze(2), keys.narrow(2, 0, length),
                                          values.narrow(2, 0, length))
      .squeeze(2);
}

}  // namespace performer::nn
