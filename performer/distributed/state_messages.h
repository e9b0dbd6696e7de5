// SPDX-License-Identifier: Apache-2.0
// States of linear attention as messages from one rank to another.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "performer/distributed/communicator.h"
#include "performer/ops/favor.h"

namespace performer::distributed {

// The numbers of a state behind each other: kv, key_sum, and log_scale where it is defined, which gradients
// of states have not.
at::Tensor joined(const ops::State& state);
// The state of the shape of `like` whose numbers these are.
ops::State apart(const at::Tensor& numbers, const ops::State& like);

// Null for a state without numbers, of a batch without rows: it needs no message.
std::unique_ptr<Pending> begin_send(Communicator& ranks, const ops::State& state, int to);
// What rank `from` sent, of the shape and type of `like`.
ops::State receive_state(Communicator& ranks, const ops::State& like, int from);

}  // namespace performer::distributed
