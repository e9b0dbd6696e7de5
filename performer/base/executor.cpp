// SPDX-License-Identifier: Apache-2.0
#include "performer/base/executor.h"

#include <algorithm>
#include <thread>
#include <vector>

namespace performer {

ThreadExecutor::ThreadExecutor(int threads) : threads_(std::max(1, threads)) {}

void ThreadExecutor::parallel_for(int64_t count, const Body& body) {
  const int64_t used = std::min<int64_t>(threads_, count);
  if (used <= 0) return;
  std::vector<std::thread> threads;
  for (int64_t worker = 1; worker < used; ++worker) {
    threads.emplace_back(
        [&, worker] { body(count * worker / used, count * (worker + 1) / used, static_cast<int>(worker)); });
  }
  body(0, count / used, 0);
  for (auto& thread : threads) thread.join();
}

}  // namespace performer
