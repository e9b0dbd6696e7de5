// SPDX-License-Identifier: Apache-2.0
#include "cli/heartbeat.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "performer/train/progress.h"

namespace performer::cli {
namespace {

// "read 1.2 of 5.0 GB", in the unit of the larger number; without a total "read 1.2 GB".
std::string amount_read(int64_t done, int64_t total) {
  double unit = 1e3;
  const char* name = "kB";
  const auto most = static_cast<double>(std::max(done, total));
  if (most >= 1e6) unit = 1e6, name = "MB";
  if (most >= 1e9) unit = 1e9, name = "GB";
  const std::string of = total > 0 ? fmt::format(" of {:.1f}", static_cast<double>(total) / unit) : "";
  return fmt::format("read {:.1f}{} {}", static_cast<double>(done) / unit, of, name);
}

}  // namespace

void Heartbeat::tell(int64_t done, int64_t total, const std::string& what) {
  const auto now = Clock::now();
  if (now < next_ || (total > 0 && done >= total)) return;
  next_ = now + kSilence;
  const double elapsed = std::chrono::duration<double>(now - begun_).count();
  const bool known = total > 0 && done > 0;
  const double left = known ? elapsed * static_cast<double>(total - done) / static_cast<double>(done) : 0;
  spdlog::info("{}{}", what, known ? fmt::format(", {} left", train::format_duration(left)) : "");
}

data::ReadProgress tell_reading(Heartbeat::Clock::duration silence) {
  return [silence, beat = Heartbeat(silence), before = int64_t{0}](int64_t done, int64_t total) mutable {
    if (done < before) beat = Heartbeat(silence);  // another pass
    before = done;
    beat.tell(done, total, amount_read(done, total));
  };
}

}  // namespace performer::cli
