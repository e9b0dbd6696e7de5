// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/sliced_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace performer::nn {
namespace {

std::optional<at::Tensor> tokens_of(const std::optional<at::Tensor>& mask, int64_t begin, int64_t count) {
  return mask ? std::optional<at::Tensor>(mask->narrow(1, begin, count)) : std::nullopt;
}

// The tokens begin .. begin + count - 1 as rows of their own, without segments.
ops::AttentionInputs part_of(const ops::AttentionInputs& inputs, int64_t begin, int64_t count) {
  ops::AttentionInputs part = inputs;
  part.query = inputs.query.narrow(1, begin, count);
  part.key = inputs.key.narrow(1, begin, count);
  part.value = inputs.value.narrow(1, begin, count);
  part.key_mask = tokens_of(inputs.key_mask, begin, count);
  part.query_mask = tokens_of(inputs.query_mask, begin, count);
  part.cu_query = part.cu_key = std::nullopt;
  return part;
}

ops::State state_of(Attention& kind, const ops::AttentionInputs& inputs) {
  ops::KeyInputs keys;
  keys.key = inputs.key;
  keys.value = inputs.value;
  keys.key_mask = inputs.key_mask;
  return kind.key_state(keys);
}

ops::State merged(const ops::State& a, const ops::State& b) {
  return a.defined() ? ops::merge_states(a, b) : b;
}

// Queries, masked or not, that see the tokens of a state and nothing else.
at::Tensor read(Attention& kind, ops::AttentionInputs inputs, const ops::State& state) {
  inputs.key = inputs.key.narrow(1, 0, 0);
  inputs.value = inputs.value.narrow(1, 0, 0);
  inputs.key_mask = std::nullopt;
  inputs.causal = false;
  inputs.initial = state;
  return std::get<0>(kind.continue_from(inputs));
}

at::Tensor attend(Attention& kind, ops::AttentionInputs inputs, const ops::State& before) {
  if (before.defined()) inputs.initial = before;
  return std::get<0>(kind.continue_from(inputs));
}

at::Tensor attend_rows(Attention& kind, ops::AttentionInputs inputs, const Slices& slices) {
  const ops::State seen = state_seen(slices, state_of(kind, inputs), inputs.causal, inputs.query);
  return inputs.causal ? attend(kind, inputs, seen) : read(kind, inputs, seen);
}

// Segments of a packed batch by the slices that they lie in.
class Places {
 public:
  explicit Places(const Slices& slices) : slices_(slices) {}
  int64_t begin(int64_t slice) const { return slices_.cuts[static_cast<size_t>(slice)]; }
  int64_t end(int64_t slice) const { return slices_.cuts[static_cast<size_t>(slice) + 1]; }
  // The segments of a slice's first and last token.
  int64_t first(int64_t slice) const { return segment(begin(slice)); }
  int64_t last(int64_t slice) const { return segment(end(slice) - 1); }

 private:
  int64_t segment(int64_t token) const {
    return std::upper_bound(slices_.bounds.begin(), slices_.bounds.end(), token) - slices_.bounds.begin() - 1;
  }
  const Slices& slices_;
};

// The segments of a slice: from the first and the last one states go to other ranks or come from there.
struct Ends {
  int64_t head = 0, tail = 0, tokens = 0;  // the first segment ends at `head`, the last begins at `tail`
  at::Tensor inner;                        // bounds of the segments between them, from 0

