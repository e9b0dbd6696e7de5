// SPDX-License-Identifier: Apache-2.0
// The optimizer of a run on several ranks: Adam on each of them, or its state divided among them (ZeRO, stage
// 1; arXiv 1910.02054).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "performer/distributed/communicator.h"
#include "performer/train/adam.h"

namespace performer::train {

// Gradients are the same on all ranks, and so are parameters after every step. Sharded, a rank holds the
// moments of the parameters that it owns alone, updates these, and sends them to the others.
class ShardedAdam {
 public:
  ShardedAdam(const std::vector<NamedParameter>& parameters, const AdamOptions& options,
              distributed::Communicator& ranks, bool sharded);

  // As those of Adam. step(), and when sharded state(), are called by all ranks together; the state is that
  // of one process.
  void step(double learning_rate, double gradient_scale = 1);
  void zero_gradients();
  std::vector<at::Tensor> gradients() const;
  std::map<std::string, at::Tensor> state();
  void set_state(const std::map<std::string, at::Tensor>& state, const std::string& source);

  const std::vector<NamedParameter>& parameters() const { return parameters_; }

 private:
  std::vector<NamedParameter> owned_by(int rank) const;
  // What `owner` has in tensors of these shapes, on all ranks; one exchange for each type.
  void broadcast(const std::vector<at::Tensor>& tensors, int owner);

  distributed::Communicator& ranks_;
  bool sharded_;
  std::vector<NamedParameter> parameters_;
  std::vector<int> owners_;  // of the parameters
  Adam own_;
};

}  // namespace performer::train
