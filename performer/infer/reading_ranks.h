// SPDX-License-Identifier: Apache-2.0
// The processes (ranks) that read an input together: each reads all of the files, they divide the work, and
// rank 0 gets what the others made of theirs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "performer/distributed/communicator.h"
#include "performer/models/language_model.h"
#include "performer/nn/state_exchange.h"

namespace performer {

class ReadingRanks {
 public:
  // This process alone.
  ReadingRanks();
  // `ranks` outlives it. With `slices` = 1 sequences are read whole, by one rank each; with as many slices as
  // there are ranks, long sequences lie in slices on all of them. Throws what check_slice_count() throws.
  ReadingRanks(distributed::Communicator& ranks, int64_t slices);

  int rank() const { return all_->rank(); }
  int size() const { return all_->size(); }
  bool leads() const { return rank() == 0; }
  distributed::Communicator& all() const { return *all_; }

  // Null where sequences are read whole.
  const std::shared_ptr<nn::StateExchange>& exchange() const { return exchange_; }
  // Whether a sequence of so many tokens lies in slices, where longer ones than `chunk` do, and its slices.
  bool in_slices(int64_t tokens, int64_t chunk) const {
    return exchange_ && tokens > chunk && tokens >= size();
  }
  std::shared_ptr<const nn::Slices> slices_of(int64_t tokens) const;
  // Throws UsageError saying why a model's sequences cannot lie in slices, where they are to.
  void check_slices(const LanguageModel& model) const;

  // What rank `from` has in `values` comes to rank 0. All call it with contiguous tensors of the same shape
  // and type; those of the other ranks stay as they are.
  void hand_over(const at::Tensor& values, int from) const;
  // The number that rank 0 has.
  int64_t of_first(int64_t number) const;

 private:
  std::unique_ptr<distributed::Communicator> alone_;
  distributed::Communicator* all_;
  std::shared_ptr<nn::StateExchange> exchange_;
};

// Throws UsageError naming --sequence-parallel unless `slices` is 1 or the number of ranks.
void check_slice_count(int64_t slices, int64_t ranks);

// The rank that does each of some pieces of work, of which the costs are known: the largest first, each by
// the rank that has least so far. The same on all ranks.
std::vector<int> divide_work(const std::vector<int64_t>& costs, int ranks);

}  // namespace performer
