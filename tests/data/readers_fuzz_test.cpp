// SPDX-License-Identifier: Apache-2.0
// The fuzz entries of the readers on a few thousand damaged inputs each, the same ones in every run, and on
// the inputs with which libFuzzer reached most of their code.
#include <gtest/gtest.h>

#include <filesystem>

#include "performer/base/files.h"
#include "performer/base/philox.h"
#include "tests/data/packed_bytes.h"
#include "tests/data/pictures.h"

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

void run_damaged(const std::vector<std::string>& forms, int rounds, int (*entry)(const uint8_t*, size_t)) {
  PhiloxStream draws(7, 0);
  for (int round = 0; round < rounds; ++round) {
    for (const std::string& form : forms) {
      const std::string input = damaged(form, draws);
      entry(reinterpret_cast<const uint8_t*>(input.data()), input.size());
    }
  }
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
  const std::filesystem::path corpus = std::filesystem::path(PERFORMER_SOURCE_DIR) / "tests/fuzz/corpus";
  const std::vector<std::pair<const char*, int (*)(const uint8_t*, size_t)>> entries = {
      {"fasta", fuzz_fasta},
      {"text", fuzz_text},
      {"image", fuzz_image},
      {"detect", fuzz_detect},
      {"vocabulary", fuzz_vocabulary}};
  for (const auto& [name, entry] : entries) {
    int inputs = 0;
    for (const auto& file : std::filesystem::directory_iterator(corpus / name)) {
      const std::string input = read_file(file.path().string());
      entry(reinterpret_cast<const uint8_t*>(input.data()), input.size());
      ++inputs;
    }
    EXPECT_GT(inputs, 0) << name;
  }
}

}  // namespace
}  // namespace performer::data
