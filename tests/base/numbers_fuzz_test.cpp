// SPDX-License-Identifier: Apache-2.0
// The fuzz entry of numbers on some ten thousand texts, the same ones in every run, and on those with which
// libFuzzer reached most of their code.
#include <gtest/gtest.h>

#include "tests/fuzz/damage.h"

#define LLVMFuzzerTestOneInput fuzz_numbers
#include "tests/fuzz/numbers_fuzz.cpp"
#undef LLVMFuzzerTestOneInput

namespace performer {
namespace {

void run(const std::string& input) {
  fuzz::run(fuzz_numbers, input);
}

TEST(NumbersFuzz, SurvivesTextsOfTheirLetters) {
  constexpr std::string_view kLetters = "0123456789019.-+_eEsmhd: x\n\xff";
  PhiloxStream draws(11, 0);
  for (int round = 0; round < 20000; ++round) {
    std::string text(draws.below(14), '0');
    for (char& letter : text) letter = kLetters[draws.below(kLetters.size())];
    run(text);
  }
}

TEST(NumbersFuzz, SurvivesDamagedNumbers) {
  PhiloxStream draws(12, 0);
  for (std::string text :
       {"9223372036854775807", "-9223372036854775808", "18446744073709551615", "1.7976931348623157e308",
        "4.9406564584124654e-324", "1_000_000", "1h30m15s", "2d 3h", "00:30:00", "1-12:30:15", "64x64x3"}) {
    for (int round = 0; round < 300; ++round) {
      std::string damaged = text;
      for (uint64_t edits = 1 + draws.below(3); edits > 0; --edits) {
        damaged[draws.below(damaged.size())] = "0123456789.-+_eEsmhd: x"[draws.below(23)];
      }
      run(damaged);
    }
  }
}

TEST(NumbersFuzz, SurvivesItsCorpus) {
  fuzz::run_corpus(fuzz_numbers, "numbers");
}

}  // namespace
}  // namespace performer
