// SPDX-License-Identifier: Apache-2.0
#include "cli/heartbeat.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "performer/train/progress.h"

namespace performer::cli {

void Heartbeat::tell(int64_t done, int64_t total, const std::string& what) {
  constexpr auto kSilence = std::chrono::seconds(10);
  const auto now = Clock::now();
  if (now - said_ < kSilence || (total > 0 && done >= total)) return;
  said_ = now;
  const double elapsed = std::chrono::duration<double>(now - begun_).count();
  const bool known = total > 0 && done > 0;
  const double left = known ? elapsed * static_cast<double>(total - done) / static_cast<double>(done) : 0;
  spdlog::info("{}{}", what, known ? fmt::format(", {} left", train::format_duration(left)) : "");
}

}  // namespace performer::cli
