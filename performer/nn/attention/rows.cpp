// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/attention/rows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "performer/base/error.h"
#include "performer/ops/trigonometric.h"

namespace performer::nn {
namespace {

using at::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSmallestFloat = 0x1p-126;
constexpr double kTooSmall = 1e-200;  // of a denominator whose largest possible term is about 1
constexpr int64_t kKeysAtATime = 1024;

// Calls visit(begin, count) for all `keys` in parts.
template <class Visit>
void in_parts(int64_t keys, Visit&& visit) {
  for (int64_t begin = 0; begin < keys; begin += kKeysAtATime) {
    visit(begin, std::min(kKeysAtATime, keys - begin));
  }
}

Tensor finite_or_zero(const Tensor& shift) {  // nothing seen, or only features that are 0
  return shift.masked_fill(shift.eq(-kInfinity), 0);
}

// Keys in front of the features, heads first, as matrices: [B, H, n, M]. Keys that no row sees have no
// features. A factor of a single row belongs to its keys.
struct KeyPart {
  Tensor log_magnitude, sign;
};
KeyPart key_part(const FeatureRows& in, const Tensor& seen, int64_t begin, int64_t count) {
  const ops::LogFeatures found = in.keys(begin, count);
  Tensor magnitude = found.log_magnitude.transpose(1, 2);
  if (in.log_factor.defined() && in.visible.size(1) == 1) {
    magnitude = magnitude + in.log_factor[0].narrow(0, begin, count).unsqueeze(-1);
  }
  const Tensor hidden = seen.narrow(1, begin, count).logical_not().unsqueeze(1).unsqueeze(-1);
  return {magnitude.masked_fill(hidden, -kInfinity), found.sign.transpose(1, 2).masked_fill(hidden, 0)};
}

Tensor log_norm(const Tensor& log_magnitude) {  // of vectors of features
  return (2 * log_magnitude).logsumexp(-1) / 2;
}

// What a block of rows divides: the weights [B, H, R, S], and for the guard what their sizes could add up to
// [B, H, R, 1] (undefined without a floor), all over exp(shift) [B, H, R, 1].
struct Undivided {
  Tensor weights, bound, shift;
};

Undivided undivided_rows(const FeatureRows& in) {
  const Tensor seen = in.visible.any(1);  // [B or 1, S]
  const int64_t keys = in.visible.size(2);
  const Tensor query = in.query.log_magnitude.transpose(1, 2);  // [B, H, R, M]
  Tensor scale = at::full({query.size(0), query.size(1), 1, query.size(3)}, -kInfinity, query.options());
  in_parts(keys, [&](int64_t begin, int64_t count) {
    const Tensor part = key_part(in, seen, begin, count).log_magnitude;
    scale = at::maximum(scale, part.amax(2, /*keepdim=*/true));
  });
  scale = finite_or_zero(scale);
  const Tensor shift = finite_or_zero((query + scale).amax(-1, /*keepdim=*/true));
  const Tensor left = (query + scale - shift).exp() * in.query.sign.transpose(1, 2);
  Undivided rows{{}, {}, shift};
  std::vector<Tensor> parts;
  in_parts(keys, [&](int64_t begin, int64_t count) {
    const KeyPart part = key_part(in, seen, begin, count);
    const Tensor visible = in.visible.narrow(2, begin, count).unsqueeze(1);
    Tensor weights = at::matmul(left, ((part.log_magnitude - scale).exp() * part.sign).transpose(-1, -2));
    if (in.log_factor.defined() && in.visible.size(1) > 1) {
      weights = weights * in.log_factor.narrow(1, begin, count).exp();
    }
    parts.push_back(weights.masked_fill(visible.logical_not(), 0));
    if (in.floor == 0) return;
    const Tensor sizes = (log_norm(query).unsqueeze(-1) - shift) + log_norm(part.log_magnitude).unsqueeze(-2);
    const Tensor bound =
        sizes.exp().masked_fill(visible.logical_not(), 0).sum(-1, /*keepdim=*/true) * in.floor;
    rows.bound = rows.bound.defined() ? rows.bound + bound : bound;
  });
  rows.weights = at::cat(parts, -1);
  return rows;
}

Tensor divided(const FeatureRows& in, const Undivided& rows) {
  Tensor denominator = rows.weights.sum(-1, /*keepdim=*/true);
  Tensor empty = denominator.eq(0);
  if (in.may_vanish) {
    empty = empty.logical_or((denominator.abs().log() + rows.shift).lt(std::log(kSmallestFloat)));
  }
  if (in.floor > 0) {
    const Tensor floor = at::where(denominator < 0, -rows.bound, rows.bound);
    denominator = at::where(denominator.abs() < rows.bound, floor, denominator);
    empty = rows.bound.eq(0);
  }
  return (rows.weights / denominator).masked_fill(empty, 0);
}

ops::LogFeatures one_row(const ops::LogFeatures& features, int64_t row) {
  return {features.log_magnitude.narrow(1, row, 1), features.sign.narrow(1, row, 1)};
}

}  // namespace

Tensor visible_keys(const ops::AttentionInputs& inputs, const RowRange& range) {
  const int64_t keys = inputs.value.size(1);
  const auto options = inputs.value.options();
  Tensor visible = at::ones({1, range.count, keys}, options.dtype(at::kBool));
  if (inputs.causal) visible = visible.tril(range.first);
  if (inputs.key_mask) visible = visible.logical_and(inputs.key_mask->unsqueeze(1));
  return visible;
}

Tensor visible_pairs(const BlockPattern& pattern, const ops::AttentionInputs& inputs, const RowRange& range) {
  const int64_t batch = inputs.value.size(0), tokens = inputs.value.size(1), heads = inputs.value.size(2);
  Tensor visible = at::zeros({batch, heads, range.count, tokens}, inputs.value.options().dtype(at::kBool));
  for (int64_t row = 0; row < batch; ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      Tensor of_head = visible[row][head];
      pattern.visit(row, head, [&](const BlockTile& tile) {
        const Tensor query = (tile.query_rows - range.first).unsqueeze(2), key = tile.key_rows.unsqueeze(1);
        const Tensor pairs = tile.hidden.logical_not()
                                 .logical_and(query.ge(0).logical_and(query.lt(range.count)))
                                 .logical_and(key.lt(tokens));
        const auto chosen = [&](const Tensor& x) { return x.expand_as(pairs).masked_select(pairs); };
        of_head.index_put_({chosen(query), chosen(key)}, at::ones({}, of_head.options()));
      });
    }
  }
  return visible;
}

