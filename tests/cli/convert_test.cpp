// SPDX-License-Identifier: Apache-2.0
// From a pretrained model of another program to scores, and back.
#include <gmock/gmock.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

std::string pretrained(const std::string& name) {
  return std::string(PERFORMER_SOURCE_DIR) + "/tests/models/pretrained/" + name;
}

// A file of safetensors without the tensors whose names begin with `prefix`.
std::string without_tensors(const std::string& file, const std::string& prefix) {
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  const json header = json::parse(file.substr(sizeof(length), length));
  const std::string data = file.substr(sizeof(length) + length);
  json kept_header = json::object();
  std::string kept;
  for (const auto& [name, entry] : header.items()) {
    if (name.starts_with(prefix)) continue;
    kept_header[name] = entry;
    if (name == "__metadata__") continue;
    const auto offsets = entry["data_offsets"].get<std::vector<size_t>>();
    kept_header[name]["data_offsets"] = {kept.size(), kept.size() + offsets[1] - offsets[0]};
    kept += data.substr(offsets[0], offsets[1] - offsets[0]);
  }
  std::string text = kept_header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text + kept;
}

class Convert : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    write("proteins.fasta", ">a\nMKTAYIAKQR\n>b\nGSHMJLVA\n>c\nMKVLAAG\n>d\nAAAKKKLLL\n");
  }
};

