// SPDX-License-Identifier: Apache-2.0
// protein_lm's vocabulary (domains.py).
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "performer/data/vocabulary.h"
#include "tests/golden/golden.h"

namespace performer {
namespace {

TEST(GoldenTokenizer, AgreesWithTheReference) {
  golden::Group group("plm_tokenizer");
  if (group.empty()) GTEST_SKIP() << golden::kMissing;
  for (const golden::Case& item : group.cases()) {
    if (!item.entry.at("strings").contains("vocab_tokens")) {
      group.known_other(
          item,
          "batches of the reference's pipeline, which crops every sequence and pads without an end "
          "marker; ours keep both ends (docs/formats.md), tested in tests/data");
      continue;
    }
    if (item.entry["strings"]["vocab_tokens"].size() != size_t{data::kVocabularySize}) {
      group.known_other(item, "one vocabulary: 20 amino acids, B O U X Z and four markers");
      continue;
    }
    const auto strings = item.entry.at("strings");
    std::string letters;
    for (const auto& letter : strings.at("vocab_tokens")) letters += letter.get<std::string>();
    EXPECT_EQ(letters, data::kLetters) << item.id;
    const auto sequences = strings.at("sequences").get<std::vector<std::string>>();
    const auto decoded = strings.at("decoded").get<std::vector<std::string>>();
    for (size_t i = 0; i < sequences.size(); ++i) {
      const std::vector<int64_t> ids = data::encode(sequences[i]);
      group.expect(item, "ids" + std::to_string(i), at::tensor(ids, at::kLong).to(at::kInt));
      EXPECT_EQ(data::decode(ids), decoded[i]) << item.id;
    }
    // Letters that the reference refuses are refused, but for J, which is read as X and counted
    // (docs/formats.md).
    for (const auto& entry : strings.at("bad_characters")) {
      const std::string letter = entry.get<std::string>().substr(0, 1);
      if (letter == "J") {
        EXPECT_EQ(data::decode(data::encode(letter)), "X");
      } else {
        EXPECT_THROW(data::encode(letter), InputError) << letter;
      }
    }
  }
  group.finish();
}

}  // namespace
}  // namespace performer
