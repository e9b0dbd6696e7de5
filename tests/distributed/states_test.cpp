// SPDX-License-Identifier: Apache-2.0
// States exchanged between ranks, gathered and scanned, against merging those of all ranks in one place.
#include "performer/distributed/states.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <mutex>

#include "tests/distributed/ranks.h"

namespace performer::distributed {
namespace {

using testing::expect_no_errors;
using testing::run_ranks;

constexpr int64_t kRows = 2, kHeads = 2, kFeatures = 3, kValues = 4;

// Of tokens that rank `rank` has; some of its features have seen nothing yet.
ops::State make_state(int64_t rank, int64_t which) {
  const auto numbers = [&](at::IntArrayRef shape, int64_t seed) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    return at::sin(at::arange(count, at::kDouble) * 1.7 + static_cast<double>(13 * rank + 5 * which + seed))
        .view(shape);
  };
  ops::State state;
  state.kv = numbers({kRows, kHeads, kFeatures, kValues}, 0).requires_grad_();
  state.key_sum = (numbers({kRows, kHeads, kFeatures}, 1) + 2).detach().requires_grad_();
  state.log_scale = 30 * numbers({kRows, kHeads, kFeatures}, 2);
  return state;
}

at::Tensor weighted(const ops::State& state, int64_t rank, double factor) {
  // True sums may be huge: log-scales are part of what is compared, by what they are near.
  const at::Tensor scale = at::exp(at::tanh(state.log_scale / 50)) * factor;
  return (state.kv * scale.unsqueeze(-1) * static_cast<double>(rank + 1)).sum() +
         (state.key_sum * scale).square().sum();
}

struct Result {
  at::Tensor loss;                    // of all ranks
  std::vector<at::Tensor> gradients;  // of kv and key_sum of each rank's `last`, then of its `first`
};

ops::State merged(const ops::State& a, const ops::State& b) {
  return a.defined() ? ops::merge_states(a, b) : b;
}

at::Tensor loss_of(const nn::Neighbours& found, int64_t rank) {
  at::Tensor loss = at::zeros({}, at::kDouble);
  if (found.before.defined()) loss = loss + weighted(found.before, rank, 0.7);
  if (found.behind.defined()) loss = loss + weighted(found.behind, rank, -1.3);
  return loss;
}

std::vector<ops::State> all_states(int64_t ranks, int64_t which) {
  std::vector<ops::State> states;
  for (int64_t rank = 0; rank < ranks; ++rank) states.push_back(make_state(rank, which));
  return states;
}

Result in_one_place(const nn::Reach& reach, bool both, bool same) {
  const int64_t ranks = std::ssize(reach.earliest);
  const std::vector<ops::State> last = all_states(ranks, 0), first = same ? last : all_states(ranks, 1);
  Result result{at::zeros({}, at::kDouble), {}};
  for (int64_t rank = 0; rank < ranks; ++rank) {
    nn::Neighbours found;
    for (int64_t r = reach.earliest[rank]; r < rank; ++r) found.before = merged(found.before, last[r]);
    for (int64_t r = rank + 1; both && r <= reach.latest[rank]; ++r)
      found.behind = merged(found.behind, first[r]);
    result.loss = result.loss + loss_of(found, rank);
  }
  result.loss.backward();
  for (int64_t rank = 0; rank < ranks; ++rank) {
    for (const auto* states : {&last, &first}) {
      for (const at::Tensor& each : {(*states)[rank].kv, (*states)[rank].key_sum})
        result.gradients.push_back(each.grad().defined() ? each.grad() : at::zeros_like(each));
    }
  }
  return result;
}

// What each rank finds.
Result over_ranks(const nn::Reach& reach, bool both, bool same, int64_t most_gathered) {
  const int size = static_cast<int>(reach.earliest.size());
  Result result{at::zeros({}, at::kDouble), std::vector<at::Tensor>(4 * reach.earliest.size())};
  std::mutex mutex;
  expect_no_errors(run_ranks(size, [&](Communicator& ranks) {
    const int64_t rank = ranks.rank();
    const auto exchange = state_exchange(ranks.group("states", 0, 1, size), most_gathered);
    const ops::State last = make_state(rank, 0), other = make_state(rank, 1);
    const ops::State& first = same ? last : other;
    at::Tensor anchor = at::ones({1}, at::kDouble).requires_grad_();
    const nn::Neighbours found = exchange->exchange(last, both ? &first : nullptr, reach, anchor);
    const at::Tensor loss = loss_of(found, rank) + 0 * anchor.sum();
    loss.backward();
    const std::lock_guard lock(mutex);
    result.loss = result.loss + loss.detach();
    size_t next = 4 * static_cast<size_t>(rank);
    for (const auto* state : {&last, &first}) {
      for (const at::Tensor& each : {state->kv, state->key_sum})
        result.gradients[next++] = each.grad().defined() ? each.grad() : at::zeros_like(each);
    }
  }));
  return result;
}

void expect_equal(const nn::Reach& reach, bool both, bool same) {
  const Result expected = in_one_place(reach, both, same);
  for (const int64_t most_gathered : {100, 1}) {
    const Result found = over_ranks(reach, both, same, most_gathered);
    EXPECT_NEAR(found.loss.item<double>(), expected.loss.item<double>(),
                1e-12 * std::abs(expected.loss.item<double>()));
    ASSERT_EQ(found.gradients.size(), expected.gradients.size());
    for (size_t i = 0; i < expected.gradients.size(); ++i) {
      EXPECT_TRUE(at::allclose(found.gradients[i], expected.gradients[i], 1e-12, 1e-14))
          << "gradient " << i << ", at most " << most_gathered << " gathered";
    }
  }
}

TEST(States, OfAllRanksBeforeAndBehind) {
  for (const int64_t ranks : {2, 3, 4, 5}) {
    SCOPED_TRACE(ranks);
    nn::Reach reach;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      reach.earliest.push_back(0);
      reach.latest.push_back(ranks - 1);
    }
    expect_equal(reach, true, true);
    expect_equal(reach, false, true);
  }
}

