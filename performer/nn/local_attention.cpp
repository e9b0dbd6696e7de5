// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/local_attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "performer/base/error.h"
#include "performer/ops/dropout.h"

namespace performer::nn {
namespace {

using at::Tensor;

// Sizes of one call: N windows of W tokens, each seeing `group` = (back + 1 + forward) W keys.
struct LocalWindows {
  int64_t window, back, forward, tokens, count, group;

  LocalWindows(const LocalAttentionOptions& options, int64_t length)
      : window(options.window),
        back(options.look_backward),
        forward(options.look_forward >= 0 ? options.look_forward
                : options.causal          ? 0
                                          : 1),
        tokens(length),
        count((length + window - 1) / window),
        group((back + 1 + forward) * window) {}

  // x [B, T, ...] -> [B, N, W, ...], the last window filled up with `value`.
  Tensor split(const Tensor& x, double value) const {
    std::vector<int64_t> missing = x.sizes().vec();
    missing[1] = count * window - tokens;
    const Tensor whole = missing[1] == 0 ? x : at::cat({x, at::full(missing, value, x.options())}, 1);
    return whole.unflatten(1, {count, window});
  }

  // [B, N, W, ...] -> [B, N, group, ...]: each window with its neighbours, `value` beyond the ends.
  Tensor gather(const Tensor& windows, double value) const {
    const auto beyond = [&](int64_t number) {
      std::vector<int64_t> shape = windows.sizes().vec();
      shape[1] = number;
      return at::full(shape, value, windows.options());
    };
    const Tensor extended = at::cat({beyond(back), windows, beyond(forward)}, 1);
    std::vector<Tensor> neighbours;
    for (int64_t shift = 0; shift <= back + forward; ++shift) {
      neighbours.push_back(extended.narrow(1, shift, count));
    }
    return at::cat(neighbours, 2);
  }

