// SPDX-License-Identifier: Apache-2.0
// nn::StateExchange over a communicator.
#pragma once

#include <memory>

#include "performer/distributed/communicator.h"
#include "performer/nn/state_exchange.h"

namespace performer::distributed {

// Of the ranks of `group`, which share sequences: slice s lies on rank s. Forward every rank hands its state,
// M (E + 2) numbers a head and row, to all others; backward the gradients of all states, size() M (E + 1)
// numbers, are summed.
std::shared_ptr<nn::StateExchange> state_exchange(std::shared_ptr<Communicator> group);

}  // namespace performer::distributed