Tensor without_hidden_tokens(const Tensor& rows, const ops::AttentionInputs& inputs, const RowRange& range) {
  if (!inputs.key_mask) return rows;
  const Tensor kept = inputs.key_mask->narrow(1, range.first, range.count);
  return rows.masked_fill(kept.logical_not().unsqueeze(1).unsqueeze(-1), 0);
}

Tensor score_rows(const ops::AttentionInputs& inputs, const RowRange& range, const Tensor& visible) {
  const double scale = 1 / std::sqrt(static_cast<double>(inputs.query.size(3)));
  const Tensor query = inputs.query.narrow(1, range.first, range.count).to(at::kDouble).transpose(1, 2);
  const Tensor key = inputs.key.to(at::kDouble).permute({0, 2, 3, 1});
  const Tensor seen = visible.dim() == 3 ? visible.unsqueeze(1) : visible;
  const Tensor scores = (at::matmul(query, key) * scale).masked_fill(seen.logical_not(), -kInfinity);
  return scores.softmax(-1).masked_fill(seen.any(-1, /*keepdim=*/true).logical_not(), 0);
}

Tensor feature_rows(const FeatureRows& in) {
  if (in.visible.size(2) == 0) {
    return at::zeros({in.query.sign.size(0), in.query.sign.size(2), in.visible.size(1), 0},
                     in.query.sign.options());
  }
  const Undivided all = undivided_rows(in);
  Tensor rows = divided(in, all);
  if (in.visible.size(1) == 1) return rows;
  const Tensor small = all.weights.abs().sum(-1).lt(kTooSmall).transpose(0, 2).flatten(1).any(-1);
  const Tensor again = small.logical_and(in.visible.any(-1).any(0)).nonzero().flatten();
  for (int64_t n = 0; n < again.size(0); ++n) {
    const int64_t row = again[n].item<int64_t>();
    FeatureRows alone = in;
    alone.query = one_row(in.query, row);
    alone.visible = in.visible.narrow(1, row, 1);
    if (in.log_factor.defined()) alone.log_factor = in.log_factor.narrow(0, row, 1);
    rows.narrow(2, row, 1).copy_(divided(alone, undivided_rows(alone)));
  }
  return rows;
}

