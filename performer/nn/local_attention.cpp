// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/local_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "performer/base/error.h"
#include "performer/nn/local_windows.h"
#include "performer/ops/dropout.h"

namespace performer::nn {

using at::Tensor;

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
  const LocalWindows windows(options, query.size(1));
  Tensor q = query, k = key;
  if (rates) {
    // In double: a float32 angle is already wrong by 0.03 at position 10^6.
    const Tensor positions = at::arange(windows.tokens, at::TensorOptions(at::kLong).device(query.device())),
                 precise = rates->to(at::kDouble);
    q = rotate_halves(q, positions, precise);
    k = rotate_halves(k, positions, precise);
  }
  q = windows.split(q, 0);
  k = windows.gather(windows.split(k, 0), 0);
  const Tensor v = windows.gather(windows.split(value, 0), 0);
  const Tensor scores = window_scores(q, k);
  const Tensor hidden = windows.hidden_keys(options.causal, mask, /*padding_is_hidden=*/true, query.device());
  // Weights of hidden keys are 0 already, except for queries that see no key at all, where all are equal.
  const Tensor weights = scores.masked_fill(hidden, most_negative(scores))
                             .softmax(-1)
                             .masked_fill(hidden, 0)
                             .to(v.scalar_type());
  Tensor out = windows.join(at::matmul(ops::dropout(weights, options.dropout), v.transpose(2, 3)));
  if (mask) out = out.masked_fill(mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
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
  const Tensor weights =
      scores.masked_fill(hidden, most_negative(scores)).softmax(-1).to(value.scalar_type());
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
  check<UsageError>(options.causal && options.dropout == 0,
                    "local attention continues sequences only when causal and without dropout");
  std::vector<Tensor> outputs;
  for (int64_t first = 0; first < query.size(1); first += options.window) {
    const int64_t count = std::min(options.window, query.size(1) - first);
    const auto part = [&](const Tensor& x) { return x.narrow(1, first, count); };
    outputs.push_back(continue_window(part(query), part(key), part(value), rates, options, state));
  }
  return outputs.empty() ? at::empty_like(value) : at::cat(outputs, 1);
}

}  // namespace performer::nn
