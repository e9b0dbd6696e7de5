// SPDX-License-Identifier: Apache-2.0
// How kernels run in parallel without knowing whose threads they use: `ops` passes LibTorch's pool, the
// kernels-only build its own threads, tests a serial one.
#pragma once

#include <cstdint>
#include <functional>

namespace performer {

class Executor {
 public:
  // Work on the half-open range [begin, end); `worker` < workers() identifies the scratch memory to use.
  using Body = std::function<void(int64_t begin, int64_t end, int worker)>;
  virtual ~Executor() = default;
  virtual int workers() const = 0;
  // Calls `body` on disjoint ranges that cover [0, count). `body` must not throw.
  virtual void parallel_for(int64_t count, const Body& body) = 0;
};

// Runs everything in the calling thread.
class SerialExecutor final : public Executor {
 public:
  int workers() const override { return 1; }
  void parallel_for(int64_t count, const Body& body) override {
    if (count > 0) body(0, count, 0);
  }
};

// Starts up to `threads` threads per call: for the kernels-only build, benchmarks and tests.
class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(int threads);
  int workers() const override { return threads_; }
  void parallel_for(int64_t count, const Body& body) override;

 private:
  int threads_;
};

}  // namespace performer
