// SPDX-License-Identifier: Apache-2.0
// Exact softmax attention, softmax(q k / sqrt(D)) v, by LibTorch's scaled_dot_product_attention.
#include "performer/nn/attention/exact.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/segments.h"

namespace performer::nn {
namespace {

constexpr int64_t kFirstCapacity = 16;

at::Tensor attend(const ops::AttentionInputs& inputs);

// Every segment by itself, side by side in the one row of a packed batch.
at::Tensor packed_attention(const ops::AttentionInputs& inputs) {
  const at::Tensor& cu_query = *inputs.cu_query;
  const auto of_query = cu_query.accessor<int64_t, 1>();
  const auto of_key = (inputs.cu_key ? *inputs.cu_key : cu_query).accessor<int64_t, 1>();
  std::vector<at::Tensor> outputs = {inputs.value.narrow(1, 0, 0)};
  for (int64_t n = 0; n + 1 < of_query.size(0); ++n) {
    const auto queries = [&](const at::Tensor& x) { return x.slice(1, of_query[n], of_query[n + 1]); };
    const auto keys = [&](const at::Tensor& x) { return x.slice(1, of_key[n], of_key[n + 1]); };
    ops::AttentionInputs segment{queries(inputs.query), keys(inputs.key), keys(inputs.value), inputs.causal};
    if (inputs.key_mask) segment.key_mask = keys(*inputs.key_mask);
    if (inputs.query_mask) segment.query_mask = queries(*inputs.query_mask);
    outputs.push_back(attend(segment));
  }
  return at::cat(outputs, 1);
}

// Bool [B, 1, T or 1, S]: what each row may see.
at::Tensor visible(const ops::AttentionInputs& inputs) {
  const at::Tensor allowed = inputs.key_mask->unsqueeze(1).unsqueeze(1);
  if (!inputs.causal) return allowed;
  const int64_t length = inputs.key_mask->size(1);
  return allowed.logical_and(at::ones({length, length}, inputs.key_mask->options()).tril());
}

at::Tensor attend(const ops::AttentionInputs& inputs) {
  if (inputs.cu_query) return packed_attention(inputs);
  const at::Tensor q = inputs.query.transpose(1, 2), k = inputs.key.transpose(1, 2),
                   v = inputs.value.transpose(1, 2);
  if (q.size(2) == 0 || k.size(2) == 0) {  // nothing is asked, or there is nothing to see
    return at::zeros({q.size(0), q.size(2), v.size(1), v.size(3)}, v.options());
  }
  if (!inputs.key_mask) {
    const at::Tensor rows = at::scaled_dot_product_attention(q, k, v, {}, 0.0, inputs.causal);
    return hide_rows(rows.transpose(1, 2), inputs.query_mask);
  }
  const at::Tensor allowed = visible(inputs);
  // A row that sees nothing would be 0 / 0: it may see everything, and its result is dropped.
  const at::Tensor blind = allowed.any(-1, /*keepdim=*/true).logical_not();
  const at::Tensor rows = at::scaled_dot_product_attention(q, k, v, allowed.logical_or(blind));
  return hide_rows(rows.masked_fill(blind, 0).transpose(1, 2), inputs.query_mask);
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
    selected->tokens = tokens.select(rows);
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

void KeyValueCache::append(const at::Tensor& key, const at::Tensor& value) {
  if (!keys.defined() || length == keys.size(2)) {
    const int64_t capacity = std::max(kFirstCapacity, 2 * length);
    keys = grown(keys, key, length, capacity);
    values = grown(values, value, length, capacity);
  }
  keys.select(2, length).copy_(key);
  values.select(2, length).copy_(value);
  ++length;
}

KeyValueCache KeyValueCache::select(const at::Tensor& rows) const {
  KeyValueCache selected;
  selected.length = length;
  if (keys.defined()) {
    selected.keys = keys.index_select(0, rows);
    selected.values = values.index_select(0, rows);
  }
  return selected;
}

at::Tensor attend_among(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                        const at::Tensor& allowed) {
  const auto type = values.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const double scale = 1 / std::sqrt(static_cast<double>(query.size(2)));
  const at::Tensor scores = at::matmul(query.to(type).unsqueeze(2) * scale, keys.to(type).transpose(2, 3));
  const at::Tensor hidden = allowed.logical_not().unsqueeze(-2);
  const at::Tensor weights =
      scores.masked_fill(hidden, std::numeric_limits<float>::lowest()).softmax(-1).masked_fill(hidden, 0);
  return at::matmul(weights, values.to(type)).squeeze(2).to(values.scalar_type());
}

at::Tensor exact_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      KeyValueCache& cache) {
  cache.append(key, value);
  return at::scaled_dot_product_attention(query.unsqueeze(2), cache.keys.narrow(2, 0, cache.length),
                                          cache.values.narrow(2, 0, cache.length))
      .squeeze(2);
}

AttentionKind exact_kind() {
  AttentionKind kind;
  kind.name = "exact";
  kind.summary = "exact softmax attention; time in proportion to the square of the length";
  kind.cost =
      "time in proportion to T^2; memory of a training step in proportion to T without a mask, T^2 with one; "
      "a "
      "stream keeps all keys and values";
  kind.group = KindGroup::baseline;
  kind.capabilities.streams = true;
  kind.capabilities.cross = true;
  kind.make = [](const AttentionConfig&, const AttentionShape&) {
    return std::make_shared<ExactAttention>();
  };
  return kind;
}

}  // namespace performer::nn
