// SPDX-License-Identifier: Apache-2.0
// Exact softmax attention, softmax(q k / sqrt(D)) v, by LibTorch's scaled_dot_product_attention.
#include "performer/nn/attention/exact.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "performer/nn/attention/own_kinds.h"

namespace performer::nn {
namespace {

constexpr int64_t kFirstCapacity = 16;

at::Tensor hide_rows(const at::Tensor& rows, const std::optional<at::Tensor>& query_mask) {
  if (!query_mask) return rows;
  return rows.masked_fill(query_mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
}

// Every segment by itself, side by side in the one row of a packed batch.
at::Tensor packed_attention(const ops::AttentionInputs& inputs) {
  const at::Tensor q = inputs.query.transpose(1, 2), k = inputs.key.transpose(1, 2),
                   v = inputs.value.transpose(1, 2);
  const at::Tensor& cu_query = *inputs.cu_query;
  const auto of_query = cu_query.accessor<int64_t, 1>();
  const auto of_key = (inputs.cu_key ? *inputs.cu_key : cu_query).accessor<int64_t, 1>();
  std::vector<at::Tensor> outputs;
  for (int64_t segment = 0; segment + 1 < of_query.size(0); ++segment) {
    const int64_t begin = of_query[segment], length = of_query[segment + 1] - begin;
    const int64_t from = of_key[segment], keys = of_key[segment + 1] - from;
    if (length == 0) continue;
    const at::Tensor query = q.narrow(2, begin, length);
    if (keys == 0) {
      outputs.push_back(at::zeros({1, v.size(1), length, v.size(3)}, v.options()));
      continue;
    }
    outputs.push_back(at::scaled_dot_product_attention(query, k.narrow(2, from, keys),
                                                       v.narrow(2, from, keys), {}, 0.0, inputs.causal));
  }
  if (outputs.empty()) {
    return at::zeros({1, inputs.query.size(1), inputs.value.size(2), inputs.value.size(3)},
                     inputs.value.options());
  }
  return at::cat(outputs, 2).transpose(1, 2);
}

// Bool [B, 1, T or 1, S]: what each row may see. A row that sees nothing would be 0 / 0: it may see
// everything, and its result is dropped.
at::Tensor visible(const ops::AttentionInputs& inputs) {
  const at::Tensor& key_mask = *inputs.key_mask;
  at::Tensor allowed = key_mask.unsqueeze(1).unsqueeze(1);
  if (inputs.causal) {
    const int64_t length = key_mask.size(1);
    allowed = allowed.logical_and(at::ones({length, length}, key_mask.options()).tril());
  }
  if (inputs.query_mask) {
    allowed = allowed.logical_or(inputs.query_mask->logical_not().unsqueeze(1).unsqueeze(-1));
  }
  return allowed;
}

at::Tensor attend(const ops::AttentionInputs& inputs) {
  if (inputs.cu_query) return packed_attention(inputs);
  const at::Tensor q = inputs.query.transpose(1, 2), k = inputs.key.transpose(1, 2),
                   v = inputs.value.transpose(1, 2);
  if (!inputs.key_mask) {
    const at::Tensor rows = at::scaled_dot_product_attention(q, k, v, {}, 0.0, inputs.causal);
    return hide_rows(rows.transpose(1, 2), inputs.query_mask);
  }
  const at::Tensor rows = at::scaled_dot_product_attention(q, k, v, visible(inputs));
  const at::Tensor seen = inputs.key_mask->any(1).view({-1, 1, 1, 1});  // a row of B without any key gives 0
  return hide_rows(rows.transpose(1, 2), inputs.query_mask).masked_fill(seen.logical_not(), 0);
}

at::Tensor grown(const at::Tensor& cache, const at::Tensor& token, int64_t length, int64_t capacity) {
  at::Tensor wider = at::empty({token.size(0), token.size(1), capacity, token.size(2)}, token.options());
  if (length > 0) wider.narrow(2, 0, length).copy_(cache.narrow(2, 0, length));
  return wider;
}

struct ExactCache final : Cache {
  KeyValueCache tokens;

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<ExactCache>();
    selected->tokens.length = tokens.length;
    if (tokens.keys.defined()) {
      selected->tokens.keys = tokens.keys.index_select(0, rows);
      selected->tokens.values = tokens.values.index_select(0, rows);
    }
    return selected;
  }
};

struct ExactContext final : Cache {
  at::Tensor key, value;  // [B, S, H, D]
  std::optional<at::Tensor> key_mask;

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<ExactContext>();
    selected->key = key.index_select(0, rows);
    selected->value = value.index_select(0, rows);
    if (key_mask) selected->key_mask = key_mask->index_select(0, rows);
    return selected;
  }
};

class ExactAttention final : public Attention {
 public:
  at::Tensor forward(const ops::AttentionInputs& inputs) override { return attend(inputs); }

  std::unique_ptr<Cache> begin(int64_t) const override { return std::make_unique<ExactCache>(); }

  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  Cache& cache) const override {
    return exact_step(query, key, value, dynamic_cast<ExactCache&>(cache).tokens);
  }

  std::unique_ptr<Cache> begin_cross(const at::Tensor& key, const at::Tensor& value,
                                     const std::optional<at::Tensor>& key_mask) const override {
    auto cache = std::make_unique<ExactContext>();
    cache->key = key;
    cache->value = value;
    cache->key_mask = key_mask;
    return cache;
  }

  at::Tensor read(const at::Tensor& query, const Cache& cache) const override {
    const auto& context = dynamic_cast<const ExactContext&>(cache);
    ops::AttentionInputs inputs;
    inputs.query = query;
    inputs.key = context.key;
    inputs.value = context.value;
    inputs.key_mask = context.key_mask;
    return attend(inputs);
  }
};

}  // namespace

at::Tensor exact_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      KeyValueCache& cache) {
  if (!cache.keys.defined() || cache.length == cache.keys.size(2)) {
    const int64_t capacity = std::max(kFirstCapacity, 2 * cache.length);
    cache.keys = grown(cache.keys, key, cache.length, capacity);
    cache.values = grown(cache.values, value, cache.length, capacity);
  }
  cache.keys.select(2, cache.length).copy_(key);
  cache.values.select(2, cache.length).copy_(value);
  ++cache.length;
  return at::scaled_dot_product_attention(query.unsqueeze(2), cache.keys.narrow(2, 0, cache.length),
                                          cache.values.narrow(2, 0, cache.length))
      .squeeze(2);
}

AttentionKind exact_kind() {
  AttentionKind kind;
  kind.name = "exact";
  kind.summary = "exact softmax attention; time in proportion to the square of the length";
  kind.group = KindGroup::baseline;
  kind.capabilities.streams = true;
  kind.capabilities.cross = true;
  kind.make = [](const AttentionConfig&, const AttentionShape&) {
    return std::make_shared<ExactAttention>();
  };
  return kind;
}

}  // namespace performer::nn