TEST_F(Convert, MakesAModelThatScoresAndEvaluates) {
  const Result made = run({"convert", pretrained("esm2"), "-o", "model"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_THAT(made.err, HasSubstr("is esm"));
  EXPECT_THAT(made.err, HasSubstr("contact_head.regression.weight"));
  EXPECT_FALSE(exists("model/baselines.json"));
  const Result scores = run({"score", "model", "proteins.fasta", "--quiet"});
  EXPECT_EQ(scores.code, 0) << scores.err;
  EXPECT_THAT(scores.out, HasSubstr("\nc\t7\t"));
  const Result evaluated = run({"evaluate", "model", "proteins.fasta", "--json", "--quiet"});
  ASSERT_EQ(evaluated.code, 0) << evaluated.err;
  EXPECT_FALSE(json::parse(evaluated.out)["model"].is_null());
  EXPECT_TRUE(json::parse(evaluated.out)["unigram"].is_null()) << "there are no counts of its training data";
  expect_failure(run({"convert", pretrained("esm2"), "-o", "model"}), 2, {"holds a model already"});
  expect_failure(run({"convert", "model", "-o", "other"}), 3, {"already"});
  ASSERT_EQ(run({"export", "model", "-o", "theirs", "--quiet"}).code, 0);
  EXPECT_TRUE(exists("theirs/vocab.txt"));
  EXPECT_EQ(json::parse(read("theirs/config.json"))["model_type"], "esm");
}

TEST_F(Convert, ReadsIdsWhereThereIsNoTokenizer) {
  expect_failure(run({"convert", pretrained("gpt2"), "-o", "model"}), 2, {"--tokenizer ids"});
  EXPECT_FALSE(exists("model"));
  ASSERT_EQ(run({"convert", pretrained("gpt2"), "-o", "model", "--tokenizer", "ids", "--quiet"}).code, 0);
  write("ids.txt", "1 2 3 25\n\n7 7 7\n");
  const Result scores = run({"score", "model", "ids.txt", "--quiet"});
  EXPECT_EQ(scores.code, 0) << scores.err;
  EXPECT_THAT(scores.out, HasSubstr("ids.txt:1\t4\t"));
  write("bad.txt", "1 26\n");
  expect_failure(run({"score", "model", "bad.txt"}), 3, {"column 3"});
  const Result sample = run({"generate", "model", "--quiet", "--seed", "1"});
  EXPECT_EQ(sample.code, 0) << sample.err;
  EXPECT_THAT(sample.out, testing::MatchesRegex("[0-9 \n]*"));
}

TEST_F(Convert, SaysThatAnotherAttentionMustLearnFirst) {
  const Result made = run({"convert", pretrained("bert"), "-o", "model", "--attention", "favor-softmax",
                           "--set", "attention.features=32"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_THAT(made.err, HasSubstr("attention was replaced by favor-softmax"));
  EXPECT_EQ(json::parse(read("model/config.json"))["attention"]["features"], 32);
  expect_failure(run({"export", "model", "-o", "theirs"}), 2, {"exact attention, not favor-softmax"});
  expect_failure(run({"convert", pretrained("bert"), "-o", "m", "--attention", "favor-sotfmax"}), 2,
                 {"favor-softmax"});
  expect_failure(run({"convert", pretrained("bert"), "-o", "m", "--finetune", "3"}), 2, {"--transfer"});
  expect_failure(run({"convert", pretrained("bert"), "-o", "m", "--transfer", "proteins.fasta"}), 2,
                 {"--attention"});
  expect_failure(run({"convert", "missing", "-o", "m"}), 3, {"there is no missing"});
  expect_failure(run({"convert", "proteins.fasta", "-o", "m"}), 3, {"no file of weights"});
}

TEST_F(Convert, RecordsWhatTransferWasWorth) {
  std::string sequences;
  for (int i = 0; i < 30; ++i)
    sequences += ">" + std::to_string(i) + "\nMKTAY" + std::string(1 + i % 7, "ACDEFGH"[i % 7]) + "LV\n";
  write("many.fasta", sequences);
  const Result made = run({"convert", pretrained("bert"), "-o", "model", "--attention", "favor-hedgehog",
                           "--transfer", "many.fasta", "--transfer-steps", "3", "--exact-threshold", "1e-6",
                           "--finetune", "2", "--set", "data.holdout=0.3", "--set", "data.length=18"});
  ASSERT_EQ(made.code, 0) << made.err;
  const json report = json::parse(read("model/conversion.json"));
  EXPECT_EQ(report["stages"].size(), 5U);
  EXPECT_EQ(report["exact_heads"], 8);
  EXPECT_THAT(made.err, HasSubstr("Not worth it: with this threshold all heads stay exact"));
  EXPECT_EQ(json::parse(read("model/config.json"))["attention"]["kind"], "hybrid");
}

TEST_F(Convert, MeasuresRepresentationsWhereTheSourceHasNoHead) {
  std::filesystem::copy(pretrained("bert"), path("encoder"));
  write("encoder/model.safetensors", without_tensors(read("encoder/model.safetensors"), "cls."));
  std::string sequences;
  for (int i = 0; i < 30; ++i)
    sequences += ">" + std::to_string(i) + "\nMKTAY" + std::string(1 + i % 7, "ACDEFGH"[i % 7]) + "LV\n";
  write("many.fasta", sequences);
  Arguments words = {"convert",
                     "encoder",
                     "-o",
                     "model",
                     "--attention",
                     "favor-hedgehog",
                     "--set",
                     "data.length=18",
                     "--set",
                     "data.holdout=0.3",
                     "--transfer",
                     "many.fasta",
                     "--transfer-steps",
                     "3"};
  const Result made = run(words);
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_THAT(made.err, HasSubstr("the source has no language-model head"));
  EXPECT_THAT(made.err, HasSubstr("cosine similarity of"));
  EXPECT_THAT(made.err, Not(HasSubstr("accuracy")));
  const json report = json::parse(read("model/conversion.json"));
  EXPECT_EQ(report["stages"].size(), 3U);
  EXPECT_FALSE(report["stages"]["transferred"].contains("perplexity"));
  EXPECT_LT(report["stages"]["transferred"]["cosine_similarity"], 1);
  words[3] = "other";
  words.insert(words.end(), {"--finetune", "2"});
  expect_failure(run(words), 2, {"encoder has no language-model head", "performer train --from"});
  EXPECT_FALSE(exists("other"));
}

}  // namespace
}  // namespace performer::testing_cli
