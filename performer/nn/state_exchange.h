// SPDX-License-Identifier: Apache-2.0
// Sequences whose tokens lie in slices on several ranks: what linear attention passes on is a state for each
// head, whatever the length.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "performer/ops/favor.h"

namespace performer::nn {

// Whose states each rank wants: rank r those of the ranks earliest[r] .. r - 1 before it and r + 1 ..
// latest[r] behind it. Whoever looks further than to its neighbour looks as far as that one does: earliest[r]
// is r, r - 1 or earliest[r - 1], and latest[r] is r, r + 1 or latest[r + 1].
struct Reach {
  std::vector<int64_t> earliest, latest;
};

// Merged states of ranks before and behind; undefined where none is wanted.
struct Neighbours {
  ops::State before, behind;
};

// The state of the tokens of both. One that is undefined has none.
inline ops::State merged(const ops::State& a, const ops::State& b) {
  if (!a.defined() || !b.defined()) return a.defined() ? a : b;
  return ops::merge_states(a, b);
}

class StateExchange {
 public:
  virtual ~StateExchange() = default;
  virtual int64_t rank() const = 0;
  // Each rank gives a state for the ranks behind it, `last`, and one for those before it, `first`: null where
  // nobody looks ahead, &last where it is the same on every rank. All call it together, with the same reach
  // and states of the same shape. Differentiable: gradients go back to the ranks that states came from.
  // `anchor` is a tensor that the output of every rank depends on; it comes back in its place, so that all
  // ranks take part in the backward pass, also one which uses no other rank's state.
  virtual Neighbours exchange(const ops::State& last, const ops::State* first, const Reach& reach,
                              at::Tensor& anchor) = 0;
};

// How the tokens of a batch are cut: slice s holds the tokens cuts[s] .. cuts[s + 1] - 1 of each row. The
// batch of a rank is its slice.
struct Slices {
  std::shared_ptr<StateExchange> exchange;
  std::vector<int64_t> cuts;
  std::vector<int64_t> bounds;  // packed: of the segments of all slices together, from 0; else empty
};

}  // namespace performer::nn
