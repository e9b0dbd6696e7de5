// SPDX-License-Identifier: Apache-2.0
// nn::StateExchange over a communicator.
#pragma once

#include <memory>

#include "performer/distributed/communicator.h"
#include "performer/nn/state_exchange.h"

namespace performer::distributed {

// Of the ranks of `group`, which share sequences: slice s lies on rank s. A state is M (E + 2) numbers a head
// and row, its gradient M (E + 1).
//
// Up to `most_gathered` ranks gather: forward every rank hands its state to all others, backward the
// gradients of all states are summed over all ranks. More ranks scan, which costs more messages one after the
// other but far fewer numbers: forward a rank sends 1 + ceil(log2(size() - 1)) merged states at most in each
// direction that is wanted (prefix sums by doubling), backward as many gradients come back.
std::shared_ptr<nn::StateExchange> state_exchange(std::shared_ptr<Communicator> group,
                                                  int64_t most_gathered = 32);

}  // namespace performer::distributed
