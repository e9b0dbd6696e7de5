// SPDX-License-Identifier: Apache-2.0
// From FASTA to a model, its evaluation, scores and samples.
#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class Chain : public ProgramTest {
 protected:
  void check_training() {
    make_model("model", {"--steps", "60", "--set", "train.learning_rate=0.01"});
    for (const char* name : {"config.json", "model.safetensors", "training.safetensors", "baselines.json"}) {
      EXPECT_TRUE(exists(std::string("model/") + name)) << name;
    }
    const auto by_step = losses(read("model/metrics.jsonl"));
    ASSERT_EQ(by_step.size(), 60u);
    EXPECT_LT(std::stod(by_step.at(60)), std::stod(by_step.at(1)));
    // A run never writes over another one.
    expect_failure(run(train_arguments("train.fasta", "model")), 2, {"model", "--resume"});
  }

  void check_evaluation() {
    const Result result = run({"evaluate", "model", "valid.fasta", "--json", "-t", "1"});
    ASSERT_EQ(result.code, 0) << result.err;
    const json report = json::parse(result.out);
    for (const char* name : {"model", "unigram", "bigram"}) {
      EXPECT_EQ(report.at(name).at("tokens"), residues_) << name;
      EXPECT_GT(report.at(name).at("accuracy"), 0.0);
      EXPECT_GT(report.at(name).at("perplexity"), 1.0);
    }
    EXPECT_LT(report.at("model").at("perplexity"), 25.0);
    EXPECT_LT(report.at("bigram").at("perplexity"), report.at("unigram").at("perplexity"));
    EXPECT_EQ(report.at("end_marker").at("tokens"), 20);
    EXPECT_EQ(report.at("sequences"), 20);
    EXPECT_TRUE(report.contains("seconds"));
    EXPECT_FALSE(report.contains("corruption"));
    perplexity_ = report.at("model").at("perplexity");
    const Result table = run({"evaluate", "model", "valid.fasta"});
    for (const char* word :
         {"accuracy", "perplexity", "tokens", "model", "unigram", "bigram", "end marker"}) {
      EXPECT_THAT(table.out, HasSubstr(word));
    }
    EXPECT_THAT(table.out, HasSubstr(fmt_fixed(perplexity_)));
  }

  void check_scores() {
    const Result scores = run({"score", "model", "valid.fasta"});
    ASSERT_EQ(scores.code, 0) << scores.err;
    const auto lines = lines_of(scores.out);
    ASSERT_EQ(lines.size(), 21u);
    EXPECT_EQ(lines[0], "id\tlength\ttotal_log_likelihood\tmean_log_likelihood\tperplexity");
    const Result residues = run({"score", "model", "valid.fasta", "--per-residue"});
    const auto residue_lines = lines_of(residues.out);
    ASSERT_EQ(residue_lines.size(), static_cast<size_t>(residues_) + 1);
    EXPECT_EQ(residue_lines[0], "id\tposition\tresidue\tlog_probability");
    size_t at = 1;
    double total = 0;
    for (size_t i = 1; i < lines.size(); ++i) {
      const auto columns = columns_of(lines[i]);
      ASSERT_EQ(columns.size(), 5u);
      EXPECT_EQ(columns[0], "protein_" + std::to_string(i));
      double sum = 0;
      for (int position = 1; position <= std::stoi(columns[1]); ++position, ++at) {
        const auto residue = columns_of(residue_lines.at(at));
        ASSERT_EQ(residue.size(), 4u);
        EXPECT_EQ(residue[0], columns[0]);
        EXPECT_EQ(residue[1], std::to_string(position));
        EXPECT_EQ(residue[2].size(), 1u);
        sum += std::stod(residue[3]);
      }
      EXPECT_NEAR(sum, std::stod(columns[2]), 1e-3);
      EXPECT_NEAR(std::stod(columns[2]) / std::stod(columns[1]), std::stod(columns[3]), 1e-5);
      EXPECT_NEAR(std::exp(-std::stod(columns[3])), std::stod(columns[4]), 1e-3);
      total += sum;
    }
    // The evaluation sums the same log-likelihoods.
    EXPECT_NEAR(std::exp(-total / static_cast<double>(residues_)), perplexity_, 1e-3);
    // Standard input, and a file as output.
    EXPECT_EQ(run({"score", "model", "-"}, {.input = read("valid.fasta")}).out, scores.out);
    const Result to_file = run({"score", "model", "valid.fasta", "-o", "scores.tsv"});
    EXPECT_EQ(to_file.out, "");
    EXPECT_EQ(read("scores.tsv"), scores.out);
    EXPECT_EQ(run({"score", "model", "valid.fasta", "-o", "-", "--quiet"}).err, "");
  }

  void check_samples() {
    const Arguments arguments = {"generate", "model", "-n", "3", "--max-length", "30", "--seed", "4"};
    const Result first = run(arguments);
    ASSERT_EQ(first.code, 0) << first.err;
    const auto lines = lines_of(first.out);
    ASSERT_EQ(lines.size(), 6u);
    for (size_t i = 0; i < 3; ++i) {
      const std::string header = lines[2 * i], residues = lines[2 * i + 1];
      EXPECT_THAT(header, StartsWith(">generated_" + std::to_string(i + 1) +
                                     " length=" + std::to_string(residues.size())));
      EXPECT_THAT(header, HasSubstr(" mean_log_likelihood=-"));
      EXPECT_THAT(header, HasSubstr(residues.size() < 30 ? "ended=yes" : "ended="));
      EXPECT_LE(residues.size(), 30u);
    }
    EXPECT_EQ(run(arguments).out, first.out);
    Arguments other = arguments;
    other.back() = "5";
    EXPECT_NE(run(other).out, first.out);
    const Result prompted =
        run({"generate", "model", "-n", "2", "--prompt", "MKTAY", "--max-length", "40", "--top-k", "5",
             "--top-p", "0.9", "--temperature", "0.8", "--repetition-penalty", "1.2", "-o", "samples.fasta"});
    ASSERT_EQ(prompted.code, 0) << prompted.err;
    const auto records = lines_of(read("samples.fasta"));
    ASSERT_EQ(records.size(), 4u);
    EXPECT_THAT(records[1], StartsWith("MKTAY"));
    EXPECT_THAT(records[3], StartsWith("MKTAY"));
    // What is generated can be read again.
    EXPECT_EQ(run({"score", "model", "samples.fasta"}).code, 0);
  }

  // The options that decide something, which are not those of local heads where there are none.
  void check_info_of_attention(const json& shown) {
    EXPECT_EQ(shown.at("local_heads"), 0);
    EXPECT_FALSE(shown.contains("local_window"));
    EXPECT_THAT(run({"info", "model"}).out,
                testing::AllOf(HasSubstr("\nbegin_kernel = "), Not(HasSubstr("local_window"))));
  }

  void check_info() {
    const Result result = run({"info", "model", "--json"});
    ASSERT_EQ(result.code, 0) << result.err;
    const json info = json::parse(result.out);
    EXPECT_EQ(info.at("model").at("model").at("width"), 16);
    EXPECT_GT(info.at("model").at("parameters"), 1000);
    EXPECT_TRUE(info.contains("version"));
    EXPECT_THAT(run({"info", "model"}).out, testing::AllOf(HasSubstr("parameters"), HasSubstr("width = 16")));
    check_info_of_attention(info.at("model").at("attention"));
  }

  static std::string fmt_fixed(double value) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.4f", value);
    return text;
  }

  int64_t residues_ = 0;
  double perplexity_ = 0;
};

