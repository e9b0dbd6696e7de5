// SPDX-License-Identifier: Apache-2.0
#include "performer/bench/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>

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

#if defined(__x86_64__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
void add_ones(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += 1;
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
    for (auto& each : sums) std::iota(each.begin(), each.end(), 0.0F);
    const double seconds = seconds_of([&] {
      executor.parallel_for(workers, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) spinner.run(sums[static_cast<size_t>(i)].data(), kRounds);
      });
    });
    for (const auto& each : sums) {
      for (size_t i = 0; i < each.size(); ++i) {
        check(each[i] == static_cast<float>(i) + spinner.expected * static_cast<float>(kRounds),
              "the limit of {} cannot be measured: {} rounds of {} from {} gave {}", spinner.name, kRounds,
              spinner.expected, i, each[i]);
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

double memory_bandwidth(int64_t bytes, Executor& executor) {
  const int64_t count = bytes / 4, parts = executor.workers();
  std::vector<float> from(static_cast<size_t>(count), 1), to(static_cast<size_t>(count), 1);
  const auto passes = [&](auto&& pass) {
    double best = 0;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      const double seconds = seconds_of([&] {
        executor.parallel_for(parts, [&](int64_t begin, int64_t end, int) {
          const int64_t first = count * begin / parts, last = count * end / parts;
          pass(from.data() + first, to.data() + first, last - first);
        });
      });
      best = std::max(best, 8.0 * static_cast<double>(count) / seconds);
    }
    return best;
  };
  const double changed = passes([](float* x, float*, int64_t n) { add_ones(x, n); });
  const double copied =
      passes([](const float* x, float* y, int64_t n) { std::memcpy(y, x, static_cast<size_t>(4 * n)); });
  check(from == to && from.back() == 1 + kAttempts, "passes over {} bytes of memory gave wrong numbers",
        bytes);
  return std::max(changed, copied);
}

}  // namespace performer::bench
