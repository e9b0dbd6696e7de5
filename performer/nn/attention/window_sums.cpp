// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/attention/window_sums.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "performer/kernels/favor.h"

namespace performer::nn {
namespace {

using at::Tensor;

// Sums a and b of the same shape; a scale that both have takes the larger of theirs.
ops::State merged(const ops::State& a, const ops::State& b) {
  const Tensor scale = at::maximum(a.log_scale, b.log_scale);
  const Tensor of_a = (a.log_scale - scale).exp(), of_b = (b.log_scale - scale).exp();
  return {a.kv * of_a.unsqueeze(-1) + b.kv * of_b.unsqueeze(-1), a.key_sum * of_a + b.key_sum * of_b, scale};
}

// The sums as they count `distance` chunks later.
ops::State aged(const ops::State& sums, int64_t distance, bool exponential, double decay) {
  if (decay == 1 || distance == 0) return sums;
  if (exponential) {
    return {sums.kv, sums.key_sum, sums.log_scale + static_cast<double>(distance) * std::log(decay)};
  }
  const double factor = std::pow(decay, static_cast<double>(distance));
  return {sums.kv * factor, sums.key_sum * factor, sums.log_scale};
}

// Of sums [B, N, ...] of N chunks.
class ChunkSums {
 public:
  ChunkSums(ops::State sums, bool exponential, double decay)
      : sums_(std::move(sums)), exponential_(exponential), decay_(decay) {}

  // For each chunk the sums of the `count` chunks before it, 1 <= count < N. By doubling: sums over 2^k chunks
  // are two sums over 2^(k - 1), so log2(count) steps.
  ops::State before(int64_t count) const {
    ops::State power = sums_, result;  // `power` over `width` chunks, `result` over the last `done`
    for (int64_t width = 1, done = 0; done < count; width *= 2) {
      if ((count & width) != 0) {
        result = result.defined() ? merged(result, moved(power, done)) : power;
        done += width;
      }
      if (done < count) power = merged(power, moved(power, width));
    }
    return moved(result, 1);
  }

 private:
  // Each chunk's sums `by` < N chunks later, and sums of nothing in the first `by` places.
  ops::State moved(const ops::State& sums, int64_t by) const {
    if (by == 0) return sums;
    const double nothing = exponential_ ? kernels::kEmptyLogScale : 0;
    const auto shift = [&](const Tensor& x, double fill) {
      return at::cat({at::full_like(x.narrow(1, 0, by), fill), x.narrow(1, 0, x.size(1) - by)}, 1);
    };
    const ops::State old = aged(sums, by, exponential_, decay_);
    return {shift(old.kv, 0), shift(old.key_sum, 0), shift(old.log_scale, nothing)};
  }

  ops::State sums_;
  bool exponential_;
  double decay_;
};

// x [B, T, ...] -> [B N, C, ...], the last chunk filled up with `fill`.
Tensor as_chunks(const Tensor& x, int64_t chunk, double fill = 0) {
  std::vector<int64_t> missing = x.sizes().vec();
  missing[1] = (chunk - x.size(1) % chunk) % chunk;
  const Tensor whole = missing[1] == 0 ? x : at::cat({x, at::full(missing, fill, x.options())}, 1);
  return whole.unflatten(1, {-1, chunk}).flatten(0, 1);
}

ops::State copied(const ops::State& state) {
  return {state.kv.clone(), state.key_sum.clone(), state.log_scale.clone()};
}

ops::State selected(const ops::State& state, const Tensor& rows) {
  if (!state.defined()) return {};
  return {state.kv.index_select(0, rows), state.key_sum.index_select(0, rows),
          state.log_scale.index_select(0, rows)};
}

}  // namespace

Tensor windowed_attention(const StatefulAttention& attend, bool exponential,
                          const ops::AttentionInputs& inputs, const WindowOptions& options) {
  const int64_t batch = inputs.query.size(0), tokens = inputs.query.size(1), chunk = options.chunk;
  if (tokens == 0) return at::empty_like(inputs.value);
  ops::AttentionInputs chunks;
  chunks.query = as_chunks(inputs.query, chunk);
  chunks.key = as_chunks(inputs.key, chunk);
  chunks.value = as_chunks(inputs.value, chunk);
  chunks.causal = true;
  if (inputs.key_mask) {
    chunks.key_mask = as_chunks(*inputs.key_mask, chunk);
  } else if (tokens % chunk != 0) {
    const Tensor all = at::ones({batch, tokens}, inputs.query.options().dtype(at::kBool));
    chunks.key_mask = as_chunks(all, chunk);
  }
  if (inputs.query_mask) chunks.query_mask = as_chunks(*inputs.query_mask, chunk);
  const int64_t count = chunks.query.size(0) / std::max<int64_t>(batch, 1);
  if (count > 1 && options.sees_earlier_chunks()) {
    ops::AttentionInputs keys = chunks;  // no queries: only the sums of each chunk are wanted
    keys.query = chunks.query.narrow(1, 0, 0);
    keys.query_mask = {};
    keys.causal = false;
    keys.return_state = true;
    const ops::State sums = std::get<1>(attend(keys));
    const auto apart = [&](const Tensor& x) { return x.unflatten(0, {batch, count}); };
    const ChunkSums all({apart(sums.kv), apart(sums.key_sum), apart(sums.log_scale)}, exponential,
                        options.decay);
    const ops::State before =
        all.before(options.window == 0 ? count - 1 : std::min(options.window, count) - 1);
    chunks.initial =
        ops::State{before.kv.flatten(0, 1), before.key_sum.flatten(0, 1), before.log_scale.flatten(0, 1)};
  }
  const Tensor out = std::get<0>(attend(chunks));
  return out.unflatten(0, {batch, count}).flatten(1, 2).narrow(1, 0, tokens);
}

bool keeps_own(const WindowOptions& options) {
  return options.window > 1 && options.sees_earlier_chunks();
}

void begin_token(WindowState& state, bool exponential, const WindowOptions& options) {
  const bool first_of_chunk = state.tokens % options.chunk == 0;
  ++state.tokens;
  if (!first_of_chunk || state.tokens == 1) return;
  if (options.window == 0 && options.sees_earlier_chunks()) {
    state.seen = aged(state.seen, 1, exponential, options.decay);
    return;
  }
  state.seen = {};
  if (!keeps_own(options)) return;
  state.earlier.push_back(std::exchange(state.own, ops::State()));
  if (static_cast<int64_t>(state.earlier.size()) >= options.window) state.earlier.erase(state.earlier.begin());
  // A token changes `seen` in place, so the first term is a copy.
  state.seen = copied(aged(state.earlier.back(), 1, exponential, options.decay));
  for (size_t distance = 2; distance <= state.earlier.size(); ++distance) {
    const ops::State& older = state.earlier[state.earlier.size() - distance];
    state.seen =
        merged(state.seen, aged(older, static_cast<int64_t>(distance), exponential, options.decay));
  }
}

WindowState WindowState::select(const Tensor& rows) const {
  WindowState kept;
  kept.seen = selected(seen, rows);
  kept.own = selected(own, rows);
  for (const ops::State& state : earlier) kept.earlier.push_back(selected(state, rows));
  kept.tokens = tokens;
  return kept;
}

}  // namespace performer::nn
