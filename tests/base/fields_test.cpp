// SPDX-License-Identifier: Apache-2.0
#include "performer/base/fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"

namespace performer {
namespace {

struct Example {
  bool flag = false;
  int64_t heads = 4;
  double rate = 0.5;
  std::string kind = "a";
  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("flag", self.flag, "a switch");
    visit("heads", self.heads, "a count");
    visit("rate", self.rate, "a number");
    visit("kind", self.kind, "a choice", Choices{"a", "b"});
  }
};

std::string message_of(const char* name, const char* text) {
  Example example;
  try {
    set_field("model", example, name, text);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(Fields, AreListedWithLiveValues) {
  Example example;
  example.heads = 7;
  const auto fields = list_fields("model", example);
  ASSERT_EQ(fields.size(), 4u);
  EXPECT_EQ(fields[1].key(), "model.heads");
  EXPECT_EQ(to_text(fields[1].value), "7");
  EXPECT_EQ(to_text(fields[0].value), "false");
  EXPECT_EQ(fields[3].choices, (std::vector<std::string>{"a", "b"}));
}

TEST(Fields, AreSetFromText) {
  Example example;
  set_field("model", example, "flag", "true");
  set_field("model", example, "heads", "1_000");
  set_field("model", example, "rate", "1e-3");
  set_field("model", example, "kind", "b");
  EXPECT_TRUE(example.flag);
  EXPECT_EQ(example.heads, 1000);
  EXPECT_EQ(example.rate, 1e-3);
  EXPECT_EQ(example.kind, "b");
  set_field("model", example, "heads", "010");
  EXPECT_EQ(example.heads, 10);
  set_field("model", example, "heads", "1e6");
  EXPECT_EQ(example.heads, 1000000);
}

TEST(Fields, BadValuesAreNamedWithWhatWasExpected) {
  EXPECT_EQ(message_of("flag", "yes"), "model.flag must be true or false, but is 'yes'");
  EXPECT_EQ(message_of("heads", "4.5"), "model.heads must be a whole number, but is '4.5'");
  EXPECT_EQ(message_of("heads", ""), "model.heads must be a whole number, but is ''");
  EXPECT_EQ(message_of("heads", "99999999999999999999"),
            "model.heads must be a whole number between -9223372036854775808 and 9223372036854775807, but is "
            "'99999999999999999999'");
  EXPECT_EQ(message_of("rate", "nan"), "model.rate must be a number, but is 'nan'");
  EXPECT_EQ(message_of("kind", "c"), "model.kind must be one of a, b, but is 'c'");
}

TEST(Fields, UnknownNamesGetTheNearestOne) {
  EXPECT_EQ(message_of("haeds", "4"), "unknown configuration key 'model.haeds': did you mean 'model.heads'?");
  EXPECT_THAT(message_of("zzzzzzzzzzzzzz", "4"), ::testing::HasSubstr("known keys: model.flag, model.heads"));
}

}  // namespace
}  // namespace performer
