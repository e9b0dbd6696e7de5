// SPDX-License-Identifier: Apache-2.0
// Models of DNA, text and images: trained for a few steps, then evaluated, scored and sampled.
#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numbers>

#include "performer/base/philox.h"
#include "performer/data/image/picture.h"
#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

const data::ImageShape kShape{4, 3, 3};

class KindsOfData : public ProgramTest {
 protected:
  // Trains "model" on a file or folder.
  void train(const std::string& source, const Arguments& more = {}) {
    Arguments options = {"--steps", "20", "--set", "train.learning_rate=0.01"};
    options.insert(options.end(), more.begin(), more.end());
    const Result result = run(train_arguments(source, "model", options));
    ASSERT_EQ(result.code, 0) << result.err;
    const auto by_step = losses(read("model/metrics.jsonl"));
    ASSERT_EQ(by_step.size(), 20u);
    EXPECT_LT(std::stod(by_step.at(20)), std::stod(by_step.at(1)));
  }

  Result succeed(const Arguments& arguments) {
    const Result result = run(arguments);
    EXPECT_EQ(result.code, 0) << result.err;
    return result;
  }

  // Both tables of `score` agree with each other and, over all tokens, with `evaluate`.
  void check_scores(const std::string& source, const std::string& token_column, const std::string& bits) {
    const auto lines = lines_of(succeed({"score", "model", source}).out);
    const auto tokens = lines_of(succeed({"score", "model", source, "--per-token"}).out);
    EXPECT_EQ(lines.at(0), "id\tlength\ttotal_log_likelihood\tmean_log_likelihood\tperplexity" +
                               (bits.empty() ? "" : "\t" + bits));
    EXPECT_EQ(tokens.at(0), "id\tposition\t" + token_column + "\tlog_probability");
    EXPECT_EQ(run({"score", "model", source, "--per-residue"}).out,
              run({"score", "model", source, "--per-token"}).out);
    double total = 0, counted = 0;
    size_t at = 1;
    for (size_t i = 1; i < lines.size(); ++i) {
      const auto columns = columns_of(lines[i]);
      ASSERT_EQ(columns.size(), bits.empty() ? 5u : 6u);
      double sum = 0;
      for (int position = 1; position <= std::stoi(columns[1]); ++position, ++at) {
        const auto token = columns_of(tokens.at(at));
        ASSERT_EQ(token.size(), 4u) << tokens.at(at);
        EXPECT_EQ(token[0], columns[0]);
        EXPECT_EQ(token[1], std::to_string(position));
        sum += std::stod(token[3]);
      }
      EXPECT_NEAR(sum, std::stod(columns[2]), 1e-3);
      if (!bits.empty()) {
        EXPECT_NEAR(std::stod(columns[5]), -std::stod(columns[3]) / std::numbers::ln2, 1e-5);
      }
      total += sum;
      counted += std::stod(columns[1]);
    }
    EXPECT_EQ(at, tokens.size());
    const json report = json::parse(succeed({"evaluate", "model", source, "--json"}).out);
    EXPECT_EQ(report.at("model").at("tokens"), counted);
    EXPECT_NEAR(report.at("model").at("perplexity").get<double>(), std::exp(-total / counted),
                1e-3 * std::exp(-total / counted));
    if (!bits.empty()) {
      EXPECT_NEAR(report.at("model").at(bits).get<double>(), -total / counted / std::numbers::ln2, 1e-3);
    }
  }

  json model_info() { return json::parse(succeed({"info", "model", "--json"}).out).at("model"); }

  // Pictures whose values grow from left to right, some brighter than others.
  void make_pictures(const std::string& folder, int count) const {
    std::filesystem::create_directory(path(folder));
    for (int i = 0; i < count; ++i) {
      PhiloxStream random(3, static_cast<uint32_t>(i));
      const auto base = static_cast<data::Token>(random.below(60));
      std::vector<data::Token> values;
      for (int64_t v = 0; v < kShape.tokens(); ++v)
        values.push_back(static_cast<data::Token>(base + 4 * (v % 9)));
      data::write_png(path(folder + "/" + std::to_string(i) + ".png"), kShape, values);
    }
  }
  data::Picture picture(const std::string& name) const { return data::decode_picture(read(name), name); }
};

