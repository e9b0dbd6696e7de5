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

class StateExchange {
 public:
  virtual ~StateExchange() = default;
  virtual int64_t rank() const = 0;
  // The states of all ranks in the order of their slices, this one's included: all of the same shape.
  // Differentiable: gradients go back to the rank that a state came from. `anchor` is a tensor that the
  // output of every rank depends on; it comes back in its place, so that all ranks take part in the backward
  // pass, also one which uses no other rank's state.
  virtual std::vector<ops::State> gather(const ops::State& own, at::Tensor& anchor) = 0;
};

// How the tokens of a batch are cut: slice s holds the tokens cuts[s] .. cuts[s + 1] - 1 of each row. The
// batch of a rank is its slice.
struct Slices {
  std::shared_ptr<StateExchange> exchange;
  std::vector<int64_t> cuts;
  std::vector<int64_t> bounds;  // packed: of the segments of all slices together, from 0; else empty
};

}  // namespace performer::nn
