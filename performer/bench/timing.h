// SPDX-License-Identifier: Apache-2.0
// Time of several pieces of work, measured by turns.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace performer::bench {

// Called with a line for people; rarely enough to be printed.
using Progress = std::function<void(const std::string&)>;

struct TimingOptions {
  int64_t repetitions = 7;  // samples of a piece of work
  double seconds = 0.5;     // no more samples of it once they took this long together, but at least 3
};

struct Timing {
  double fastest = 0, median = 0;  // seconds of one call
  int64_t repetitions = 0;         // samples that these are of
};

// Runs every piece of work once to warm up, then takes one sample of each in turn, again and again: what
// slows the machine for a while slows all alike, and the fastest sample of each is from its quiet moments. A
// sample is as many calls as last two milliseconds. A first call that lasts a second or more counts as a
// sample.
std::vector<Timing> time_by_turns(const std::vector<std::function<void()>>& works,
                                  const TimingOptions& options, const Progress& progress);

}  // namespace performer::bench
