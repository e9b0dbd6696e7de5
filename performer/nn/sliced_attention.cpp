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

// Which slices have a part in the segments at the ends of a slice.
Reach reach_of_segments(const Slices& slices) {
  const int64_t ranks = std::ssize(slices.cuts) - 1;
  const auto segment = [&](int64_t token) {
    return std::upper_bound(slices.bounds.begin(), slices.bounds.end(), token) - slices.bounds.begin() - 1;
  };
  const auto first = [&](int64_t rank) { return segment(slices.cuts[static_cast<size_t>(rank)]); };
  const auto last = [&](int64_t rank) { return segment(slices.cuts[static_cast<size_t>(rank) + 1] - 1); };
  Reach reach;
  reach.earliest.resize(static_cast<size_t>(ranks));
  reach.latest.resize(static_cast<size_t>(ranks));
  for (int64_t rank = 0; rank < ranks; ++rank) {
    int64_t& earliest = reach.earliest[static_cast<size_t>(rank)] = rank;
    if (rank == 0 || last(rank - 1) != first(rank)) continue;
    const bool through = first(rank - 1) == last(rank - 1);
    earliest = through ? reach.earliest[static_cast<size_t>(rank) - 1] : rank - 1;
  }
  for (int64_t rank = ranks - 1; rank >= 0; --rank) {
    int64_t& latest = reach.latest[static_cast<size_t>(rank)] = rank;
    if (rank == ranks - 1 || first(rank + 1) != last(rank)) continue;
    const bool through = first(rank + 1) == last(rank + 1);
    latest = through ? reach.latest[static_cast<size_t>(rank) + 1] : rank + 1;
  }
  return reach;
}

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
  const ops::State before =
      slices.exchange->exchange(state_of(kind, last), nullptr, reach_of_segments(slices), inputs.query)
          .before;
  if (!before.defined()) return attend(kind, inputs, {});
  std::vector<at::Tensor> outputs = {attend(kind, part_of(inputs, 0, ends.head), before)};
  if (ends.head < ends.tokens) {
    ops::AttentionInputs rest = part_of(inputs, ends.head, ends.tokens - ends.head);
    rest.cu_query = inputs.cu_query->narrow(0, 1, inputs.cu_query->size(0) - 1) - ends.head;
    outputs.push_back(attend(kind, rest, {}));
  }
  return at::cat(outputs, 1);
}

// The states of each slice's first and of its last segment are exchanged.
at::Tensor attend_packed_both_ways(Attention& kind, ops::AttentionInputs inputs, const Slices& slices) {
  const Ends ends(*inputs.cu_query);
  const int64_t tail_tokens = ends.tokens - ends.tail;
  const ops::State head = state_of(kind, part_of(inputs, 0, ends.head)),
                   tail = ends.one() ? head : state_of(kind, part_of(inputs, ends.tail, tail_tokens));
  const Neighbours others = slices.exchange->exchange(tail, &head, reach_of_segments(slices), inputs.query);
  const ops::State first = merged(others.before, head);
  std::vector<at::Tensor> outputs = {
      read(kind, part_of(inputs, 0, ends.head), ends.one() ? merged(first, others.behind) : first)};
  if (ends.inner_count() > 0) outputs.push_back(std::get<0>(kind.continue_from(inner_of(inputs, ends))));
  if (!ends.one())
    outputs.push_back(read(kind, part_of(inputs, ends.tail, tail_tokens), merged(tail, others.behind)));
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
  const int64_t ranks = std::ssize(slices.cuts) - 1;
  Reach reach;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    reach.earliest.push_back(0);
    reach.latest.push_back(causal ? rank : ranks - 1);
  }
  const Neighbours others = slices.exchange->exchange(own, causal ? nullptr : &own, reach, anchor);
  return causal ? others.before : merged(merged(others.before, own), others.behind);
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
