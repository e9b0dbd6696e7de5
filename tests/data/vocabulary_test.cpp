// SPDX-License-Identifier: Apache-2.0
#include "performer/data/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string encoding_error(std::string_view text) {
  return performer::test::error_of<InputError>([&] { encode(text); });
}

// Recorded outputs of protein_lm domains.py (cases all_letters and bytes_and_short).
TEST(Vocabulary, EncodesAsProteinLm) {
  EXPECT_THAT(encode("ACDEFGHIKLMNPQRSTVWY"),
              ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19));
  EXPECT_THAT(encode("BOUXZ"), ElementsAre(20, 21, 22, 23, 24));
  EXPECT_THAT(encode("<ACD>"), ElementsAre(25, 0, 1, 2, 26));
  EXPECT_THAT(encode("ACD>EF_*"), ElementsAre(0, 1, 2, 26, 3, 4, 27, 28));
  EXPECT_THAT(encode("MKTAYIAKQR*Q_<B>ZZ"),
              ElementsAre(10, 8, 16, 0, 19, 7, 0, 8, 13, 14, 28, 13, 27, 25, 20, 26, 24, 24));
  EXPECT_THAT(encode("ACDBOUXZY>"), ElementsAre(0, 1, 2, 20, 21, 22, 23, 24, 19, 26));
  EXPECT_EQ(kVocabularySize, 29);
}

TEST(Vocabulary, DecodesWhatItEncodes) {
  for (const std::string text : {"ACDEFGHIKLMNPQRSTVWY", "MKTAYIAKQR*Q_<B>ZZ", ""})
    EXPECT_EQ(decode(encode(text)), text);
  EXPECT_EQ(decode(std::vector<int64_t>{0, -1, 29, 1}), "A??C");
}

TEST(Vocabulary, ReadsJAsX) {
  EXPECT_THAT(encode("J"), ElementsAre(23));
  EXPECT_EQ(token_of('J'), token_of('X'));
}

TEST(Vocabulary, KnowsResiduesFromMarkers) {
  for (int token = 0; token < kVocabularySize; ++token) {
    EXPECT_EQ(is_residue(token), token < 25);
    EXPECT_EQ(token_of(letter(token)), token < 25 ? token : -1);
  }
  EXPECT_FALSE(is_residue(-1));
  EXPECT_EQ(token_of('a'), -1);
  EXPECT_EQ(token_of('\xff'), -1);
}

// protein_lm raises for these too, except J.
TEST(Vocabulary, RefusesOtherLettersByName) {
  for (const char bad : std::string("jja-.| 1"))
    EXPECT_NE(encoding_error(std::string("AC") + bad), "") << bad;
  EXPECT_THAT(encoding_error("ACa"), HasSubstr("illegal letter 'a' at position 3"));
  EXPECT_THAT(encoding_error("\x07"), HasSubstr("illegal letter byte 0x07 at position 1"));
  EXPECT_THAT(encoding_error("A-"), HasSubstr("ACDEFGHIKLMNPQRSTVWYBOUXZ"));
}

}  // namespace
}  // namespace performer::data
