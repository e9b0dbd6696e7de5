// SPDX-License-Identifier: Apache-2.0
#include "performer/base/printable.h"

#include <gtest/gtest.h>

#include "performer/base/error.h"

namespace performer {
namespace {

TEST(Printable, KeepsTextAndEscapesCommands) {
  for (const char* text : {"", "plain text 'x' \\n", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"})
    EXPECT_EQ(printable(text), text);
  EXPECT_EQ(printable("a\nb\tc\rd\x1b[31m\x7f"), "a\\nb\\tc\\rd\\x1b[31m\\x7f");
  EXPECT_EQ(printable(std::string_view("\0", 1)), "\\x00");
  EXPECT_EQ(printable("M\xfcller \xc3"), "M\\xfcller \\xc3") << "Latin-1, and half a character";
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\u009b31m")
      << "the escape code of 8 bits";
  EXPECT_EQ(printable("a\xe2\x80\xaez\xe2\x80\xa8"), "a\\u202ez\\u2028");
  EXPECT_EQ(printable("\xc0\x80\xed\xa0\x80"), "\\xc0\\x80\\xed\\xa0\\x80") << "overlong, and half a pair";
  EXPECT_EQ(printable(printable("\x1b\n\xff")), printable("\x1b\n\xff"));
}

TEST(Printable, IsWhatErrorsSay) {
  EXPECT_STREQ(InputError("cannot read a\nb\x1b[2J: missing").what(), "cannot read a\\nb\\x1b[2J: missing");
}

TEST(Shown, CutsTheMiddleOfLongNames) {
  EXPECT_EQ(shown("short"), "short");
  EXPECT_EQ(shown(std::string(80, 'a')), std::string(80, 'a'));
  EXPECT_EQ(shown("abcdefghijkl", 11), "abcd...ijkl");
  EXPECT_EQ(shown("abcdefghijk", 11), "abcdefghijk");
  EXPECT_EQ(shown("abc\ndefghijkl", 12), "abc\\nd...ijkl");
  EXPECT_EQ(shown(std::string(1000000, 'x') + "end", 8), "xxx...nd");
  std::string accents;
  for (int i = 0; i < 100; ++i) accents += "\xc3\xa9";
  EXPECT_EQ(shown(accents, 9), "\xc3\xa9\xc3\xa9\xc3\xa9...\xc3\xa9\xc3\xa9\xc3\xa9");
}

TEST(Utf8, CharactersHaveNumbers) {
  EXPECT_EQ(utf8_size(""), 0u);
  EXPECT_EQ(utf8_character("A"), U'A');
  EXPECT_EQ(utf8_character("\xc2\xa0"), U'\u00a0');
  EXPECT_EQ(utf8_character("\xe2\x80\x8b"), U'\u200b');
  EXPECT_EQ(utf8_character("\xf0\x9f\x98\x80"), U'\U0001F600');
  EXPECT_EQ(utf8_size("\xf0\x9f\x98"), 0u);
}

}  // namespace
}  // namespace performer