  explicit Ends(const at::Tensor& cu) {
    const int64_t* bounds = cu.const_data_ptr<int64_t>();
    const int64_t segments = cu.size(0) - 1;
    tokens = bounds[segments];
    head = bounds[1];
    tail = segments > 1 ? bounds[segments - 1] : 0;
    if (segments > 2) inner = cu.narrow(0, 1, segments - 1) - head;
  }
  bool one() const { return tail == 0; }
  int64_t inner_begin() const { return head; }
  int64_t inner_count() const { return inner.defined() ? tail - head : 0; }
};

ops::AttentionInputs inner_of(const ops::AttentionInputs& inputs, const Ends& ends) {
  ops::AttentionInputs inner = part_of(inputs, ends.inner_begin(), ends.inner_count());
  inner.cu_query = ends.inner;
  return inner;
}

// A state goes on from the last segment of each slice.
at::Tensor attend_packed_causally(Attention& kind, ops::AttentionInputs inputs, const Slices& slices) {
  const Ends ends(*inputs.cu_query);
  const ops::AttentionInputs last = part_of(inputs, ends.tail, ends.tokens - ends.tail);
  const std::vector<ops::State> states = slices.exchange->gather(state_of(kind, last), inputs.query);
  const Places places(slices);
  const int64_t rank = slices.exchange->rank();
  ops::State before;
  for (int64_t other = 0; other < rank; ++other) {
    if (places.last(other) != places.first(rank)) continue;
    before = merged(before, states[static_cast<size_t>(other)]);
  }
  if (!before.defined()) return attend(kind, inputs, {});
  std::vector<at::Tensor> outputs = {attend(kind, part_of(inputs, 0, ends.head), before)};
  if (ends.head < ends.tokens) {
    ops::AttentionInputs rest = part_of(inputs, ends.head, ends.tokens - ends.head);
    rest.cu_query = inputs.cu_query->narrow(0, 1, inputs.cu_query->size(0) - 1) - ends.head;
    outputs.push_back(attend(kind, rest, {}));
  }
  return at::cat(outputs, 1);
}

// Two states of each slice are exchanged: of its first and of its last segment.
at::Tensor attend_packed_both_ways(Attention& kind, ops::AttentionInputs inputs, const Slices& slices) {
  const Ends ends(*inputs.cu_query);
  const int64_t tail_tokens = ends.one() ? 0 : ends.tokens - ends.tail;
  const ops::State head = state_of(kind, part_of(inputs, 0, ends.head)),
                   tail = state_of(kind, part_of(inputs, ends.tokens - tail_tokens, tail_tokens));
  const auto both = [](const at::Tensor& a, const at::Tensor& b) { return at::cat({a, b}); };
  const std::vector<ops::State> states = slices.exchange->gather(
      {both(head.kv, tail.kv), both(head.key_sum, tail.key_sum), both(head.log_scale, tail.log_scale)},
      inputs.query);
  const Places places(slices);
  const int64_t rank = slices.exchange->rank();
  const auto of_segment = [&](int64_t segment) {
    ops::State all;
    for (int64_t other = 0; other < std::ssize(states); ++other) {
      const ops::State& pair = states[static_cast<size_t>(other)];
      const auto take = [&](int64_t which) {
        all = merged(all, {pair.kv.narrow(0, which, 1), pair.key_sum.narrow(0, which, 1),
                           pair.log_scale.narrow(0, which, 1)});
      };
      if (places.first(other) == segment)
        take(0);
      else if (places.last(other) == segment)
        take(1);
    }
    return all;
  };
  std::vector<at::Tensor> outputs = {
      read(kind, part_of(inputs, 0, ends.head), of_segment(places.first(rank)))};
  if (ends.inner_count() > 0) outputs.push_back(std::get<0>(kind.continue_from(inner_of(inputs, ends))));
  if (!ends.one()) {
    outputs.push_back(read(kind, part_of(inputs, ends.tail, tail_tokens), of_segment(places.last(rank))));
  }
  return at::cat(outputs, 1);
}

}  // namespace

ops::State add_keys(Attention& kind, const at::Tensor& key, const at::Tensor& value,
                    const ops::State& before) {
  ops::KeyInputs keys;
  keys.key = key;
  keys.value = value;
  // Not added token by token to the sums of all before, which in a long slice would lose digits.
  return merged(before, kind.key_state(keys));
}

ops::State state_seen(const Slices& slices, const ops::State& own, bool causal, at::Tensor& anchor) {
  const std::vector<ops::State> states = slices.exchange->gather(own, anchor);
  const int64_t rank = slices.exchange->rank();
  ops::State seen;
  for (int64_t other = 0; other < std::ssize(states); ++other) {
    if (!causal || other < rank) seen = merged(seen, states[static_cast<size_t>(other)]);
  }
  return seen;
}

at::Tensor read_state(Attention& kind, const at::Tensor& query, const ops::State& state) {
  ops::AttentionInputs inputs;
  inputs.query = inputs.key = query;
  inputs.value = at::empty({query.size(0), 0, query.size(2), state.kv.size(3)}, query.options());
  return read(kind, inputs, state);
}

at::Tensor attend_sliced(Attention& kind, const ops::AttentionInputs& inputs, const Slices& slices) {
  if (!inputs.cu_query) return attend_rows(kind, inputs, slices);
  return inputs.causal ? attend_packed_causally(kind, inputs, slices)
                       : attend_packed_both_ways(kind, inputs, slices);
}

}  // namespace performer::nn
