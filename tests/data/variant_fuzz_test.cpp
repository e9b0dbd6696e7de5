// SPDX-License-Identifier: Apache-2.0
// The fuzz entry of variants on some ten thousand texts, the same ones in every run, and on its corpus.
#include <gtest/gtest.h>

#include "tests/fuzz/damage.h"

#define LLVMFuzzerTestOneInput fuzz_variant
#include "tests/fuzz/variant_fuzz.cpp"
#undef LLVMFuzzerTestOneInput

namespace performer::data {
namespace {

TEST(VariantFuzz, SurvivesTextsOfTheirParts) {
  const std::vector<std::string> parts = {"A",      "Ala", "24", "4",   "_",  "del",  "ins", "dup",
                                          "delins", "K2",  "T3", "Ter", "*",  "fs",   ":",   ";",
                                          "p.",     "(",   ")",  "[",   "]",  "=",    "WT",  "-",
                                          "A4P",    "Y5D", ",",  "\n",  "\"", "\xff", "R",   "Gly"};
  PhiloxStream draws(21, 0);
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (uint64_t left = 1 + draws.below(9); left > 0; --left) text += parts[draws.below(parts.size())];
    performer::fuzz::run(fuzz_variant, text);
  }
}

TEST(VariantFuzz, SurvivesDamagedTables) {
  performer::fuzz::run_damaged(
      fuzz_variant,
      {"mutant,DMS_score\nA4P:Y5D,0.5\n\"K2_T3insGS\",NA\r\n", "hgvs_pro\tx\np.(Lys2_Ala4delinsTrp)\t1\n",
       "p.[Ala4Pro;Tyr5Asp]", "K2_A4dup:Y5*"},
      1500, std::string_view(",\t\"\n\rA4_:;p.()[]*\0", 19));
}

TEST(VariantFuzz, SurvivesItsCorpus) {
  performer::fuzz::run_corpus(fuzz_variant, "variant");
}

}  // namespace
}  // namespace performer::data
