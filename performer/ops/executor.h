// SPDX-License-Identifier: Apache-2.0
// LibTorch's thread pool as the kernels' executor: one pool for everything.
#pragma once

#include <ATen/Parallel.h>

#include "performer/base/executor.h"

namespace performer::ops {

class TorchExecutor final : public Executor {
 public:
  int workers() const override { return at::get_num_threads(); }
  void parallel_for(int64_t count, const Body& body) override {
    at::parallel_for(0, count, 1,
                     [&](int64_t begin, int64_t end) { body(begin, end, at::get_thread_num()); });
  }
};

}  // namespace performer::ops
