// SPDX-License-Identifier: Apache-2.0
// XLA's thread pool as the kernels' executor.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include <xla/ffi/api/ffi.h>

#include "performer/base/executor.h"

namespace performer::jax_ffi {

// The calling thread works, too, and waits only for ranges that another thread has begun: a handler may run
// in a thread of the same pool, and waiting for a task that no free thread is left for would never end.
class PoolExecutor final : public Executor {
 public:
  explicit PoolExecutor(xla::ffi::ThreadPool pool)
      : pool_(pool), workers_(static_cast<int>(std::clamp<int64_t>(pool.num_threads(), 1, 1024))) {}

  int workers() const override { return workers_; }

  // Each worker number has one range of its own, so that no two threads share scratch memory.
  void parallel_for(int64_t count, const Body& body) override {
    const int64_t ranges = std::min<int64_t>(workers_, count);
    if (ranges <= 0) return;
    if (ranges == 1) return body(0, count, 0);
    const auto work = std::make_shared<Work>(count, ranges, body);
    for (int64_t helper = 1; helper < ranges; ++helper) {
      pool_.Schedule([work] { work->run(); });
    }
    work->run();
    work->wait();
  }

 private:
  // Shared with the helpers, which may start when all is done and must then not touch `body`.
  struct Work {
    int64_t count, ranges;
    const Body& body;
    std::atomic<int64_t> next{0};
    int64_t done = 0;  // guarded by mutex
    std::mutex mutex;
    std::condition_variable finished;

    Work(int64_t all, int64_t parts, const Body& work) : count(all), ranges(parts), body(work) {}

    void run() {
      for (int64_t i = next.fetch_add(1); i < ranges; i = next.fetch_add(1)) {
        body(count * i / ranges, count * (i + 1) / ranges, static_cast<int>(i));
        const std::lock_guard lock(mutex);
        if (++done == ranges) finished.notify_all();
      }
    }
    void wait() {
      std::unique_lock lock(mutex);
      finished.wait(lock, [this] { return done == ranges; });
    }
  };

  xla::ffi::ThreadPool pool_;
  int workers_;
};

}  // namespace performer::jax_ffi
