// SPDX-License-Identifier: Apache-2.0
// nn::StateExchange by prefix sums over the ranks.
#pragma once

#include <memory>

#include "performer/distributed/communicator.h"
#include "performer/nn/state_exchange.h"

namespace performer::distributed {

// Merged states by doubling (Hillis and Steele, 1986): first each rank has the state of its neighbour, then
// in step j = 0, 1, ... that of 2^j more ranks from the rank 2^j away, as far as its reach goes.
class ScannedStates final : public nn::StateExchange {
 public:
  explicit ScannedStates(std::shared_ptr<Communicator> ranks) : ranks_(std::move(ranks)) {}
  int64_t rank() const override { return ranks_->rank(); }
  nn::Neighbours exchange(const ops::State& last, const ops::State* first, const nn::Reach& reach,
                          at::Tensor& anchor) override;

 private:
  // `end`: the furthest rank that each rank's sum takes in, itself for none. Sums go to higher ranks, or with
  // `down` to lower ones.
  ops::State scan(const ops::State& own, const std::vector<int64_t>& end, bool down, at::Tensor& anchor);

  std::shared_ptr<Communicator> ranks_;
};

}  // namespace performer::distributed
