// SPDX-License-Identifier: Apache-2.0
// Fine-tuning as a user does it: train --from, evaluate --labels, predict.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class FineTuneCommand : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    make_model("base", {"--set", "model.objective=masked"});
    std::string fasta, classes = "id\tlabel\n", values = "id,label\n", tokens;
    for (int i = 0; i < 40; ++i) {
      const bool rich = i % 2 == 0;
      const std::string protein = rich ? "MAAAKAAACA" : "MWWLKWFWCW";
      const std::string name = "s" + std::to_string(i), more(static_cast<size_t>(i % 5), rich ? 'A' : 'W');
      fasta += ">" + name + " a header\n" + protein + more + "\n";
      classes += name + "\t" + (rich ? "rich" : "poor") + "\r\n";
      values += name + "," + std::to_string(rich ? 5 : -3) + "\n";
      tokens += name + "\t" + std::string(protein.size() + more.size(), rich ? 'H' : 'E') + "\n";
    }
    write("data.fasta", fasta);
    write("classes.tsv", classes);
    write("values.csv", values);
    write("tokens.tsv", tokens);
  }

  Result tune(const std::string& output, const Arguments& more) const {
    Arguments arguments = {"train", "-t", "1", "--from", "base", "--train", "data.fasta", "-o", output};
    for (const char* setting : {"train.warmup=0", "train.learning_rate=1e-2", "data.holdout=0.2"})
      arguments.insert(arguments.end(), {"--set", setting});
    if (std::find(more.begin(), more.end(), "--steps") == more.end())
      arguments.insert(arguments.end(), {"--steps", "20"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  Result classify(const std::string& output, const Arguments& more = {}) const {
    Arguments arguments = {"--task", "sequence-classification", "--labels", "classes.tsv"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return tune(output, arguments);
  }
};

TEST_F(FineTuneCommand, ClassesOfSequences) {
  const Result made = classify("tuned");
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_THAT(made.err, AllOf(HasSubstr("starting from base"), HasSubstr("held-out accuracy")));
  EXPECT_EQ(nlohmann::json::parse(read("tuned/config.json"))["provenance"]["from"], "base");

  const Result table = run({"evaluate", "tuned", "data.fasta", "--labels", "classes.tsv"});
  ASSERT_EQ(table.code, 0) << table.err;
  EXPECT_THAT(table.out, AllOf(HasSubstr("accuracy"), HasSubstr("macro F1"), HasSubstr("40 labels")));
  const auto json = nlohmann::json::parse(
      run({"evaluate", "tuned", "data.fasta", "--labels", "classes.tsv", "--json"}).out);
  EXPECT_EQ(json["kind"], "sequence-classification");
  EXPECT_GT(json["accuracy"], 0.9);
  EXPECT_EQ(json["by_class"][0]["class"], "poor");

  const Result predicted = run({"predict", "tuned", "data.fasta", "-o", "out.tsv"});
  ASSERT_EQ(predicted.code, 0) << predicted.err;
  const auto lines = lines_of(read("out.tsv"));
  ASSERT_EQ(lines.size(), 41u);
  EXPECT_EQ(lines[0], "id\tprediction\tp_poor\tp_rich");
  EXPECT_THAT(lines[1], StartsWith("s0\trich\t"));
  EXPECT_THAT(lines[2], StartsWith("s1\tpoor\t"));
  const auto line = nlohmann::json::parse(lines_of(run({"predict", "tuned", "data.fasta", "--json"}).out)[1]);
  EXPECT_EQ(line["id"], "s1");
  EXPECT_EQ(line["prediction"], "poor");
  EXPECT_NEAR(line["probabilities"]["poor"].get<double>() + line["probabilities"]["rich"].get<double>(), 1,
              1e-5);
  // Every other command reads the folder, and a sequence longer than a chunk gives what it gives whole.
  EXPECT_EQ(run({"embed", "tuned", "data.fasta", "-o", "e.npy"}).code, 0);
  EXPECT_EQ(run({"score", "tuned", "data.fasta"}).code, 0);
  EXPECT_EQ(run({"info", "tuned"}).code, 0);
  EXPECT_EQ(run({"evaluate", "tuned", "data.fasta", "--language-model"}).code, 0);
  ASSERT_EQ(run({"evaluate", "tuned", "data.fasta", "--labels", "classes.tsv", "--json", "-o",
                 "tuned/evaluation-all.json"})
                .code,
            0);
  const Result page = run({"report", "tuned", "-o", "page.html"});
  ASSERT_EQ(page.code, 0) << page.err;
  EXPECT_THAT(read("page.html"),
              AllOf(HasSubstr("Predictions"), HasSubstr("macro_f1"), HasSubstr("held out during")));
  const auto pieces = lines_of(run({"predict", "tuned", "data.fasta", "--chunk", "4"}).out);
  EXPECT_NEAR(std::stod(columns_of(pieces[1])[2]), std::stod(columns_of(lines[1])[2]), 1e-4);
}

TEST_F(FineTuneCommand, NumbersOfSequences) {
  const Result made = tune("tuned", {"--task", "sequence-regression", "--labels", "values.csv"});
  ASSERT_EQ(made.code, 0) << made.err;
  const Result table = run({"evaluate", "tuned", "data.fasta", "--labels", "values.csv"});
  EXPECT_THAT(table.out, AllOf(HasSubstr("Spearman"), HasSubstr("Pearson"), HasSubstr("MSE")));
  const auto lines = lines_of(run({"predict", "tuned", "data.fasta"}).out);
  EXPECT_EQ(lines[0], "id\tprediction");
  EXPECT_GT(std::stod(columns_of(lines[1])[1]), 1.0);
  EXPECT_LT(std::stod(columns_of(lines[2])[1]), 1.0);
  EXPECT_TRUE(
      nlohmann::json::parse(lines_of(run({"predict", "tuned", "data.fasta", "--json"}).out)[0])["prediction"]
          .is_number());
}

TEST_F(FineTuneCommand, ClassesOfTokens) {
  const Result made = tune("tuned", {"--task", "token-classification", "--labels", "tokens.tsv"});
  ASSERT_EQ(made.code, 0) << made.err;
  const auto lines = lines_of(run({"predict", "tuned", "data.fasta"}).out);
  EXPECT_EQ(lines[0], "id\tposition\tresidue\tprediction\tp_E\tp_H");
  EXPECT_THAT(lines[1], StartsWith("s0\t1\tM\tH\t"));
  ASSERT_EQ(run({"predict", "tuned", "data.fasta", "--per-sequence", "-o", "again.tsv"}).code, 0);
  EXPECT_EQ(columns_of(lines_of(read("again.tsv"))[1])[1].size(), 10u);
  // What was predicted is a table of labels.
  const auto json =
      nlohmann::json::parse(run({"evaluate", "tuned", "data.fasta", "--labels", "again.tsv", "--json"}).out);
  EXPECT_EQ(json["accuracy"], 1);
  const auto line = nlohmann::json::parse(lines_of(run({"predict", "tuned", "data.fasta", "--json"}).out)[0]);
  EXPECT_EQ(line["prediction"].size(), 10u);
  EXPECT_EQ(line["probabilities"]["H"].size(), 10u);
}

TEST_F(FineTuneCommand, WhatDoesNotFitIsCounted) {
  write("some.tsv", "s0\trich\ns1\tpoor\ns2\trich\ns3\tpoor\ns3\tpoor\nelsewhere\tpoor\n");
  const Result made = tune("tuned", {"--task", "sequence-classification", "--labels", "some.tsv", "--set",
                                     "data.holdout=0", "--steps", "2"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_THAT(made.err, AllOf(HasSubstr("36 training sequences have no label in some.tsv"), HasSubstr("'s4'"),
                              HasSubstr("1 of 5 labels in some.tsv belong to no sequence"),
                              HasSubstr("'elsewhere', line 6"), HasSubstr("1 rows repeat")));
  const Result evaluated = run({"evaluate", "tuned", "data.fasta", "--labels", "some.tsv"});
  EXPECT_THAT(evaluated.err, HasSubstr("36 sequences have no label"));
  EXPECT_THAT(evaluated.out, HasSubstr("4 labels"));
}

TEST_F(FineTuneCommand, ARunGoesOnExactlyAndSaysWhatItTrains) {
  const Arguments lora = {"--set", "train.lora_rank=2", "--set", "train.lora_dropout=0.1"};
  Arguments first = lora, second = lora, whole = lora;
  first.insert(first.end(), {"--steps", "4"});
  second.insert(second.end(), {"--steps", "9", "--resume"});
  whole.insert(whole.end(), {"--steps", "9"});
  const Result begun = classify("a", first);
  ASSERT_EQ(begun.code, 0) << begun.err;
  EXPECT_THAT(begun.err, HasSubstr("adapters of rank 2 at 2 projections"));
  const Result resumed = classify("a", second);
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  // Nothing has to be given again but the files.
  ASSERT_EQ(classify("b", whole).code, 0);
  EXPECT_EQ(losses(read("a/metrics.jsonl")), losses(read("b/metrics.jsonl")));
  EXPECT_EQ(read("a/model.safetensors"), read("b/model.safetensors"));
  EXPECT_EQ(read("a/head.safetensors"), read("b/head.safetensors"));
}

TEST_F(FineTuneCommand, ALanguageModelGoesOnToo) {
  const Result made = tune("tuned", {"--set", "train.freeze=embeddings", "--steps", "2"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_FALSE(exists("tuned/head.safetensors"));
  EXPECT_THAT(run({"evaluate", "tuned", "data.fasta"}).out, HasSubstr("perplexity"));
  const Result dry = run({"train", "--from", "base", "--dry-run"});
  EXPECT_THAT(dry.out, AllOf(HasSubstr("width = 16"), HasSubstr("objective = \"masked\""),
                             HasSubstr("from = \"base\""), HasSubstr("[task]")));
}

TEST_F(FineTuneCommand, NamesWhatIsWrong) {
  expect_failure(classify("x", {"--set", "model.width=32"}), 2, {"model.width is 32", "base", "16"});
  expect_failure(classify("x", {"--set", "data.vocabulary=dna"}), 2, {"data.vocabulary is dna"});
  expect_failure(classify("x", {"--preset", "small"}), 2, {"--preset", "--from"});
  expect_failure(run({"train", "--from", "none", "--train", "data.fasta", "-o", "x"}), 3, {"none"});
  expect_failure(tune("x", {"--task", "sequence-classification"}), 2, {"task.labels"});
  expect_failure(tune("x", {"--labels", "classes.tsv"}), 2, {"task.labels", "task.kind"});
  expect_failure(tune("x", {"--task", "regression", "--labels", "classes.tsv"}), 2,
                 {"task.kind", "sequence-regression"});
  write("bad.tsv", "s0\trich\ns1\tpoor\ns0\tpoor\n");
  expect_failure(classify("x", {"--labels", "bad.tsv"}), 2, {"--labels"});
  const auto refused = [&](const std::string& table, const std::string& kind,
                           const std::vector<std::string>& words) {
    write("bad.tsv", table);
    expect_failure(tune("x", {"--task", kind, "--labels", "bad.tsv"}), 3, words);
    EXPECT_FALSE(exists("x/config.json"));
  };
  refused("s0\trich\ns1\tpoor\ns0\tpoor\n", "sequence-classification",
          {"bad.tsv", "line 3 ('s0')", "line 1"});
  refused("s0\t1\ns1\t\xFF\xFE\n", "sequence-regression", {"bad.tsv", "line 2 ('s1')", "\\xff\\xfe"});
  refused("s0\tHHH\ns1\tEEE\n", "token-classification", {"line 1 ('s0')", "expected 10 labels", "found 3"});
  refused("t0\trich\nt1\tpoor\n", "sequence-classification", {"has a label"});
  refused("s0\trich\n\"s1\tpoor\n", "sequence-classification", {"quote"});
  refused(std::string("s0\trich\ns1\tpo\0or\n", 17), "sequence-classification", {"zero bytes"});

  expect_failure(run({"predict", "base", "data.fasta"}), 2, {"base", "--labels TABLE"});
  expect_failure(run({"evaluate", "base", "data.fasta", "--labels", "classes.tsv"}), 2, {"--labels"});
  ASSERT_EQ(classify("tuned", {"--steps", "1"}).code, 0);
  expect_failure(run({"evaluate", "tuned", "data.fasta"}), 2, {"--labels FILE", "--language-model"});
  expect_failure(run({"predict", "tuned", "data.fasta", "--per-sequence"}), 2, {"--per-sequence"});
  write("other.tsv", "s0\trich\ns1\todd\n");
  expect_failure(run({"evaluate", "tuned", "data.fasta", "--labels", "other.tsv"}), 3,
                 {"'odd' is none of the model's", "poor, rich"});
  expect_failure(run({"predict", "tuned", "data.fasta", "-o", "data.fasta"}), 2, {"also an input"});
  write("tuned/head.safetensors", "not one");
  expect_failure(run({"predict", "tuned", "data.fasta"}), 3, {"head.safetensors"});
}

}  // namespace
}  // namespace performer::testing_cli
