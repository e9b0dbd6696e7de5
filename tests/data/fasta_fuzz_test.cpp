// SPDX-License-Identifier: Apache-2.0
// The fuzz entry on a few thousand damaged inputs, the same ones in every run.
#include <gtest/gtest.h>

#include "performer/base/philox.h"
#include "tests/data/packed_bytes.h"
#include "tests/fuzz/fasta_fuzz.cpp"  // the entry itself: built and run without libFuzzer

namespace performer::data {
namespace {

const std::string kText =
    ">sp|P1|ONE first protein\r\nMKTAYIAKQR\r\nQISFVKSHFS*\r\n; a comment\n\n>two\nacdefg-.hik\nJBOUXZ "
    "lm\n>three\nA";

// One to four edits: a byte replaced, dropped or doubled, or the end cut off.
std::string damaged(std::string bytes, PhiloxStream& draws) {
  constexpr std::string_view kTelling = ">;*\n\r -.aJ1\0\xff\x1f";
  for (uint64_t edits = 1 + draws.below(4); edits > 0 && !bytes.empty(); --edits) {
    const size_t at = draws.below(bytes.size());
    switch (draws.below(5)) {
      case 0:
        bytes[at] = static_cast<char>(draws.below(256));
        break;
      case 1:
        bytes[at] = kTelling[draws.below(kTelling.size())];
        break;
      case 2:
        bytes.erase(at, 1 + draws.below(3));
        break;
      case 3:
        bytes.insert(at, bytes.substr(draws.below(bytes.size()), draws.below(20)));
        break;
      default:
        bytes.resize(at);
    }
  }
  return bytes;
}

TEST(FastaFuzz, SurvivesDamagedInputs) {
  PhiloxStream draws(7, 0);
  const std::string forms[] = {kText,
                               kText,
                               test::gzip(kText),
                               test::bgzip(kText) + test::bgzip(""),
                               test::zstd(kText),
                               test::zstd_with_window(kText, 20)};
  for (int round = 0; round < 600; ++round) {
    for (const std::string& form : forms) {
      const std::string input = damaged(form, draws);
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
    }
  }
}

}  // namespace
}  // namespace performer::data
