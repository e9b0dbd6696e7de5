// SPDX-License-Identifier: Apache-2.0
// performer approx, as a user runs it.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class Approx : public ProgramTest {};

const Arguments kSmall = {"approx",      "--kinds",   "favor-softmax,favor-softmax:simplex",
                          "--features",  "64,16",     "--std",
                          "0.25",        "--lengths", "24",
                          "--head-size", "8",         "--draws",
                          "2",           "--layers",  "2"};

TEST_F(Approx, WritesTablesAndPicturesOfEveryStudy) {
  Arguments arguments = kSmall;
  arguments.insert(arguments.end(), {"-o", "study"});
  const Result result = run(arguments);
  ASSERT_EQ(result.code, 0) << result.err;
  for (const char* name : {"output_error", "kernel_error", "propagation", "orderings"}) {
    const json table = json::parse(read(std::string("study/") + name + ".json"));
    EXPECT_GT(table.at("rows").size(), 1u) << name;
    EXPECT_EQ(lines_of(read(std::string("study/") + name + ".tsv")).size(), table.at("rows").size() + 1)
        << name;
    EXPECT_THAT(result.out, HasSubstr(table.at("title").get<std::string>()));
  }
  EXPECT_THAT(read("study/output_error_std0.25_length24.svg"), HasSubstr("favor-softmax:simplex"));
  EXPECT_TRUE(exists("study/kernel_error.svg"));
  EXPECT_TRUE(exists("study/propagation_std0.25.svg"));
  const auto lines = lines_of(read("study/output_error.tsv"));
  EXPECT_EQ(columns_of(lines[2])[1], "16") << "features are sorted";
}

TEST_F(Approx, WithoutAFolderPrintsOnly) {
  Arguments arguments = kSmall;
  arguments.insert(arguments.end(), {"--studies", "output", "--causal"});
  const Result result = run(arguments);
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("uniform"));
  EXPECT_TRUE(files().empty());
}

TEST_F(Approx, MeasuresAModelHeadByHead) {
  make_model();
  const Result result = run({"approx", "--model", "model", "--input", "train.fasta", "--kinds",
                             "favor-softmax", "--features", "16", "--sequences", "3", "-o", "study"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("Exact softmax is the better choice in"));
  const json heads = json::parse(read("study/model_heads.json"));
  EXPECT_EQ(heads.at("rows").size(), json::parse(read("study/model_errors.json")).at("rows").size());
  EXPECT_GT(heads.at("rows")[0].at("squared_norm"), 0.0);
  EXPECT_TRUE(exists("study/model_errors.svg"));
}

TEST_F(Approx, NamesBadInput) {
  expect_failure(run({"approx", "--kinds", "favor-sofmax"}), 2, {"favor-sofmax", "favor-softmax"});
  expect_failure(run({"approx", "--kinds", "exact"}), 2, {"exact"});
  expect_failure(run({"approx", "--features", "0"}), 2, {"--features"});
  expect_failure(run({"approx", "--std", "-1"}), 2, {"--std"});
  expect_failure(run({"approx", "--studies", "outputs"}), 2, {"outputs"});
  expect_failure(run({"approx", "--model", "model"}), 2, {"--input"});
  expect_failure(run({"approx", "--model", "nowhere", "--input", "x.fasta"}), 3, {"nowhere"});
  write("file", "x");
  expect_failure(run({"approx", "--draws", "2", "-o", "file"}), 1, {"file"});
}

}  // namespace
}  // namespace performer::testing_cli
