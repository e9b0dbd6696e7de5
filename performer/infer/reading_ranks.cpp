// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/reading_ranks.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "performer/base/error.h"
#include "performer/distributed/states.h"
#include "performer/models/long_sequence.h"

namespace performer {

ReadingRanks::ReadingRanks() : alone_(distributed::single_rank()), all_(alone_.get()) {}

ReadingRanks::ReadingRanks(distributed::Communicator& ranks, int64_t slices) : all_(&ranks) {
  check_slice_count(slices, ranks.size());
  if (slices == 1) return;
  exchange_ = distributed::state_exchange(ranks.group("slices", 0, 1, ranks.size()));
}

std::shared_ptr<const nn::Slices> ReadingRanks::slices_of(int64_t tokens) const {
  return slices_of_sequence(tokens, size(), exchange_);
}

void ReadingRanks::check_slices(const LanguageModel& model) const {
  if (!exchange_) return;
  const std::string reason = why_not_in_slices(model);
  check<UsageError>(reason.empty(),
                    "--sequence-parallel {}: {}: leave it out, or use a model of kind "
                    "favor-softmax or favor-relu",
                    size(), reason);
}

void ReadingRanks::hand_over(const at::Tensor& values, int from) const {
  if (from == 0 || values.numel() == 0) return;
  if (leads()) {
    all_->receive(values, from);
  } else if (rank() == from) {
    all_->begin_send(values, 0)->wait();
  }
}

int64_t ReadingRanks::of_first(int64_t number) const {
  const at::Tensor value = at::full({1}, number, at::kLong);
  if (size() > 1) all_->broadcast(value, 0);
  return value.item<int64_t>();
}

void check_slice_count(int64_t slices, int64_t ranks) {
  check<UsageError>(slices == 1 || slices == ranks,
                    "--sequence-parallel is {}, but there {}: it must be 1, or the number of ranks (--nproc)",
                    slices, ranks == 1 ? "is 1 rank" : fmt::format("are {} ranks", ranks));
}

std::vector<int> divide_work(const std::vector<int64_t>& costs, int ranks) {
  std::vector<size_t> order(costs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::greater{}, [&](size_t i) { return costs[i]; });
  std::vector<int64_t> load(static_cast<size_t>(ranks), 0);
  std::vector<int> owner(costs.size());
  for (const size_t i : order) {
    const auto least = std::ranges::min_element(load);
    owner[i] = static_cast<int>(least - load.begin());
    *least += costs[i];
  }
  return owner;
}

}  // namespace performer
