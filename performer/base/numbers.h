// SPDX-License-Identifier: Apache-2.0
// The one reader of the numbers that users write: options, configurations, names of files. Numbers are
// decimal, whatever the locale: 010 is 10. Each function throws UsageError with `name`, what was expected,
// and the text found; nothing wraps around and nothing is clamped.
//
// A number is digits, with a point and an exponent where needed, and a minus sign where it is below 0; single
// underscores between digits are passed over: 100, 1_000, 1e3, 0.5, -2.5e-3. No plus sign, no white space, no
// hexadecimal numbers, no inf, no nan.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace performer {

struct WholeRange {
  int64_t least = std::numeric_limits<int64_t>::min();
  int64_t most = std::numeric_limits<int64_t>::max();
};
// A whole number, also as 1e3, 1.5e3 or 4.0, which are computed exactly.
int64_t parse_whole(const std::string& name, std::string_view text, const WholeRange& range = {});
// A whole number of 0 or more that may use all 64 bits, such as a seed.
uint64_t parse_unsigned(const std::string& name, std::string_view text,
                        uint64_t most = std::numeric_limits<uint64_t>::max());

// Bounds are included.
struct RealRange {
  double least = std::numeric_limits<double>::lowest();
  double most = std::numeric_limits<double>::max();
};
// A finite number. One that is not 0 but too close to it for a double is an error too.
double parse_real(const std::string& name, std::string_view text, const RealRange& range = {});

// A time span in seconds, above 0 and at most a hundred years of 365.25 days:
//   90, 90s, "90 s", 1.5m, 2h, 1d           a number, of seconds where no unit follows; units s, m, h, d,
//   also
//                                           written sec, second(s), min, minute(s), hr, hour(s), day(s)
//   1h30m, "2d 3h"                          several of them, each unit once and smaller than the one before
//   30:00, 00:30:00, 1-12:00:00, 1-12       minutes:seconds, hours:minutes:seconds, and days before a hyphen,
//   as
//                                           batch systems (Slurm) write them
double parse_duration(const std::string& name, std::string_view text);

}  // namespace performer