TEST_F(KindsOfData, Dna) {
  std::string fasta;
  for (int i = 0; i < 60; ++i) {
    PhiloxStream random(9, static_cast<uint32_t>(i));
    fasta += ">gene_" + std::to_string(i + 1) + "\n";
    for (uint64_t left = 20 + random.below(30), base = 0; left > 0; --left) {
      base = random.uniform() < 0.7 ? (base + 1) % 4 : random.below(4);
      fasta += "ACGT"[base];
    }
    fasta += "\n";
  }
  write("genes.fasta", fasta);
  train("genes.fasta", {"--set", "data.vocabulary=dna"});
  check_scores("genes.fasta", "residue", "");
  // The IUPAC letters of DNA are read by the rules of its vocabulary, and counted.
  write("codes.fasta", ">a\nACGURYN\n");
  const Result codes = succeed({"score", "model", "codes.fasta", "--per-token"});
  std::string letters;
  for (const auto& line : lines_of(codes.out)) letters += columns_of(line).at(2);
  EXPECT_EQ(letters, "residueACGTNNN");
  EXPECT_THAT(codes.err, HasSubstr("1 sequences, 7 nucleotides"));

  const auto lines =
      lines_of(succeed({"generate", "model", "-n", "3", "--prompt", "ACG", "--max-length", "30"}).out);
  ASSERT_EQ(lines.size(), 6u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_THAT(lines[2 * i], StartsWith(">generated_" + std::to_string(i + 1) + " length="));
    EXPECT_THAT(lines[2 * i + 1], StartsWith("ACG"));
    EXPECT_EQ(lines[2 * i + 1].find_first_not_of("ACGTN"), std::string::npos);
  }
  expect_failure(run({"generate", "model", "--prompt", "ACE"}), 3, {"prompt", "position 3", "'E'"});
  expect_failure(run({"generate", "model", "--prompt-image", "x.png"}), 2, {"--prompt-image", "nucleotides"});
  EXPECT_EQ(model_info().at("vocabulary").at("name"), "dna");
  EXPECT_EQ(model_info().at("format"), "fasta");
  EXPECT_TRUE(model_info().at("image_shape").is_null());
  EXPECT_THAT(run({"info", "model"}).out,
              AllOf(HasSubstr("dna (5 symbols, nucleotides)"), HasSubstr("fasta")));
}

TEST_F(KindsOfData, Text) {
  std::filesystem::create_directory(path("texts"));
  for (int i = 0; i < 40; ++i) {
    std::string text;
    for (int line = 0; line <= i % 3; ++line) text += "line " + std::to_string(i + line) + " of a text\n";
    write("texts/" + std::to_string(100 + i) + ".txt", text);
  }
  train("texts");
  check_scores("texts", "token", "bits_per_byte");
  // A byte that would break the table is written as an escape.
  write("new line.txt", "a b\n");
  const auto lines = lines_of(succeed({"score", "model", "new line.txt", "--per-token"}).out);
  EXPECT_EQ(columns_of(lines.at(1)).at(0), "new_line.txt");
  EXPECT_EQ(columns_of(lines.at(2)).at(2), "\\s");
  EXPECT_EQ(columns_of(lines.at(4)).at(2), "\\n");

  const Arguments arguments = {"generate", "model",        "-n", "3",      "--prompt",
                               "line ",    "--max-length", "40", "--seed", "2"};
  const Result together = succeed(arguments);
  EXPECT_THAT(together.err, AllOf(HasSubstr("generated_3 length="), HasSubstr("mean_log_likelihood=-")));
  Arguments apart = arguments;
  apart.insert(apart.end(), {"-o", "samples/"});
  EXPECT_EQ(succeed(apart).out, "");
  std::string joined;
  for (int i = 1; i <= 3; ++i) {
    const std::string text = read("samples/generated_" + std::to_string(i) + ".txt");
    EXPECT_THAT(text, StartsWith("line "));
    EXPECT_LE(text.size(), 40u);
    if (!joined.empty()) joined += joined.ends_with('\n') ? "\n" : "\n\n";
    joined += text;
  }
  EXPECT_EQ(together.out, joined);
  EXPECT_EQ(model_info().at("vocabulary").at("name"), "bytes");
}

