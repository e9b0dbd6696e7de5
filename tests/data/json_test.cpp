// SPDX-License-Identifier: Apache-2.0
#include "performer/data/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

std::string fault_of(const std::string& text) {
  return error_of<InputError>([&] { parse_json_object(text, "f.json"); });
}

TEST(Json, SaysWhereATextStopsBeingJson) {
  EXPECT_EQ(
      fault_of("{\"a\": 1,\n \"b\": tru}"),
      "f.json, line 2, column 10: not JSON (invalid literal; last read: '\"b\": tru}'): write or copy the "
      "file again");
  EXPECT_THAT(fault_of("{\"a\": 1"),
              AllOf(StartsWith("f.json, line 1, column 8: not JSON (unexpected end of input"),
                    HasSubstr("expected '}'")));
  EXPECT_THAT(fault_of(""), StartsWith("f.json, line 1, column 1: not JSON"));
  EXPECT_THAT(fault_of("{\"a\": \"\xff\"}"), HasSubstr("ill-formed UTF-8"));
  EXPECT_THAT(fault_of("{} {}"), StartsWith("f.json, line 1, column 4: not JSON"));
  EXPECT_THAT(fault_of("{\"a\": 1e999}"), AllOf(StartsWith("f.json is damaged: "), HasSubstr("1e999")));
  EXPECT_LT(fault_of("{\"a\": \"" + std::string(100000, 'x')).size(), 300u);
}

TEST(Json, TakesObjectsOfBoundedDepth) {
  EXPECT_THAT(fault_of("[1]"), HasSubstr("expected a JSON object, found one value of type array"));
  const auto nested = [](int depth) {
    return "{\"a\":" + std::string(depth, '[') + std::string(depth, ']') + "}";
  };
  EXPECT_EQ(parse_json_object(nested(kDeepestJson - 1), "f.json").size(), 1u);
  EXPECT_THAT(fault_of(nested(100000)), HasSubstr("nested more than 32 deep"));
  const auto ordered = parse_json_object<nlohmann::ordered_json>(R"({"b": 1, "a": 2})", "f.json");
  EXPECT_EQ(ordered.begin().key(), "b");
}

TEST(Json, FieldsHaveTheTypeThatIsExpected) {
  const auto object = parse_json_object(
      R"({"t": "x", "w": -3, "n": 2.5, "b": true, "l": ["p", "q"], "big": 18446744073709551615, "m": [1, "x"]})",
      "f.json");
  EXPECT_EQ(json_field<std::string>(object, "t", "f.json"), "x");
  EXPECT_EQ(json_field<int64_t>(object, "w", "f.json"), -3);
  EXPECT_EQ(json_field<double>(object, "w", "f.json"), -3.0);
  EXPECT_EQ(json_field<double>(object, "n", "f.json"), 2.5);
  EXPECT_TRUE(json_field<bool>(object, "b", "f.json"));
  EXPECT_THAT(json_field<std::vector<std::string>>(object, "l", "f.json"), testing::ElementsAre("p", "q"));
  const auto refusal = [&]<class T>(T, const char* key) {
    return error_of<InputError>([&] { json_field<T>(object, key, "f.json"); });
  };
  EXPECT_EQ(refusal(std::string(), "none"), "f.json: 'none' is missing: expected text");
  EXPECT_EQ(refusal(int64_t{}, "n"), "f.json: 'n' must be a whole number, not 2.5");
  EXPECT_EQ(refusal(int64_t{}, "b"), "f.json: 'b' must be a whole number, not true");
  EXPECT_EQ(refusal(int64_t{}, "big"), "f.json: 'big' must be a whole number, not 18446744073709551615");
  EXPECT_EQ(refusal(bool{}, "w"), "f.json: 'w' must be true or false, not -3");
  EXPECT_EQ(refusal(double{}, "t"), "f.json: 't' must be a number, not \"x\"");
  EXPECT_EQ(refusal(std::vector<int64_t>(), "m"),
            "f.json: 'm' must be a list of whole numbers, not [1,\"x\"]");
}

TEST(Json, FaultsOfReadingAreInputErrorsInOurWords) {
  const auto object = parse_json_object(R"({"a": 5})", "f.json");
  const std::string fault = error_of<InputError>(
      [&] { read_json("f.json", "not as expected", [&] { return object.at("a").at("b").get<int64_t>(); }); });
  EXPECT_EQ(fault, "f.json: not as expected: expected an object or a list, found number");
  const auto of = [&](const auto& read) {
    return error_of<InputError>([&] { read_json("f.json", "not as expected", read); });
  };
  EXPECT_EQ(of([&] { return object.at("b").get<int64_t>(); }), "f.json: not as expected: key 'b' not found");
  EXPECT_EQ(of([&] { return object.at("a").get<std::string>(); }),
            "f.json: not as expected: type must be string, but is number");
  EXPECT_EQ(read_json("f.json", "not as expected", [&] { return object.at("a").get<int64_t>(); }), 5);
}

}  // namespace
}  // namespace performer::data
