// SPDX-License-Identifier: Apache-2.0
// performer bench, as a user runs it.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

class Bench : public ProgramTest {};

Arguments small(const Arguments& more = {}) {
  Arguments arguments = {"bench", "--lengths",  "24,48", "--heads",   "2",     "--head-size",
                         "8",     "--features", "16",    "--seconds", "0.001", "--repetitions",
                         "2",     "-t",         "1"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST_F(Bench, JsonIsAListOfRows) {
  const Result result = run(small({"--json", "--targets", "all"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const json rows = json::parse(result.out);
  ASSERT_TRUE(rows.is_array());
  ASSERT_FALSE(rows.empty());
  for (const json& row : rows) {
    EXPECT_EQ(row.at("op"), "favor");
    EXPECT_THAT(row.at("direction"), testing::AnyOf("bidirectional", "causal"));
    EXPECT_THAT(row.at("pass"), testing::AnyOf("forward", "forward_backward"));
    EXPECT_THAT(row.at("dtype"), testing::AnyOf("float32", "bfloat16"));
    EXPECT_THAT(row.at("length"), testing::AnyOf(24, 48));
    EXPECT_EQ(row.at("heads"), 2);
    EXPECT_EQ(row.at("head_size"), 8);
    EXPECT_FALSE(row.at("target").get<std::string>().empty());
    const std::string kind = row.at("kind");
    const int features = kind == "favor-softmax" || kind == "favor-trigonometric" ? 16
                         : kind == "favor-relu"                                   ? 8
                                                                                  : 0;
    EXPECT_EQ(row.at("features"), features) << kind << ": those of favor-relu are its inputs";
    EXPECT_GT(row.at("ns"), 0.0);
    EXPECT_GE(row.at("share_of_limit"), 0.0);
    EXPECT_LE(row.at("share_of_limit"), 1.0);
    EXPECT_EQ(row.contains("break_even"), kind.starts_with("favor-"));
  }
  EXPECT_THAT(result.err, HasSubstr("measuring what the processor can do"));
}

TEST_F(Bench, PrintsTablesAndWritesAFolder) {
  const Result result =
      run(small({"--kinds", "favor-relu,exact,identity", "--dtype", "float32", "-o", "speed"}));
  ASSERT_EQ(result.code, 0) << result.err;
  for (const char* words : {"Limit in float32", "ns per token and head", "of limit", "GFLOP/s", "MiB",
                            "Faster than exact softmax attention", "1 thread."}) {
    EXPECT_THAT(result.out, HasSubstr(words));
  }
  const json rows = json::parse(read("speed/bench.json"));
  EXPECT_EQ(rows.size(), 2u * 2 * 2 * 3);
  const std::string picture = read("speed/bench.svg");
  EXPECT_THAT(picture, HasSubstr("identity, the bound X (OPT)"));
  EXPECT_THAT(picture, HasSubstr("bidirectional: forward + backward"));
  EXPECT_THAT(picture, Not(HasSubstr("nan")));
  EXPECT_TRUE(picture.ends_with("</svg>\n"));
  for (const char* tag : {"text", "svg", "style", "title"}) {  // what is opened is closed
    size_t opened = 0, closed = 0;
    for (size_t at = 0; (at = picture.find(std::string("<") + tag, at)) != std::string::npos; ++at) ++opened;
    for (size_t at = 0; (at = picture.find(std::string("</") + tag, at)) != std::string::npos; ++at) ++closed;
    EXPECT_EQ(opened, closed) << tag;
  }
}

TEST_F(Bench, DecodesAndTrains) {
  const Result decode =
      run({"bench", "--op", "decode", "--batch", "2", "--heads", "2", "--head-size", "8", "--features", "16",
           "--seconds", "0.001", "--repetitions", "2", "--json", "-t", "1"});
  ASSERT_EQ(decode.code, 0) << decode.err;
  for (const json& row : json::parse(decode.out)) {
    EXPECT_EQ(row.at("direction"), "causal");
    EXPECT_GT(row.at("gbytes_per_second"), 0.0);
  }
  const Result train = run({"bench",
                            "--op",
                            "train",
                            "--preset",
                            "tiny",
                            "--lengths",
                            "32",
                            "--dtype",
                            "float32",
                            "--directions",
                            "bidirectional",
                            "--kinds",
                            "favor-relu,identity,identity+qk",
                            "--seconds",
                            "0.001",
                            "--repetitions",
                            "2",
                            "-t",
                            "1",
                            "--json",
                            "-o",
                            "speed"});
  ASSERT_EQ(train.code, 0) << train.err;
  const json rows = json::parse(train.out);
  EXPECT_EQ(rows.size(), 6u);
  for (const json& row : rows) {
    EXPECT_NEAR(row.at("tokens_per_second").get<double>() * row.at("ns").get<double>() * 2, 1e9, 1e3)
        << "ns are of a token and head, and there are two heads";
  }
  EXPECT_THAT(read("speed/bench.svg"), HasSubstr("training step"));
}

TEST_F(Bench, NamesBadInput) {
  expect_failure(run({"bench", "--op", "attention"}), 2, {"--op", "attention"});
  expect_failure(run({"bench", "--kinds", "favor-sofmax"}), 2, {"favor-sofmax", "favor-softmax"});
  expect_failure(run({"bench", "--kinds", "local"}), 2, {"--kinds", "local", "favor-softmax"});
  expect_failure(run({"bench", "--dtype", "float8"}), 2, {"--dtype", "float8"});
  expect_failure(run({"bench", "--targets", "gpu"}), 2, {"--targets", "gpu"});
  expect_failure(run({"bench", "--lengths", "0"}), 2, {"--lengths"});
  expect_failure(run({"bench", "--op", "train", "--preset", "huge"}), 2, {"huge"});
  expect_failure(run({"bench", "--op", "train", "--targets", "all"}), 2,
                 {"--targets", "PERFORMER_CPU_TARGET"});
  expect_failure(run({"bench", "--op", "decode", "--lengths", "8"}), 2, {"--lengths"});
  write("file", "x");
  expect_failure(run(small({"-o", "file"})), 1, {"file"});
}

}  // namespace
}  // namespace performer::testing_cli
