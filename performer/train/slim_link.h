// SPDX-License-Identifier: Apache-2.0
// How the chunks of SLiM pass on what they leave: the states of their layers to the chunk after, and the
// gradients of these states to the chunk before.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

#include "performer/distributed/communicator.h"
#include "performer/ops/favor.h"

namespace performer::train {

// Chunk i is the work of rank i mod ranks(). States are received in the order in which they were sent, and so
// are gradients: those of the layers from the first to the last, or from the last to the first.
class ChunkLink {
 public:
  virtual ~ChunkLink() = default;
  virtual int64_t rank() const = 0;
  virtual int64_t ranks() const = 0;
  // Waits until the states, or the gradients, that were sent so far have been received.
  virtual void settle_states() = 0;
  virtual void settle_gradients() = 0;

  virtual void send_state(const ops::State& state) = 0;
  virtual ops::State receive_state() = 0;
  // Gradients have no log_scale.
  virtual void send_gradient(const ops::State& gradient) = 0;
  virtual ops::State receive_gradient() = 0;
};

// Between the ranks of `ranks`; in memory where it is null. Of one pass over a batch.
std::unique_ptr<ChunkLink> chunk_link(distributed::Communicator* ranks);

// `state` in a graph that begins there; the backward pass gives the gradients of kv and key_sum to `take`.
ops::State with_gradient_to(const ops::State& state, std::function<void(const ops::State&)> take);

// `x`, whose backward pass begins with that of `state`: the gradients of kv and key_sum are what `give`
// returns, called before anything that x and the state were made of is reached.
at::Tensor with_gradient_from(const at::Tensor& x, const ops::State& state, std::function<ops::State()> give);

}  // namespace performer::train
