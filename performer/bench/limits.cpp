// SPDX-License-Identifier: Apache-2.0
#include "performer/bench/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "performer/base/error.h"

namespace performer::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kAttempts = 12;
// Sums count whole numbers in fp32, so they stay below 2^24 even where a round adds 32.
constexpr int64_t kRounds = int64_t{1} << 18;

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool contains_word(const std::vector<std::string>& names, const char* word) {
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return name.find(word) != std::string::npos; });
}

const Spinner& widest(const std::vector<Spinner>& spinners) {
  for (const Spinner& spinner : spinners) {
    if (spinner.usable()) return spinner;
  }
  throw Error("no instruction for measuring the processor's limit can run here");
}

}  // namespace

Limit measure(const Spinner& spinner, Executor& executor) {
  const int workers = executor.workers();
  std::vector<std::vector<float>> sums(static_cast<size_t>(workers));
  for (auto& each : sums) each.resize(static_cast<size_t>(spinner.accumulators));
  double best = 0;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const double seconds = seconds_of([&] {
      executor.parallel_for(workers, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) spinner.run(sums[static_cast<size_t>(i)].data(), kRounds);
      });
    });
    for (const auto& each : sums) {
      for (const float sum : each) {
        check(sum == spinner.expected * static_cast<float>(kRounds),
              "the limit of {} cannot be measured: {} rounds of {} gave {}", spinner.name, kRounds,
              spinner.expected, sum);
      }
    }
    const double operations = static_cast<double>(spinner.operations) * static_cast<double>(kRounds);
    best = std::max(best, operations * workers / seconds);
  }
  return {spinner.name, best};
}

Limit float_limit(Executor& executor) {
  const std::vector<Spinner> spinners = float_spinners();
  return measure(widest(spinners), executor);
}

Limit bfloat16_limit(Executor& executor, const std::vector<std::string>& targets) {
  const bool tiles = contains_word(targets, "amx"), dots = tiles || contains_word(targets, "bf16");
  for (const Spinner& spinner : bfloat16_spinners()) {
    if (!spinner.usable()) continue;
    if (spinner.name.find("tile") != std::string::npos ? tiles : dots) return measure(spinner, executor);
  }
  return float_limit(executor);
}

double copy_bandwidth(int64_t bytes, Executor& executor) {
  std::vector<char> from(static_cast<size_t>(bytes), 1), to(static_cast<size_t>(bytes), 2);
  const int64_t parts = executor.workers();
  double best = 0;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const double seconds = seconds_of([&] {
      executor.parallel_for(parts, [&](int64_t begin, int64_t end, int) {
        const int64_t first = bytes * begin / parts, last = bytes * end / parts;
        std::memcpy(to.data() + first, from.data() + first, static_cast<size_t>(last - first));
      });
    });
    best = std::max(best, 2.0 * static_cast<double>(bytes) / seconds);
  }
  check(from == to, "a copy of {} bytes differs from its source", bytes);
  return best;
}

}  // namespace performer::bench
