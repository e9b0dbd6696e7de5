// SPDX-License-Identifier: Apache-2.0
// Training runs on every kind of data: DNA, text, images, and symbols that a file lists.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/models/folder.h"
#include "tests/train/runs.h"

namespace performer::train {
namespace {

using ::testing::HasSubstr;
using testing::losses;
using testing::records;

class CorporaTest : public testing::RunTest {
 protected:
  // A request for other data than proteins; as quick as it can be.
  LanguageModelRequest request_for(const std::string& output, const std::string& data) {
    LanguageModelRequest made = request(output);
    made.train_files = {data};
    made.train.steps = 4;
    made.train.evaluate_every = 0;
    return made;
  }
  // Trains, and checks that a run which is stopped and resumed gives the same.
  ModelFolder trained(const LanguageModelRequest& whole) {
    run(whole);
    LanguageModelRequest parts = whole;
    parts.output += "-parts";
    parts.train.steps = 3;
    run(parts);
    parts.resume = true;
    parts.train.steps = whole.train.steps;
    run(parts);
    EXPECT_EQ(losses(parts.output), losses(whole.output));
    return load_model(whole.output);
  }
  static nlohmann::json last_evaluation(const std::string& output) {
    nlohmann::json found;
    for (const auto& record : records(output)) {
      if (record.contains("valid")) found = record["valid"];
    }
    return found;
  }
  // `count` files with random bytes below `values`, `size` in each, in a folder of their own.
  std::string random_files(const std::string& name, const std::string& ending, int count, int size,
                           uint64_t values) {
    PhiloxStream random(7);
    std::filesystem::create_directories(folder_ / name);
    for (int i = 0; i < count; ++i) {
      std::string bytes;
      for (int at = 0; at < size; ++at) bytes += static_cast<char>('!' + random.below(values));
      write_file(folder_ / (name + "/" + fmt::format("{:03}", i) + ending), bytes);
    }
    return folder_ / name;
  }
};

TEST_F(CorporaTest, Text) {
  const LanguageModelRequest with = request_for("run", random_files("texts", ".txt", 30, 40, 20));
  const ModelFolder model = trained(with);
  EXPECT_EQ(model.model->vocabulary(), 256 + 4);
  EXPECT_TRUE(model.vocabulary == data::Vocabulary::bytes());
  EXPECT_EQ(model.data.format, "text");
  EXPECT_EQ(model.data.vocabulary, "bytes");

  const nlohmann::json valid = last_evaluation(with.output);
  for (const char* part : {"model", "unigram", "bigram"}) {
    EXPECT_NEAR(valid[part]["bits_per_byte"].get<double>(),
                std::log2(valid[part]["perplexity"].get<double>()), 1e-9);
    EXPECT_FALSE(valid[part].contains("bits_per_dimension"));
  }
}

TEST_F(CorporaTest, Images) {
  LanguageModelRequest with = request_for("run", random_files("images", ".u8", 30, 4 * 5 * 3, 90));
  with.data.image_shape = "4x5x3";
  with.data.length = 128;  // image and end
  with.data.crop = "error";
  const ModelFolder model = trained(with);
  EXPECT_TRUE(model.vocabulary == data::Vocabulary::pixels());
  EXPECT_EQ(model.data.format, "image");
  EXPECT_EQ(model.data.image_shape, "4x5x3");
  const nlohmann::json valid = last_evaluation(with.output);
  EXPECT_NEAR(valid["model"]["bits_per_dimension"].get<double>(),
              std::log2(valid["model"]["perplexity"].get<double>()), 1e-9);
  EXPECT_EQ(valid["model"]["tokens"], valid["sequences"].get<int64_t>() * 60);
  EXPECT_FALSE(valid["end_marker"].contains("bits_per_dimension"));

  // What cannot be held in one piece is found out before anything is trained.
  LanguageModelRequest refused = request_for("refused", with.train_files[0]);
  refused.data.image_shape = "4x5x3";
  refused.data.crop = "error";
  EXPECT_THAT(failure(refused), HasSubstr("data.crop is error"));
  EXPECT_TRUE(std::filesystem::is_empty(refused.output));
}

TEST_F(CorporaTest, Dna) {
  std::string text;
  for (int i = 0; i < 30; ++i) text += fmt::format(">r{}\nACGTNacgtRYU{}\n", i, std::string(i + 1, 'A'));
  write_file(folder_ / "dna.fasta", text);
  LanguageModelRequest with = request_for("run", folder_ / "dna.fasta");
  with.data.vocabulary = "dna";
  const ModelFolder model = trained(with);
  EXPECT_TRUE(model.vocabulary == data::Vocabulary::dna());
  EXPECT_EQ(model.data.format, "fasta");
  EXPECT_FALSE(last_evaluation(with.output)["model"].contains("bits_per_byte"));
}

// The held-out files are read as the training files were.
TEST_F(CorporaTest, AVocabularyFromAFile) {
  write_file(folder_ / "syllables.txt", "la\nlo\nli\n");
  write_file(folder_ / "songs", "lalalo\n\nlolila\n\nlilililo\n");
  write_file(folder_ / "valid", "lalali\n\nlilo\n");
  LanguageModelRequest with = request_for("run", folder_ / "songs");
  with.valid_files = {folder_ / "valid"};
  with.data.vocabulary = folder_ / "syllables.txt";
  with.data.documents = "blank-line";
  with.model.objective = "masked";
  with.data.mask_rate = 0.5;
  const ModelFolder model = trained(with);
  EXPECT_EQ(model.model->vocabulary(), 3 + 4);
  EXPECT_EQ(model.vocabulary.name(), "syllables");
  EXPECT_EQ(model.data.vocabulary, "syllables") << "the folder holds the vocabulary itself: the file may go";
  const nlohmann::json valid = last_evaluation(with.output);
  EXPECT_EQ(valid["sequences"], 2);
  EXPECT_FALSE(valid["model"].contains("bits_per_byte")) << "a token is two bytes";

  LanguageModelRequest other = request_for("other", folder_ / "songs");
  other.data.documents = "blank-line";
  other.valid_files = {fasta_};
  EXPECT_EQ(failure(other), "") << "bytes are bytes";
  other = request_for("proteins", fasta_);
  other.valid_files = {folder_ / "songs"};
  EXPECT_THAT(failure(other), HasSubstr("songs")) << "the training files are FASTA, this one is not";
}

}  // namespace
}  // namespace performer::train