// Segments that begin and end in the midst of slices: some go through several, some are within one.
TEST(States, OfRanksThatShareSegments) {
  expect_equal({{0, 0, 1, 1, 1}, {1, 4, 4, 4, 4}}, true, false);
  expect_equal({{0, 1, 1, 1, 3}, {0, 3, 3, 4, 4}}, true, false);
  expect_equal({{0, 1, 2, 3, 3}, {0, 1, 2, 4, 4}}, false, false);
}

// A rank in the midst of eight sends four sums at most, where a gather gives its state to seven others.
TEST(States, AScanSendsFewNumbers) {
  constexpr int kRanks = 8;
  nn::Reach reach;
  for (int64_t rank = 0; rank < kRanks; ++rank) {
    reach.earliest.push_back(0);
    reach.latest.push_back(rank);
  }
  expect_no_errors(run_ranks(kRanks, [&](Communicator& ranks) {
    const std::shared_ptr<Communicator> group = ranks.group("states", 0, 1, kRanks);
    const ops::State own = make_state(ranks.rank(), 0);
    at::Tensor anchor = at::ones({1}, at::kDouble).requires_grad_();
    const nn::Neighbours found = state_exchange(group, 2)->exchange(own, nullptr, reach, anchor);
    // To the next rank, and to those 1, 2 and 4 further whose sums reach past this one.
    const int64_t rank = ranks.rank(), last = kRanks - 1;
    const int64_t messages = (rank < last) + (rank >= 1 && rank < last) + (rank >= 1 && rank + 2 <= last) +
                             (rank >= 1 && rank + 4 <= last);
    const int64_t state = kRows * kHeads * kFeatures * (kValues + 2) * 8;
    EXPECT_EQ(group->traffic().exchanges, messages) << "rank " << rank;
    EXPECT_EQ(group->traffic().bytes, messages * state) << "rank " << rank;
    (loss_of(found, rank) + 0 * anchor.sum()).backward();
    // As many gradients come back as states went out; the others' went out.
    EXPECT_LE(group->traffic().exchanges, 2 * 4);
  }));
}

}  // namespace
}  // namespace performer::distributed
