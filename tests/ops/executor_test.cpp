// SPDX-License-Identifier: Apache-2.0
// The operators run on as many threads as LibTorch was told. Compiled without OpenMP they would all run on
// one, with the same results.
#include "performer/ops/executor.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>

namespace performer::ops {
namespace {

class TorchExecutorTest : public testing::Test {
 protected:
  ~TorchExecutorTest() override { at::set_num_threads(before_); }

  // The threads that take part in `count` items, and the numbers that the executor gives them.
  void run(int64_t count) {
    executor_.parallel_for(count, [&](int64_t begin, int64_t end, int worker) {
      const std::lock_guard lock(mutex_);
      threads_.insert(std::this_thread::get_id());
      workers_.insert(worker);
      items_ += end - begin;
    });
  }

  const int before_ = at::get_num_threads();
  TorchExecutor executor_;
  std::mutex mutex_;
  std::set<std::thread::id> threads_;
  std::set<int> workers_;
  int64_t items_ = 0;
};

TEST_F(TorchExecutorTest, UsesAsManyThreadsAsLibTorch) {
  for (const int threads : {3, 2, 1}) {
    SCOPED_TRACE(threads);
    at::set_num_threads(threads);
    threads_.clear(), workers_.clear(), items_ = 0;
    run(12);
    EXPECT_EQ(executor_.workers(), threads);
    EXPECT_EQ(threads_.size(), threads);
    EXPECT_EQ(workers_.size(), threads);
    EXPECT_LT(*workers_.rbegin(), threads);
    EXPECT_EQ(items_, 12);
  }
}

TEST_F(TorchExecutorTest, HasNoMoreThreadsThanItems) {
  at::set_num_threads(3);
  run(2);
  EXPECT_EQ(threads_.size(), 2);
  EXPECT_EQ(items_, 2);
}

}  // namespace
}  // namespace performer::ops
