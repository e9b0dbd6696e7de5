// SPDX-License-Identifier: Apache-2.0
// Signs of life of work that prints nothing for long.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "performer/data/reader.h"

namespace performer::cli {

class Heartbeat {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr Clock::duration kSilence = std::chrono::seconds(10);

  // The first line comes after `silence`, each other one kSilence after the one before.
  explicit Heartbeat(Clock::duration silence = kSilence) : next_(Clock::now() + silence) {}

  // Logs "WHAT, 1:20 left" when it is time for a line. `done` of `total` units of work are done; without a
  // total (0) there is no estimate.
  void tell(int64_t done, int64_t total, const std::string& what);

 private:
  Clock::time_point begun_ = Clock::now(), next_;
};

// For work that begins with reading large files: logs how far it is from three seconds on, "read 1.2 of 5.0
// GB, 1:20 left". May be used for several passes over files.
data::ReadProgress tell_reading(Heartbeat::Clock::duration silence = std::chrono::seconds(3));

}  // namespace performer::cli
