// SPDX-License-Identifier: Apache-2.0
// Signs of life of work that prints nothing for long.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace performer::cli {

class Heartbeat {
 public:
  // Logs "WHAT, 1:20 left" when ten seconds have passed since the beginning or the last line. `done` of
  // `total` units of work are done; without a total (0) there is no estimate.
  void tell(int64_t done, int64_t total, const std::string& what);

 private:
  using Clock = std::chrono::steady_clock;

  const Clock::time_point begun_ = Clock::now();
  Clock::time_point said_ = begun_;
};

}  // namespace performer::cli
