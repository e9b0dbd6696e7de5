// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/communicator.h"

#include <ATen/ATen.h>

#include <chrono>
#include <thread>

#include "performer/base/error.h"
#include "tests/distributed/ranks.h"

namespace performer::distributed {
namespace {

using testing::expect_no_errors;
using testing::run_ranks;

TEST(Communicator, ExchangesTensors) {
  expect_no_errors(run_ranks(3, [](Communicator& ranks) {
    const int rank = ranks.rank();
    at::Tensor values = at::full({5}, rank + 1, at::kFloat);
    ranks.sum(values);
    EXPECT_TRUE(at::equal(values, at::full({5}, 6, at::kFloat)));
    at::Tensor largest = at::full({2}, 10 * rank, at::kLong);
    ranks.maximum(largest);
    EXPECT_TRUE(at::equal(largest, at::full({2}, 20, at::kLong)));
    at::Tensor sent = at::full({4}, rank, at::kByte);
    ranks.broadcast(sent, 1);
    EXPECT_TRUE(at::equal(sent, at::full({4}, 1, at::kByte)));
    const at::Tensor all = ranks.gather(at::full({2}, rank, at::kFloat));
    EXPECT_TRUE(at::equal(all, at::arange(3, at::kFloat).unsqueeze(1).expand({3, 2})));
    const at::Tensor part = ranks.sum_of_own_part(at::arange(6, at::kFloat).view({3, 2}) * (rank + 1));
    EXPECT_TRUE(at::equal(part, 6 * at::arange(6, at::kFloat).view({3, 2})[rank])) << part;
    EXPECT_EQ(ranks.traffic().exchanges, 5);
    EXPECT_EQ(ranks.traffic().bytes, 20 + 16 + 4 + 8 + 24);
  }));
}

TEST(Communicator, GroupsAreApart) {
  expect_no_errors(run_ranks(4, [](Communicator& ranks) {
    const int rank = ranks.rank();
    const auto neighbours = ranks.group("rows", rank / 2 * 2, 1, 2);
    const auto column = ranks.group("columns", rank % 2, 2, 2);
    EXPECT_EQ(neighbours->rank(), rank % 2);
    EXPECT_EQ(column->rank(), rank / 2);
    at::Tensor a = at::full({1}, rank, at::kFloat), b = a.clone();
    const auto pending = neighbours->begin_sum(a);
    column->sum(b);
    pending->wait();
    EXPECT_EQ(a.item<float>(), rank / 2 * 4 + 1);
    EXPECT_EQ(b.item<float>(), 2 * (rank % 2) + 2);
    EXPECT_EQ(ranks.group("each", rank, 1, 1)->size(), 1);
  }));
}

TEST(Communicator, MessagesArriveInOrder) {
  expect_no_errors(run_ranks(3, [](Communicator& ranks) {
    const int next = (ranks.rank() + 1) % 3, previous = (ranks.rank() + 2) % 3;
    std::vector<std::unique_ptr<Pending>> sent;
    for (int i = 0; i < 20; ++i) sent.push_back(ranks.begin_send(at::full({4}, 100 * next + i), next));
    for (int i = 0; i < 20; ++i) {
      at::Tensor found = at::empty({4}, at::kLong);
      ranks.receive(found, previous);
      EXPECT_TRUE(at::equal(found, at::full({4}, 100 * ranks.rank() + i)));
    }
    for (const auto& message : sent) message->wait();
    EXPECT_EQ(ranks.traffic().bytes, 20 * 32);
  }));
}

// Whoever waits for a message learns why it does not come, and one that nobody waits for holds nobody.
TEST(Communicator, MessagesThatNeverCome) {
  const auto errors = run_ranks(3, [](Communicator& ranks) {
    at::Tensor values = at::ones({1});
    ranks.sum(values);
    if (ranks.rank() == 1) {
      ranks.fail("the disk is full");
      throw Error("the disk is full");
    }
    const auto never = ranks.begin_receive(at::empty({3}), 1);
    ranks.receive(values, 2 - ranks.rank());
  });
  EXPECT_EQ(errors[0], "rank 1 failed: the disk is full");
  EXPECT_EQ(errors[2], "rank 1 failed: the disk is full");
}

// Also where the connection is known to be lost before the message is begun.
TEST(Communicator, MessagesToARankThatLeft) {
  expect_no_errors(run_ranks(2,
                             [](Communicator& ranks) {
                               if (ranks.rank() == 1) return;
                               std::this_thread::sleep_for(std::chrono::milliseconds(500));
                               const at::Tensor values = at::ones({1});
                               EXPECT_THROW(ranks.begin_send(values, 1)->wait(), Error);
                               EXPECT_THROW(ranks.receive(values, 1), Error);
                               EXPECT_THROW(ranks.sum(values), Error);
                             },
                             {20, 1}));
}

TEST(Communicator, ReasonsOfFailuresReachTheOthers) {
  const auto errors = run_ranks(3, [](Communicator& ranks) {
    at::Tensor values = at::ones({1});
    ranks.sum(values);
    if (ranks.rank() == 1) {
      ranks.fail("the disk is full");
      throw Error("the disk is full");
    }
    ranks.sum(values);
  });
  EXPECT_EQ(errors[0], "rank 1 failed: the disk is full");
  EXPECT_EQ(errors[1], "the disk is full");
  EXPECT_EQ(errors[2], "rank 1 failed: the disk is full");
}

// A rank that ends at once does not close its connections while others are still making theirs.
TEST(Communicator, RanksThatEndAtOnceDisturbNobody) {
  for (int round = 0; round < 10; ++round) {
    const int size = 2 + round % 3;
    const auto errors = run_ranks(size, [&](Communicator& ranks) {
      const auto same = ranks.group("all of them", 0, 1, size);
      throw Error("a bad option");
    });
    EXPECT_THAT(errors, ::testing::Each("a bad option"));
  }
}

// Rank 0 says what all find, and what others were told by it.
TEST(Communicator, TellsWhetherRankZeroEndsWithTheSameReason) {
  const auto errors = run_ranks(4, [](Communicator& ranks) {
    at::Tensor values = at::ones({1});
    ranks.sum(values);
    const std::string reason = ranks.rank() == 3   ? "another reason"
                               : ranks.rank() == 2 ? "rank 0 failed: a bad file"
                                                   : "a bad file";
    if (ranks.rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const bool said = ranks.first_fails_with(reason, ranks.rank() == 0 ? 0 : 20);
    ranks.fail(reason);
    throw Error(said ? "said" : "not said");
  });
  EXPECT_EQ(errors, (std::vector<std::string>{"not said", "said", "said", "not said"}));
  const auto alone = run_ranks(2, [](Communicator& ranks) {
    at::Tensor values = at::ones({1});
    ranks.sum(values);
    if (ranks.rank() == 1) {
      const bool said = ranks.first_fails_with("a bad file", 0.2);  // rank 0 goes on
      ranks.fail("a bad file");
      throw Error(said ? "said" : "not said");
    }
    ranks.sum(values);
  });
  EXPECT_EQ(alone, (std::vector<std::string>{"rank 1 failed: a bad file", "not said"}));
}

TEST(Communicator, NamesRanksThatDoNotCome) {
  int port = 0;
  Environment environment;
  environment.size = 3;
  environment.address = "127.0.0.1";
  environment.listener = testing::listen_anywhere(port);
  environment.port = port;
  try {
    connect(environment, {1, 5});
    FAIL() << "met nobody";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("of 3 ranks these have not come to 127.0.0.1:"));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("within 1 s: 1, 2"));
  }
}

TEST(Communicator, OneRankNeedsNobody) {
  const auto ranks = connect({});
  at::Tensor values = at::ones({2});
  ranks->sum(values);
  EXPECT_TRUE(at::equal(values, at::ones({2})));
  EXPECT_EQ(ranks->gather(values).sizes(), at::IntArrayRef({1, 2}));
  EXPECT_TRUE(at::equal(ranks->sum_of_own_part(values.unsqueeze(0)), values));
  EXPECT_EQ(ranks->size(), 1);
  EXPECT_THROW(ranks->begin_send(values, 1), Error);
}

}  // namespace
}  // namespace performer::distributed
