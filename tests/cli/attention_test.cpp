// SPDX-License-Identifier: Apache-2.0
// performer attention, as a user runs it.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class AttentionCommand : public ProgramTest {};

TEST_F(AttentionCommand, WritesMatricesPicturesAndNumbers) {
  make_model();
  const Result result =
      run({"attention", "model", "train.fasta", "-o", "seen", "--records", "2", "--sequences", "5"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("correlation to BLOSUM62"));
  const json found = json::parse(read("seen/attention.json"));
  ASSERT_EQ(found.at("sequences").size(), 2u);
  const json& second = found["sequences"][1];
  EXPECT_EQ(second.at("heads").size(), found["layers"].get<size_t>() * found["heads"].get<size_t>());
  EXPECT_EQ(second.at("matrices"), "sequence_2.safetensors");
  EXPECT_TRUE(exists("seen/sequence_2.safetensors"));
  ASSERT_EQ(second.at("pictures").size(), found["layers"].get<size_t>());
  for (const json& picture : second["pictures"]) {
    EXPECT_THAT(read("seen/" + picture.at("file").get<std::string>()), HasSubstr("<desc>"));
  }
  const json& similarity = found.at("similarity");
  EXPECT_EQ(similarity.at("sequences"), 5);
  EXPECT_EQ(similarity.at("untrained").size(), 1u);
  EXPECT_TRUE(similarity["model"]["by_partners"]["correlation"].is_number());
  EXPECT_EQ(
      run({"attention", "model", "train.fasta", "-o", "again", "--records", "2", "--sequences", "5"}).code,
      0);
  EXPECT_EQ(read("again/attention.json"), read("seen/attention.json")) << "the same seed gives the same";
}

TEST_F(AttentionCommand, ShowsWhatIsAskedFor) {
  make_model();
  const Result result = run({"attention", "model", "train.fasta", "-o", "seen", "--layers", "0", "--heads",
                             "1", "--rows", "1:4", "--sequences", "0", "--matrix-tokens", "1"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("--matrix-tokens"));
  const json found = json::parse(read("seen/attention.json"));
  EXPECT_TRUE(found.at("similarity").is_null());
  EXPECT_TRUE(found["sequences"][0]["matrices"].is_null());
  EXPECT_EQ(found["sequences"][0]["heads"].size(), 1u);
  EXPECT_EQ(found["sequences"][0]["rows"], json({1, 4}));
}

TEST_F(AttentionCommand, NamesBadRequests) {
  make_model();
  const auto failure = [&](const Arguments& more, int code, const std::vector<std::string>& words) {
    Arguments arguments = {"attention", "model", "train.fasta", "-o", "seen"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    expect_failure(run(arguments), code, words);
    EXPECT_FALSE(exists("seen")) << "nothing is left behind";
  };
  failure({"--rows", "5"}, 2, {"--rows", "FIRST:LAST"});
  failure({"--rows", "5:100000"}, 2, {"--rows 5:100000"});
  failure({"--layers", "77"}, 2, {"--layers 77"});
  failure({"--ids", "nobody"}, 3, {"nobody", "train.fasta"});
  ASSERT_EQ(run({"train", "--preset", "tiny", "--train", "train.fasta", "-o", "projected", "--steps", "2",
                 "--set", "attention.kind=linformer", "--set", "attention.length=512", "--set",
                 "model.objective=masked", "--set", "data.batch_tokens=512"})
                .code,
            0);
  expect_failure(run({"attention", "projected", "train.fasta", "-o", "seen"}), 2,
                 {"linformer", "exact", "favor-softmax", "local"});
  expect_failure(run({"attention", "nowhere", "train.fasta", "-o", "seen"}), 3, {"nowhere"});
}

}  // namespace
}  // namespace performer::testing_cli
