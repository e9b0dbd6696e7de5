// SPDX-License-Identifier: Apache-2.0
#include "performer/base/numbers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <clocale>
#include <cmath>

#include "performer/base/error.h"
#include "tests/errors.h"

namespace performer {
namespace {

using performer::test::error_of;
using testing::AllOf;
using testing::HasSubstr;

std::string whole_error(std::string_view text, const WholeRange& range = {}) {
  return error_of<UsageError>([&] { parse_whole("count", text, range); });
}
std::string real_error(std::string_view text, const RealRange& range = {}) {
  return error_of<UsageError>([&] { parse_real("rate", text, range); });
}
std::string duration_error(std::string_view text) {
  return error_of<UsageError>([&] { parse_duration("--time-limit", text); });
}

TEST(WholeNumbers, AreDecimalAndExact) {
  const std::vector<std::pair<const char*, int64_t>> cases = {{"0", 0},
                                                              {"-0", 0},
                                                              {"7", 7},
                                                              {"-7", -7},
                                                              {"010", 10},
                                                              {"08", 8},
                                                              {"-010", -10},
                                                              {"000", 0},
                                                              {"1_000", 1000},
                                                              {"1e3", 1000},
                                                              {"1E+3", 1000},
                                                              {"1.5e3", 1500},
                                                              {"4.0", 4},
                                                              {"4.", 4},
                                                              {"20e-1", 2},
                                                              {".5e1", 5},
                                                              {"0e99999999999999999999", 0},
                                                              {"0.000000000000000000000001e24", 1},
                                                              {"9223372036854775807", INT64_MAX},
                                                              {"-9223372036854775808", INT64_MIN},
                                                              {"9007199254740993", 9007199254740993},
                                                              {"9.223372036854775807e18", INT64_MAX}};
  for (const auto& [text, value] : cases) EXPECT_EQ(parse_whole("count", text), value) << text;
}

TEST(WholeNumbers, NameWhatIsNone) {
  for (const char* text : {"",     " ",     "-",    "+5",   " 5",    "5 ",    "0x10", "1e",      "e3",
                           ".",    "1.5",   "1e-1", "1__0", "_1",    "1_",    "1_.5", "1._5",    "1_e3",
                           "five", "1,000", "inf",  "nan",  "1.2.3", "1e3.0", "--1",  "\xd9\xa3"}) {
    EXPECT_THAT(whole_error(text), HasSubstr("count must be a whole number, but is '")) << text;
  }
  EXPECT_EQ(whole_error("4.5"), "count must be a whole number, but is '4.5'");
}

TEST(WholeNumbers, KeepTheirRange) {
  const std::string all =
      "count must be a whole number between -9223372036854775808 and 9223372036854775807, but is '";
  for (const char* text : {"9223372036854775808", "-9223372036854775809", "99999999999999999999", "1e19",
                           "1e300", "18446744073709551616", "1e99999999999999999999", "-1e19"}) {
    EXPECT_EQ(whole_error(text), all + text + "'");
  }
  EXPECT_EQ(parse_whole("count", "8", {1, 8}), 8);
  EXPECT_EQ(whole_error("9", {1, 8}), "count must be a whole number between 1 and 8, but is '9'");
  EXPECT_EQ(whole_error("x", {1, 8}), "count must be a whole number between 1 and 8, but is 'x'");
  EXPECT_EQ(whole_error("0", {.least = 1}), "count must be a whole number of at least 1, but is '0'");
  EXPECT_EQ(whole_error("1e30", {.most = 1}), "count must be a whole number of at most 1, but is '1e30'");
  EXPECT_THAT(whole_error(std::string(1000, '9')), testing::SizeIs(testing::Lt(250u)));
  EXPECT_THAT(whole_error("1\n2\x1b[31m"), HasSubstr("'1\\n2\\x1b[31m'"));
}

TEST(UnsignedNumbers, UseAllBitsAndDoNotWrap) {
  EXPECT_EQ(parse_unsigned("seed", "18446744073709551615"), UINT64_MAX);
  EXPECT_EQ(parse_unsigned("seed", "010"), 10u);
  EXPECT_EQ(parse_unsigned("seed", "-0"), 0u);
  for (const char* text : {"-1", "18446744073709551616", "1e20"}) {
    EXPECT_EQ(
        error_of<UsageError>([&] { parse_unsigned("seed", text); }),
        std::string("seed must be a whole number between 0 and 18446744073709551615, but is '") + text + "'");
  }
  EXPECT_THAT(error_of<UsageError>([] { parse_unsigned("seed", "9", 8); }), HasSubstr("of at most 8"));
}

TEST(Reals, AreFiniteAndDecimal) {
  const std::vector<std::pair<const char*, double>> cases = {{"0", 0},
                                                             {"0.1", 0.1},
                                                             {"-1e-3", -1e-3},
                                                             {"010.50", 10.5},
                                                             {"1_000.5", 1000.5},
                                                             {".5", 0.5},
                                                             {"5.", 5},
                                                             {"1e308", 1e308},
                                                             {"4.9e-324", 4.9e-324},
                                                             {"0e-999", 0},
                                                             {"1234567890123456789", 1234567890123456789.0},
                                                             {"0.30000000000000004", 0.1 + 0.2}};
  for (const auto& [text, value] : cases) EXPECT_EQ(parse_real("rate", text), value) << text;
  for (const char* text : {"", "nan", "inf", "-inf", "infinity", "0x1p3", "1,5", "abc", "1e", "--1"}) {
    EXPECT_EQ(real_error(text), std::string("rate must be a number, but is '") + text + "'");
  }
  EXPECT_THAT(real_error("1e309"), HasSubstr("rate must be a number between -1.797"));
  EXPECT_THAT(real_error("-1e99999"), HasSubstr("rate must be a number between -1.797"));
  EXPECT_EQ(real_error("1e-400"), "rate must be a number, but '1e-400' is too close to 0 to be told from it");
  EXPECT_EQ(real_error("2", {0, 1}), "rate must be a number between 0 and 1, but is '2'");
  EXPECT_EQ(real_error("-2", {.least = 0}), "rate must be a number of at least 0, but is '-2'");
}

TEST(Reals, DoNotDependOnTheLocale) {
  const char* before = std::setlocale(LC_ALL, nullptr);
  const std::string saved = before;
  if (std::setlocale(LC_ALL, "de_DE.UTF-8") == nullptr) GTEST_SKIP() << "no locale with a comma is installed";
  EXPECT_EQ(parse_real("rate", "0.5"), 0.5);
  std::setlocale(LC_ALL, saved.c_str());
}

TEST(Durations, AreReadAsUsersWriteThem) {
  const std::vector<std::pair<const char*, double>> cases = {
      {"90", 90},       {"90s", 90},         {"90 s", 90},           {"1.5m", 90},
      {"1h30m", 5400},  {"1h 30m", 5400},    {"00:30:00", 1800},     {"30:00", 1800},
      {"90:00", 5400},  {"1d", 86400},       {"2d 3h", 183600},      {"2 days 3 hours", 183600},
      {"1e3", 1000},    {"0.5h", 1800},      {"010m", 600},          {"1d2h3m4s", 93784},
      {"1-12", 129600}, {"1-12:30", 131400}, {"1-12:30:15", 131415}, {"100:00:00", 360000},
      {"2 min", 120},   {"1e-9", 1e-9},      {"1_000s", 1000},       {"36525d", 36525.0 * 86400},
      {"10.s", 10}};
  for (const auto& [text, seconds] : cases) {
    EXPECT_DOUBLE_EQ(parse_duration("--time-limit", text), seconds) << text;
  }
}

TEST(Durations, ListTheirFormsWhereTheyAreNone) {
  for (const char* text : {"",         " ",          "0",      "0s",     "-5m",    "-5",
                           "nan",      "inf",        "1e400",  "5M",     "5x",     "m",
                           "s90",      "1h30",       "30m1h",  "1m1m",   "1:2",    "1:60",
                           "00:60:00", "1:00:00:00", "1-24",   "1-",     "-1",     "1-1-1",
                           ":30",      "30:",        "1h-5m",  "1.5:00", "36526d", "99999999999:00",
                           "9e99d",    "0-00:00:00", "1e-400", "90 s s", "1 2",    "1d 12:00:00",
                           " 90",      "PT1H"}) {
    EXPECT_THAT(duration_error(text), AllOf(HasSubstr("--time-limit must be a time span above 0"),
                                            HasSubstr("but is '" + std::string(text) + "'"),
                                            HasSubstr("1h30m"), HasSubstr("00:30:00")))
        << text;
  }
}

}  // namespace
}  // namespace performer