TEST_F(Chain, TrainEvaluateScoreGenerateInfo) {
  make_fasta("train.fasta", 200);
  make_fasta("valid.fasta", 20);
  for (const auto& line : lines_of(read("valid.fasta")))
    residues_ += line[0] == '>' ? 0 : static_cast<int64_t>(line.size());
  check_training();
  check_evaluation();
  check_scores();
  check_samples();
  check_info();
}

TEST_F(Chain, MaskedModelsRecordTheirCorruptionAndDoNotGenerate) {
  make_model("model", {"--set", "model.objective=masked", "data.corruption=protein-lm"});
  const Result result = run({"evaluate", "model", "train.fasta", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report.at("corruption"), "protein-lm");
  EXPECT_EQ(report.at("mask_rate"), 0.15);
  EXPECT_TRUE(report.at("end_marker").is_null());
  EXPECT_EQ(report.at("model").at("tokens"), report.at("unigram").at("tokens"));
  make_fasta("few.fasta", 3);
  EXPECT_EQ(lines_of(run({"score", "model", "few.fasta"}).out).size(), 4u);
  expect_failure(run({"generate", "model"}), 2, {"masked", "causal"});
}

TEST_F(Chain, BaselinesOfOtherPapersTrainEvaluateScoreAndGenerate) {
  make_fasta("train.fasta");
  make_fasta("valid.fasta", 5);
  // attention.features, which train_arguments sets, is no option of theirs.
  const std::vector<std::pair<std::string, Arguments>> baselines = {
      {"lsh",
       {"model.reversible=true", "attention.chunk=8", "attention.buckets=4", "attention.redraw_every=1"}},
      {"sparse", {"attention.stride=8", "data.layout=packed"}},
      {"global", {"attention.window=8", "attention.random_blocks=1", "train.precision=bfloat16"}},
      {"linformer", {"model.objective=masked", "attention.sharing=layers", "attention.rank=12"}},
  };
  for (const auto& [kind, settings] : baselines) {
    Arguments arguments = {"train",
                           "-t",
                           "1",
                           "--train",
                           "train.fasta",
                           "--valid",
                           "valid.fasta",
                           "--steps",
                           "4",
                           "-o",
                           kind,
                           "--set",
                           "model.layers=2",
                           "model.width=16",
                           "model.heads=2",
                           "model.ffn=16",
                           "data.length=64",
                           "data.batch_tokens=256",
                           "attention.kind=" + kind};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    const Result trained = run(arguments);
    ASSERT_EQ(trained.code, 0) << kind << ": " << trained.err;
    const Result evaluated = run({"evaluate", kind, "valid.fasta", "--json"});
    ASSERT_EQ(evaluated.code, 0) << kind << ": " << evaluated.err;
    EXPECT_GT(json::parse(evaluated.out).at("model").at("perplexity"), 1.0);
    EXPECT_EQ(lines_of(run({"score", kind, "valid.fasta"}).out).size(), 6u) << kind;
    if (kind == "linformer") continue;
    const Result generated = run({"generate", kind, "-n", "2", "--max-length", "30", "--seed", "4"});
    EXPECT_EQ(generated.code, 0) << kind << ": " << generated.err;
    EXPECT_EQ(lines_of(generated.out).size(), 4u) << kind;
  }
}

TEST_F(Chain, TrainReadsStandardInput) {
  make_fasta("train.fasta");
  const Setting input{.input = read("train.fasta")};
  const Result result =
      run(train_arguments("-", "model", {"--steps", "2", "--set", "data.holdout=0"}), input);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_TRUE(exists("model/model.safetensors"));
  // Holding out takes a second pass.
  expect_failure(run(train_arguments("-", "other", {"--steps", "2"}), input), 2,
                 {"standard input", "--valid", "data.holdout"});
}

TEST_F(Chain, InfoNamesKernelsAndThreads) {
  const Result result = run({"info", "--json", "-t", "1"});
  ASSERT_EQ(result.code, 0) << result.err;
  const json info = json::parse(result.out);
  EXPECT_EQ(info.at("threads"), 1);
  EXPECT_THAT(info.at("libtorch").get<std::string>(), HasSubstr("2."));
  const auto targets = info.at("available_targets").get<std::vector<std::string>>();
  EXPECT_THAT(targets, testing::Contains("reference"));
  for (const char* operation : {"favor_forward", "favor_backward", "favor_step"}) {
    EXPECT_THAT(targets, testing::Contains(info.at("kernels").at(operation).get<std::string>()));
  }
  const Result forced = run({"info", "--json"}, {.environment = {{"PERFORMER_CPU_TARGET", "reference"}}});
  EXPECT_EQ(json::parse(forced.out).at("kernels").at("favor_forward"), "reference");
  expect_failure(run({"info"}, {.environment = {{"PERFORMER_CPU_TARGET", "nonsense"}}}), 2, {"nonsense"});
  EXPECT_THAT(run({"info"}).out,
              testing::AllOf(HasSubstr("LibTorch"), HasSubstr("threads"), HasSubstr("favor_step")));
}

}  // namespace
}  // namespace performer::testing_cli
