// SPDX-License-Identifier: Apache-2.0
// Exact softmax attention, softmax(q k / sqrt(D)) v, by LibTorch's scaled_dot_product_attention.
#include "performer/nn/attention/exact.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/rows.h"
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

at::Tensor grown(const at::Tensor& cache, const at::Tensor& tokens, int64_t length, int64_t capacity) {
  at::Tensor wider = at::empty({tokens.size(0), tokens.size(1), capacity, tokens.size(3)}, tokens.options());
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
  KeyValueCache tokens;
  std::optional<at::Tensor> key_mask;

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<ExactContext>();
    selected->tokens = tokens.select(rows);
    if (key_mask) selected->key_mask = key_mask->index_select(0, rows);
    return selected;
  }
};

// Attention of query to some of the keys, and the logarithm of each row's sum of weights [B, H, T]: what two
// parts of the keys need to become one. All [B, H, T, D].
struct PartialAttention {
  at::Tensor rows, log_sum;
};
PartialAttention attend_partly(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                               bool causal) {
  auto [rows, log_sum] =
      at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, /*dropout_p=*/0.0, causal);
  return {rows, log_sum};
}

// Of the tokens that the cache took in last and of all before them, a block of queries at a time without any
// matrix of queries by keys.
at::Tensor attend_to_past(const at::Tensor& query, const KeyValueCache& cache) {
  const int64_t count = query.size(2), before = cache.length - count;
  const auto part = [](const at::Tensor& x, int64_t first, int64_t tokens) {
    return x.narrow(2, first, tokens);
  };
  const PartialAttention own =
      attend_partly(query, part(cache.keys, before, count), part(cache.values, before, count), true);
  if (before == 0) return own.rows;
  const PartialAttention past =
      attend_partly(query, part(cache.keys, 0, before), part(cache.values, 0, before), false);
  const at::Tensor log_sum = at::logaddexp(own.log_sum, past.log_sum);
  const auto share = [&](const PartialAttention& one) { return (one.log_sum - log_sum).exp().unsqueeze(-1); };
  return (own.rows * share(own) + past.rows * share(past)).to(own.rows.scalar_type());
}

class ExactAttention final : public Attention {
 public:
  at::Tensor forward(const ops::AttentionInputs& inputs) override { return attend(inputs); }

  at::Tensor rows(const ops::AttentionInputs& inputs, const RowRange& range) override {
    return rows_of_sequences(inputs, range, [](const ops::AttentionInputs& one, const RowRange& some) {
      return score_rows(one, some, visible_keys(one, some));
    });
  }

  std::unique_ptr<Cache> begin(int64_t) const override { return std::make_unique<ExactCache>(); }

  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  Cache& cache) const override {
    return exact_step(query, key, value, dynamic_cast<ExactCache&>(cache).tokens);
  }

  at::Tensor advance(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     Cache& cache) const override {
    if (key.size(1) == 0) return value;
    auto& tokens = dynamic_cast<ExactCache&>(cache).tokens;
    tokens.append(key.transpose(1, 2), value.transpose(1, 2));
    return attend_to_past(query.transpose(1, 2), tokens).transpose(1, 2);
  }

  std::unique_ptr<Cache> begin_cross(const at::Tensor& key, const at::Tensor& value,
                                     const std::optional<at::Tensor>& key_mask) const override {
    auto cache = std::make_unique<ExactContext>();
    cache->tokens.append(key.transpose(1, 2), value.transpose(1, 2));
    cache->key_mask = key_mask;
    return cache;
  }

  void extend(const at::Tensor& key, const at::Tensor& value, Cache& cache) const override {
    auto& context = dynamic_cast<ExactContext&>(cache);
    context.tokens.append(key.transpose(1, 2), value.transpose(1, 2));
    if (!context.key_mask) return;
    const at::Tensor seen = at::ones({key.size(0), key.size(1)}, context.key_mask->options());
    context.key_mask = at::cat({*context.key_mask, seen}, 1);
  }

  at::Tensor read(const at::Tensor& query, const Cache& cache) const override {
    const auto& context = dynamic_cast<const ExactContext&>(cache);
    ops::AttentionInputs inputs;
    inputs.query = query;
    inputs.key = context.tokens.keys.narrow(2, 0, context.tokens.length).transpose(1, 2);
    inputs.value = context.tokens.values.narrow(2, 0, context.tokens.length).transpose(1, 2);
    inputs.key_mask = context.key_mask;
    return attend(inputs);
  }
};

}  // namespace

void KeyValueCache::append(const at::Tensor& more_keys, const at::Tensor& more_values) {
  const int64_t count = more_keys.size(2), needed = length + count;
  if (!keys.defined() || needed > keys.size(2)) {
    const int64_t capacity = std::max({kFirstCapacity, 2 * length, needed});
    keys = grown(keys, more_keys, length, capacity);
    values = grown(values, more_values, length, capacity);
  }
  keys.narrow(2, length, count).copy_(more_keys);
  values.narrow(2, length, count).copy_(more_values);
  length = needed;
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
  cache.append(key.unsqueeze(2), value.unsqueeze(2));
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
  kind.capabilities.rows = true;
  kind.capabilities.grows = true;
  kind.capabilities.quadratic = true;
  kind.make = [](const AttentionConfig&, const AttentionShape&) {
    return std::make_shared<ExactAttention>();
  };
  return kind;
}

}  // namespace performer::nn