  // Positions of keys, -1 beyond the ends: [1, N, group].
  Tensor key_positions(at::Device device) const {
    return gather(
        at::arange(count * window, at::TensorOptions(at::kLong).device(device)).view({1, count, window}), -1);
  }
};

// x [..., P, H, D] turned by angle[p] = positions[p] * rates, half-split.
Tensor rotate_halves(const Tensor& x, const Tensor& positions, const Tensor& rates) {
  const Tensor angles = (positions.to(rates.scalar_type()).unsqueeze(-1) * rates).unsqueeze(-2);
  const Tensor cosine = angles.cos().to(x.scalar_type()), sine = angles.sin().to(x.scalar_type());
  const int64_t half = x.size(-1) / 2;
  const Tensor first = x.narrow(-1, 0, half), second = x.narrow(-1, half, half);
  return at::cat({first * cosine - second * sine, second * cosine + first * sine}, -1);
}

// Scores [B, N, H, W, group] of grouped queries [B, N, W, H, D] and keys [B, N, group, H, D].
Tensor window_scores(const Tensor& query, const Tensor& key) {
  const double scale = 1 / std::sqrt(static_cast<double>(query.size(-1)));
  return at::matmul(query.transpose(2, 3) * scale, key.permute({0, 1, 3, 4, 2}));
}

double most_negative(const Tensor& scores) {
  switch (scores.scalar_type()) {
    case at::kDouble:
      return std::numeric_limits<double>::lowest();
    case at::kFloat:
      return std::numeric_limits<float>::lowest();
    case at::kBFloat16:
      return static_cast<double>(std::numeric_limits<c10::BFloat16>::lowest());
    default:
      return static_cast<double>(std::numeric_limits<c10::Half>::lowest());
  }
}

// Weighted values [B, N, H, W, E] as rows [B, T, H, E].
Tensor join_windows(const Tensor& windows, const LocalWindows& sizes) {
  return windows.transpose(2, 3).flatten(1, 2).narrow(1, 0, sizes.tokens);
}

void check_local_arguments(const Tensor& query, const Tensor& key, const Tensor& value,
                           const std::optional<Tensor>& mask, const std::optional<Tensor>& rates,
                           const LocalAttentionOptions& options) {
  check<UsageError>(options.window >= 1, "the window of local attention must be at least 1, found {}",
                    options.window);
  check<UsageError>(options.look_backward >= 0 && options.look_forward >= -1 &&
                        !(options.causal && options.look_forward > 0),
                    "local attention cannot look {} windows back and {} forward{}", options.look_backward,
                    options.look_forward, options.causal ? " when causal" : "");
  check<UsageError>(
      query.dim() == 4 && key.sizes().equals(query.sizes()) && value.dim() == 4 &&
          value.sizes().slice(0, 3).equals(key.sizes().slice(0, 3)),
      "local attention needs as many keys and values as queries, found query [{}], key [{}] and "
      "value [{}]",
      fmt::join(query.sizes(), ", "), fmt::join(key.sizes(), ", "), fmt::join(value.sizes(), ", "));
  check<UsageError>(!mask || (mask->scalar_type() == at::kBool && mask->dim() == 2 &&
                              mask->size(0) == query.size(0) && mask->size(1) == query.size(1)),
                    "the mask of local attention must be bool [{}, {}]", query.size(0), query.size(1));
  check<UsageError>(!rates || (rates->dim() == 1 && 2 * rates->size(0) == query.size(3)),
                    "rotary rates must be a vector of half the head size {}", query.size(3));
}

// What a query must not see: bool, broadcast to [B, N, 1, W, group].
Tensor hidden_keys(const LocalWindows& sizes, bool causal, const std::optional<Tensor>& mask,
                   bool padding_is_hidden, at::Device device) {
  const Tensor keys = sizes.key_positions(device).view({1, sizes.count, 1, 1, sizes.group});
  Tensor hidden = keys.lt(0);
  if (padding_is_hidden) hidden = hidden.logical_or(keys.ge(sizes.tokens));
  if (causal) {
    const Tensor queries =
        at::arange(sizes.count * sizes.window, keys.options()).view({1, sizes.count, 1, sizes.window, 1});
    hidden = hidden.logical_or(keys.gt(queries));
  }
  if (mask) {
    const Tensor kept = sizes.gather(sizes.split(*mask, 0), 0);  // [B, N, group]
    hidden = hidden.logical_or(kept.logical_not().unsqueeze(2).unsqueeze(2));
  }
  return hidden;
}

}  // namespace

Tensor local_rotary_rates(int64_t head_size) {
  check<UsageError>(head_size % 2 == 0, "rotary positions need an even head size, found {}", head_size);
  const Tensor exponents = at::arange(0, head_size, 2, at::kFloat) / static_cast<double>(head_size);
  return at::pow(10000.0, exponents).reciprocal();
}

Tensor local_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                       const std::optional<Tensor>& mask, const std::optional<Tensor>& rates,
                       const LocalAttentionOptions& options) {
  check_local_arguments(query, key, value, mask, rates, options);
  if (query.size(1) == 0) return at::empty_like(value);
  const LocalWindows sizes(options, query.size(1));
  const auto index = at::TensorOptions(at::kLong).device(query.device());
  const double fill = options.compatible ? -1 : 0;

  Tensor q = query, k = key;
  if (rates && !options.compatible) {
    // In double: a float32 angle is already wrong by 0.03 at position 10^6.
    const Tensor positions = at::arange(sizes.tokens, index), precise = rates->to(at::kDouble);
    q = rotate_halves(q, positions, precise);
    k = rotate_halves(k, positions, precise);
  }
  q = sizes.split(q, 0);
  k = sizes.gather(sizes.split(k, 0), fill);
  const Tensor v = sizes.gather(sizes.split(value, 0), fill);
  if (rates && options.compatible) {
    const Tensor positions = at::arange(sizes.group, index);
    q = rotate_halves(q, positions.narrow(0, sizes.group - sizes.window, sizes.window), *rates);
    k = rotate_halves(k, positions, *rates);
  }

  const Tensor scores = window_scores(q, k);
  const Tensor hidden =
      hidden_keys(sizes, options.causal, mask, /*padding_is_hidden=*/!options.compatible, query.device());
  Tensor weights = scores.masked_fill(hidden, most_negative(scores)).softmax(-1);
  // Hidden weights are 0 already but for queries that see nothing at all, where all are equal.
  if (!options.compatible) weights = weights.masked_fill(hidden, 0);
  Tensor out = join_windows(at::matmul(ops::dropout(weights, options.dropout), v.transpose(2, 3)), sizes);
  if (mask && !options.compatible) out = out.masked_fill(mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
  return out;
}

namespace {

// At most one window of new tokens.
Tensor continue_window(const Tensor& query, const Tensor& key, const Tensor& value,
                       const std::optional<Tensor>& rates, const LocalAttentionOptions& options,
                       LocalAttentionState& state) {
  const int64_t count = query.size(1), window = options.window;
  const auto index = at::TensorOptions(at::kLong).device(query.device());
  const Tensor positions = at::arange(state.length, state.length + count, index);
  Tensor q = query, k = key;
  if (rates) {
    q = rotate_halves(q, positions, rates->to(at::kDouble));
    k = rotate_halves(k, positions, rates->to(at::kDouble));
  }
  state.key = state.key.defined() ? at::cat({state.key, k}, 1) : k;
  state.value = state.value.defined() ? at::cat({state.value, value}, 1) : value;
  state.length += count;
  const Tensor keys = at::arange(state.length - state.key.size(1), state.length, index);
  const Tensor from = positions.div(window, "floor").sub(options.look_backward).mul(window).unsqueeze(1);
  const Tensor hidden = keys.gt(positions.unsqueeze(1)).logical_or(keys.lt(from));  // [T, S]
  const Tensor scores = window_scores(q.unsqueeze(1), state.key.unsqueeze(1)).squeeze(1);
  const Tensor weights = scores.masked_fill(hidden, most_negative(scores)).softmax(-1);
  const Tensor out = at::matmul(weights, state.value.transpose(1, 2)).transpose(1, 2);
  // The first key that the next token sees.
  const int64_t first = std::max<int64_t>(0, (state.length / window - options.look_backward) * window);
  const int64_t kept = std::min(state.length - first, state.key.size(1));
  state.key = state.key.narrow(1, state.key.size(1) - kept, kept);
  state.value = state.value.narrow(1, state.value.size(1) - kept, kept);
  return out;
}

}  // namespace

Tensor continue_local_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                const std::optional<Tensor>& rates, const LocalAttentionOptions& options,
                                LocalAttentionState& state) {
  check_local_arguments(query, key, value, {}, rates, options);
  check<UsageError>(
      options.causal && !options.compatible && options.dropout == 0,
      "local attention continues sequences only when causal, without dropout and not compatible");
  std::vector<Tensor> outputs;
  for (int64_t first = 0; first < query.size(1); first += options.window) {
    const int64_t count = std::min(options.window, query.size(1) - first);
    const auto part = [&](const Tensor& x) { return x.narrow(1, first, count); };
    outputs.push_back(continue_window(part(query), part(key), part(value), rates, options, state));
  }
  return outputs.empty() ? at::empty_like(value) : at::cat(outputs, 1);
}

}  // namespace performer::nn
