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

bool is_exponential(const ops::PreparedMap& map) {
  return map.map.family == "exponential";
}

// With a decay of 0 only the own chunk counts (0^0 = 1).
bool sees_earlier_chunks(const WindowOptions& options) {
  return options.window != 1 && options.decay > 0;
}

bool keeps_own(const WindowOptions& options) {
  return options.window > 1 && sees_earlier_chunks(options);
}

// A state as it counts `distance` chunks later.
ops::State aged(const ops::State& state, int64_t distance, bool exponential, double decay) {
  if (decay == 1 || distance == 0) return state;
  if (exponential) {
    return {state.kv, state.key_sum, state.log_scale + static_cast<double>(distance) * std::log(decay)};
  }
  const double factor = std::pow(decay, static_cast<double>(distance));
  return {state.kv * factor, state.key_sum * factor, state.log_scale};
}

template <class Change>
ops::State each(const ops::State& state, const Change& change) {
  return {change(state.kv), change(state.key_sum), change(state.log_scale)};
}

// The states of N chunks of each of B sequences, as one batch of B N.
class ChunkStates {
 public:
  ChunkStates(ops::State states, int64_t count, bool exponential, double decay)
      : states_(std::move(states)), count_(count), exponential_(exponential), decay_(decay) {}

  // For each chunk the merged state of the `chunks` before it, 1 <= chunks < N. By doubling: a state of 2^k
  // chunks is merged from two of 2^(k - 1), which takes log2(chunks) steps.
  ops::State before(int64_t chunks) const {
    ops::State power = states_, result;  // `power` of `width` chunks, `result` of the last `done`
    for (int64_t width = 1, done = 0; done < chunks; width *= 2) {
      if ((chunks & width) != 0) {
        result = result.defined() ? ops::merge_states(result, moved(power, done)) : power;
        done += width;
      }
      if (done < chunks) power = ops::merge_states(power, moved(power, width));
    }
    return moved(result, 1);
  }

 private:
  // Each state `by` < N chunks later, and empty ones in the first `by` places of each sequence.
  ops::State moved(const ops::State& states, int64_t by) const {
    if (by == 0) return states;
    const auto shift = [&](const Tensor& x, double nothing) {
      const Tensor apart = x.unflatten(0, {-1, count_});
      return at::cat({at::full_like(apart.narrow(1, 0, by), nothing), apart.narrow(1, 0, count_ - by)}, 1)
          .flatten(0, 1);
    };
    const ops::State old = aged(states, by, exponential_, decay_);
    return {shift(old.kv, 0), shift(old.key_sum, 0),
            shift(old.log_scale, exponential_ ? kernels::kEmptyLogScale : 0)};
  }

  ops::State states_;
  int64_t count_;
  bool exponential_;
  double decay_;
};

// x [B, T, ...] -> [B N, C, ...], the last chunk filled up with zeros.
Tensor as_chunks(const Tensor& x, int64_t chunk) {
  std::vector<int64_t> missing = x.sizes().vec();
  missing[1] = (chunk - x.size(1) % chunk) % chunk;
  const Tensor whole = missing[1] == 0 ? x : at::cat({x, at::zeros(missing, x.options())}, 1);
  return whole.unflatten(1, {-1, chunk}).flatten(0, 1);
}

// Each chunk as a sequence of its own; tokens that fill up the last one are masked.
ops::AttentionInputs cut_into_chunks(const ops::AttentionInputs& inputs, int64_t chunk) {
  ops::AttentionInputs chunks;
  chunks.query = as_chunks(inputs.query, chunk);
  chunks.key = as_chunks(inputs.key, chunk);
  chunks.value = as_chunks(inputs.value, chunk);
  chunks.causal = true;
  if (inputs.key_mask) {
    chunks.key_mask = as_chunks(*inputs.key_mask, chunk);
  } else if (inputs.key.size(1) % chunk != 0) {
    const auto type = inputs.key.options().dtype(at::kBool);
    chunks.key_mask = as_chunks(at::ones({inputs.key.size(0), inputs.key.size(1)}, type), chunk);
  }
  if (inputs.query_mask) chunks.query_mask = as_chunks(*inputs.query_mask, chunk);
  return chunks;
}

// Begins a chunk: what its first token sees of the chunks before.
void begin_chunk(WindowState& state, bool exponential, const WindowOptions& options) {
  if (options.window == 0 && sees_earlier_chunks(options)) {
    state.seen = aged(state.seen, 1, exponential, options.decay);
    return;
  }
  state.seen = {};
  if (!keeps_own(options)) return;
  state.earlier.push_back(std::exchange(state.own, ops::State()));
  if (static_cast<int64_t>(state.earlier.size()) >= options.window) {
    state.earlier.erase(state.earlier.begin());
  }
  for (size_t i = 0; i < state.earlier.size(); ++i) {
    const auto distance = static_cast<int64_t>(state.earlier.size() - i);
    const ops::State old = aged(state.earlier[i], distance, exponential, options.decay);
    // Steps change `seen` in place, so that the first term must be a copy.
    state.seen = state.seen.defined() ? ops::merge_states(state.seen, old)
                                      : each(old, [](const Tensor& x) { return x.clone(); });
  }
}

}  // namespace

Tensor windowed_attention(const ops::AttentionInputs& inputs, const ops::PreparedMap& map,
                          const WindowOptions& options) {
  const int64_t batch = inputs.query.size(0), tokens = inputs.query.size(1);
  if (batch == 0 || tokens == 0) return at::empty_like(inputs.value);
  ops::AttentionInputs chunks = cut_into_chunks(inputs, options.chunk);
  const int64_t count = chunks.query.size(0) / batch;
  if (count > 1 && sees_earlier_chunks(options)) {
    ops::KeyInputs keys;
    keys.key = chunks.key;
    keys.value = chunks.value;
    keys.key_mask = chunks.key_mask;
    const ChunkStates states(ops::key_state(keys, map), count, is_exponential(map), options.decay);
    chunks.initial = states.before(options.window == 0 ? count - 1 : std::min(options.window, count) - 1);
  }
  const Tensor out = std::get<0>(ops::mapped_attention(chunks, map));
  return out.unflatten(0, {batch, count}).flatten(1, 2).narrow(1, 0, tokens);
}

Tensor windowed_step(const Tensor& query, const Tensor& key, const Tensor& value, const ops::PreparedMap& map,
                     const WindowOptions& options, WindowState& state) {
  if (state.tokens > 0 && state.tokens % options.chunk == 0) {
    begin_chunk(state, is_exponential(map), options);
  }
  ++state.tokens;
  if (keeps_own(options)) ops::mapped_step(query, key, value, state.own, map);
  return ops::mapped_step(query, key, value, state.seen, map);
}

WindowState WindowState::select(const Tensor& rows) const {
  const auto selected = [&](const ops::State& state) {
    if (!state.defined()) return ops::State();
    return each(state, [&](const Tensor& x) { return x.index_select(0, rows); });
  };
  WindowState kept;
  kept.seen = selected(seen);
  kept.own = selected(own);
  for (const ops::State& state : earlier) kept.earlier.push_back(selected(state));
  kept.tokens = tokens;
  return kept;
}

}  // namespace performer::nn