TEST_F(KindsOfData, Images) {
  make_pictures("pictures", 40);
  train("pictures");
  check_scores("pictures", "token", "bits_per_dimension");
  EXPECT_EQ(model_info().at("image_shape"), "4x3x3");
  EXPECT_THAT(run({"info", "model"}).out, HasSubstr("4x3x3"));

  succeed({"generate", "model", "-o", "one.png", "--seed", "6"});
  EXPECT_EQ(picture("one.png").shape, kShape);
  EXPECT_EQ(run({"generate", "model", "--seed", "6"}).out, read("one.png")) << "standard output";
  succeed({"generate", "model", "-n", "3", "-o", "samples", "--prompt-image", "pictures/7.png",
           "--prompt-rows", "2", "--seed", "6"});
  EXPECT_FALSE(exists("samples/generated_4.png"));
  const auto given = picture("pictures/7.png").values;
  for (int i = 1; i <= 3; ++i) {
    const data::Picture sample = picture("samples/generated_" + std::to_string(i) + ".png");
    EXPECT_EQ(sample.shape, kShape);
    const auto values = 2 * kShape.width * kShape.channels;
    EXPECT_TRUE(std::equal(given.begin(), given.begin() + values, sample.values.begin()));
    EXPECT_NE(sample.values, given);
  }
  EXPECT_EQ(lines_of(succeed({"score", "model", "samples"}).out).size(), 4u) << "samples can be read again";
}

TEST_F(KindsOfData, ImagesThatCannotBeMadeLeaveNothing) {
  make_pictures("pictures", 8);
  train("pictures", {"--set", "data.holdout=0"});
  const auto before = files();
  expect_failure(run({"generate", "model", "-n", "2"}), 2, {"2 images", "-o DIR"});
  expect_failure(run({"generate", "model", "--max-length", "9", "-o", "a.png"}), 2,
                 {"--max-length", "4x3x3"});
  expect_failure(run({"generate", "model", "--prompt", "x", "-o", "a.png"}), 2, {"--prompt-image"});
  expect_failure(run({"generate", "model", "--prompt-rows", "1", "-o", "a.png"}), 2, {"--prompt-image"});
  expect_failure(
      run({"generate", "model", "--prompt-image", "pictures/0.png", "--prompt-rows", "4", "-o", "made/"}), 2,
      {"--prompt-rows", "0 and 3"});
  data::write_png(path("large.png"), {8, 8, 3}, std::vector<data::Token>(192, 1));
  std::vector<std::string> with_large = before;
  with_large.push_back(path("large.png"));
  expect_failure(run({"generate", "model", "--prompt-image", "large.png", "-o", "made/"}), 3,
                 {"large.png", "8x8x3", "4x3x3"});
  expect_failure(run({"score", "model", "large.png"}), 3, {"large.png", "8x8x3", "4x3x3"});
  write("proteins.fasta", ">a\nMKT\n");
  with_large.push_back(path("proteins.fasta"));
  EXPECT_EQ(run({"score", "model", "proteins.fasta"}).code, 3);
  std::sort(with_large.begin(), with_large.end());
  EXPECT_EQ(files(), with_large);
}

}  // namespace
}  // namespace performer::testing_cli
