// SPDX-License-Identifier: Apache-2.0
#include "performer/bench/timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace performer::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kShortestSample = 2e-3;  // seconds
constexpr double kLongCall = 1;           // seconds, beside which what a first call does once is nothing
constexpr int64_t kFewestSamples = 3;

double seconds_of(const std::function<void()>& work, int64_t calls) {
  const auto start = Clock::now();
  for (int64_t i = 0; i < calls; ++i) work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> samples) {
  const size_t middle = samples.size() / 2;
  std::nth_element(samples.begin(), samples.begin() + static_cast<int64_t>(middle), samples.end());
  if (samples.size() % 2 == 1) return samples[middle];
  return (samples[middle] +
          *std::max_element(samples.begin(), samples.begin() + static_cast<int64_t>(middle))) /
         2;
}

}  // namespace

std::vector<Timing> time_by_turns(const std::vector<std::function<void()>>& works,
                                  const TimingOptions& options, const Progress& progress) {
  struct Entry {
    int64_t calls = 1;
    double spent = 0;
    std::vector<double> samples;
  };
  std::vector<Entry> entries(works.size());
  for (size_t i = 0; i < works.size(); ++i) {
    const double once = seconds_of(works[i], 1);
    entries[i].calls =
        std::max<int64_t>(1, static_cast<int64_t>(std::ceil(kShortestSample / std::max(once, 1e-8))));
    entries[i].calls = std::min<int64_t>(entries[i].calls, 100000);
    if (once < kLongCall) continue;
    entries[i].spent = once;
    entries[i].samples.push_back(once);
  }
  for (int64_t turn = 0; turn < options.repetitions; ++turn) {
    if (progress)
      progress(fmt::format("timing {} rows, turn {} of {}", works.size(), turn + 1, options.repetitions));
    for (size_t i = 0; i < works.size(); ++i) {
      Entry& entry = entries[i];
      const int64_t sampled = std::ssize(entry.samples);
      if (sampled >= options.repetitions || (entry.spent >= options.seconds && sampled >= kFewestSamples))
        continue;
      const double seconds = seconds_of(works[i], entry.calls);
      entry.spent += seconds;
      entry.samples.push_back(seconds / static_cast<double>(entry.calls));
    }
  }
  std::vector<Timing> timings;
  for (const Entry& entry : entries) {
    timings.push_back({*std::min_element(entry.samples.begin(), entry.samples.end()), median(entry.samples),
                       static_cast<int64_t>(entry.samples.size())});
  }
  return timings;
}

}  // namespace performer::bench