Tensor mapped_rows(const ops::AttentionInputs& inputs, const RowRange& range,
                   const ops::FeatureMapOptions& options, const ops::MapWeights& weights,
                   const ops::MapStatistics& statistics, const Tensor& visible, const Tensor& log_factor) {
  const ops::FeatureMapTraits traits = ops::feature_map_traits(options.map);
  ops::MapStatistics measured = statistics;
  if (traits.statistics && !measured.defined()) measured = ops::measure_statistics(inputs, options);
  const auto features = [&](const Tensor& x, bool query) {
    return ops::log_features(x.to(at::kDouble), query, options, weights, measured);
  };
  FeatureRows rows;
  rows.query = features(inputs.query.narrow(1, range.first, range.count), /*query=*/true);
  rows.keys = [&](int64_t begin, int64_t count) {
    return features(inputs.key.narrow(1, begin, count), /*query=*/false);
  };
  rows.visible = visible;
  rows.log_factor = log_factor;
  if (traits.exponential && traits.signed_features) rows.floor = ops::kTrigonometricFloor;
  rows.may_vanish = !traits.exponential;
  return feature_rows(rows);
}

Tensor rows_of_sequences(const ops::AttentionInputs& inputs, const RowRange& range,
                         const RowsOfSequence& of_sequence) {
  const at::NoGradGuard no_grad;
  const int64_t queries = inputs.query.defined() ? inputs.query.size(1) : inputs.value.size(1);
  const int64_t keys = inputs.value.size(1), heads = inputs.value.size(2), last = range.first + range.count;
  check(range.first >= 0 && range.count >= 0 && last <= queries,
        "rows {} to {} of attention were asked for, but there are {} queries", range.first, last - 1,
        queries);
  Tensor rows;
  ops::AttentionInputs one = inputs;
  one.cu_query.reset();
  one.cu_key.reset();
  if (!inputs.cu_query) {
    rows = of_sequence(one, range);
  } else {
    rows = at::zeros({1, heads, range.count, keys}, inputs.value.options().dtype(at::kDouble));
    const auto of_query = inputs.cu_query->accessor<int64_t, 1>();
    const auto of_key = (inputs.cu_key ? *inputs.cu_key : *inputs.cu_query).accessor<int64_t, 1>();
    for (int64_t n = 0; n + 1 < of_query.size(0); ++n) {
      const int64_t begin = std::max(of_query[n], range.first), end = std::min(of_query[n + 1], last);
      if (begin >= end) continue;
      const int64_t from = of_key[n], count = of_key[n + 1] - from;
      const auto queries_of = [&](const Tensor& x) {
        return x.defined() ? x.slice(1, of_query[n], of_query[n + 1]) : x;
      };
      one.query = queries_of(inputs.query);
      one.key = inputs.key.defined() ? inputs.key.narrow(1, from, count) : inputs.key;
      one.value = inputs.value.narrow(1, from, count);
      if (inputs.key_mask) one.key_mask = inputs.key_mask->narrow(1, from, count);
      if (inputs.query_mask) one.query_mask = queries_of(*inputs.query_mask);
      rows.narrow(2, begin - range.first, end - begin)
          .narrow(3, from, count)
          .copy_(of_sequence(one, {begin - of_query[n], end - begin}));
    }
  }
  if (!inputs.query_mask) return rows;
  const Tensor kept = inputs.query_mask->narrow(1, range.first, range.count);
  return rows.masked_fill(kept.logical_not().unsqueeze(1).unsqueeze(-1), 0);
}

}  // namespace performer::nn
