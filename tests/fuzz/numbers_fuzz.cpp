// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of what users write in options: numbers and time spans, and of any text in messages (libFuzzer:
// clang++ -fsanitize=fuzzer,address,undefined).
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "performer/base/error.h"
#include "performer/base/numbers.h"
#include "performer/base/printable.h"

namespace performer::numbers_fuzz {

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "numbers: %s\n", what);
  std::abort();
}

// Calls `read` with the text and returns whether it was one; any error but UsageError comes through.
template <class Read>
bool is_good(const Read& read) {
  try {
    read();
    return true;
  } catch (const UsageError& error) {
    for (const char* letter = error.what(); *letter != '\0'; ++letter) {
      require(static_cast<unsigned char>(*letter) >= ' ' && *letter != 127,
              "a message has a control character");
    }
    return false;
  }
}

}  // namespace performer::numbers_fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace performer;
  using numbers_fuzz::is_good, numbers_fuzz::require;
  const std::string text(reinterpret_cast<const char*>(data), size);
  int64_t whole = 0;
  uint64_t bits = 0;
  double real = 0, seconds = 0;
  const bool is_whole = is_good([&] { whole = parse_whole("x", text); });
  const bool is_unsigned = is_good([&] { bits = parse_unsigned("x", text); });
  const bool is_real = is_good([&] { real = parse_real("x", text); });
  if (is_whole) {
    require(parse_whole("x", std::to_string(whole)) == whole, "a whole number changes when written and read");
    require(is_real && real == static_cast<double>(whole), "a whole number is another number as a real one");
    require(is_unsigned == (whole >= 0) && (whole < 0 || bits == static_cast<uint64_t>(whole)),
            "signs do not agree");
    require(!is_good([&] { parse_whole("x", text, {.most = whole - (whole > INT64_MIN)}); }) ||
                whole == INT64_MIN,
            "a range is not kept");
  }
  if (is_real) {
    require(std::isfinite(real), "a number is not finite");
    require(parse_real("x", fmt::format("{}", real)) == real, "a number changes when written and read");
  }
  if (is_good([&] { seconds = parse_duration("x", text); }))
    require(seconds > 0 && seconds <= 36525.0 * 86400, "a time span is out of its range");
  const std::string line = printable(text), name = shown(text, 20);
  require(printable(line) == line, "a printable text changes");
  require(name.size() <= 20 * 6, "a name is not cut");
  return 0;
}
