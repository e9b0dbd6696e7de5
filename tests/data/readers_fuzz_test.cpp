// SPDX-License-Identifier: Apache-2.0
// The fuzz entries of the readers on a few thousand damaged inputs each, the same ones in every run, and on
// the inputs with which libFuzzer reached most of their code.
#include <gtest/gtest.h>

#include "tests/data/packed_bytes.h"
#include "tests/data/pictures.h"
#include "tests/fuzz/damage.h"

// The entries themselves, built and run without libFuzzer: one program holds all, so each has a name of its
// own.
#define LLVMFuzzerTestOneInput fuzz_fasta
#include "tests/fuzz/fasta_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_text
#include "tests/fuzz/text_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_image
#include "tests/fuzz/image_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_detect
#include "tests/fuzz/detect_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_vocabulary
#include "tests/fuzz/vocabulary_fuzz.cpp"
#undef LLVMFuzzerTestOneInput

namespace performer::data {
namespace {

const std::string kText =
    ">sp|P1|ONE first protein\r\nMKTAYIAKQR\r\nQISFVKSHFS*\r\n; a comment\n\n>two\nacdefg-.hik\nJBOUXZ "
    "lm\n>three\nA";

void run_damaged(const std::vector<std::string>& forms, int rounds, performer::fuzz::Entry entry) {
  performer::fuzz::run_damaged(entry, forms, rounds, std::string_view(">;*\n\r -.aJ1\0\xff\x1f", 14));
}

TEST(FastaFuzz, SurvivesDamagedInputs) {
  run_damaged({kText, kText, test::gzip(kText), test::bgzip(kText) + test::bgzip(""), test::zstd(kText),
               test::zstd_with_window(kText, 20)},
              600, fuzz_fasta);
}

TEST(TextFuzz, SurvivesDamagedInputs) {
  const std::string text = "ab abc\n\n \n\r\nabe\r\no a\n\t\nabcabo\n\n";
  run_damaged({text, text, test::gzip(text), test::zstd(text)}, 300, fuzz_text);
}

TEST(ImageFuzz, SurvivesDamagedInputs) {
  using namespace test;
  const std::string rgb = png({5, 6}, noise(5 * 6 * 3));
  const std::string alpha = png({5, 6, 16, PNG_COLOR_TYPE_GRAY_ALPHA, PNG_INTERLACE_ADAM7}, noise(5 * 6 * 4));
  const std::string baseline = jpeg(5, 6, 3, noise(5 * 6 * 3), 50),
                    progressive = jpeg(5, 6, 1, noise(5 * 6), 50, true);
  run_damaged({rgb, alpha, baseline, progressive,
               tar_entry("a.png", rgb) + tar_entry("note", "text") + tar_entry("b.jpg", baseline) + kTarEnd,
               tar_entry("long", std::string(120, 'n'), 'L') + tar_entry("x", rgb) + kTarEnd, gzip(rgb)},
              300, fuzz_image);
}

TEST(DetectFuzz, SurvivesDamagedInputs) {
  std::string wide;
  for (const char letter : std::string(">a\nMKT\n>b\nACD\n")) wide += {letter, '\0'};
  run_damaged({kText, wide, "@r\nACGT\n+\nIIII\n", "ID   X; 9 AA.\nAC   P1;\nSQ   9 AA;\n//\n",
               ">P1;X\nname\nMKT*\n", "<!DOCTYPE html><html>", "id\tsequence\na\tMKT\n",
               "{\"sequence\": \"MKT\"}", " 2 9\na MKTAYIAKQ\nb MKTAYIAKQ\n", test::gzip(test::gzip(kText)),
               "words in\n>a\nMKTAYIAKQRQISFVKSHFSRQ\n", ">a\rMKT\r>b\nMKT\nKilled by it\n"},
              150, fuzz_detect);
}

TEST(VocabularyFuzz, SurvivesDamagedInputs) {
  const Vocabulary own = Vocabulary::of_symbols("own", {"a", "b", "ab", "\n", "\xff"});
  run_damaged({"a\nb\n# note\nab\n\\n\n\\xff\n\\s\n", own.to_json(), Vocabulary::protein().to_json(),
               Vocabulary::of_symbols("x", {"7", "8"}).to_json()},
              600, fuzz_vocabulary);
}

TEST(FuzzCorpus, Passes) {
  performer::fuzz::run_corpus(fuzz_fasta, "fasta");
  performer::fuzz::run_corpus(fuzz_text, "text");
  performer::fuzz::run_corpus(fuzz_image, "image");
  performer::fuzz::run_corpus(fuzz_detect, "detect");
  performer::fuzz::run_corpus(fuzz_vocabulary, "vocabulary");
}

}  // namespace
}  // namespace performer::data
