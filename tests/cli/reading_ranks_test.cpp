// SPDX-License-Identifier: Apache-2.0
// score, embed, evaluate and predict as several processes.
#include <gmock/gmock.h>
#include <signal.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class RanksThatRead : public ProgramTest {
 protected:
  // Batches of 256 tokens, a sequence of 300 that is longer than one, and 70 short ones.
  void SetUp() override {
    ProgramTest::SetUp();
    std::string text = ">long\n";
    for (int i = 0; i < 300; ++i) text += "ACDEFGHIKLMNPQRSTVWY"[i * i % 19];
    make_fasta("short.fasta", 70);
    write("in.fasta", read("short.fasta") + text + "\n>last\nMKT\n");
  }

  std::string model(const std::string& objective, const std::string& kind = "favor-softmax") const {
    const Arguments more = {"--set", "model.objective=" + objective, "--set", "attention.kind=" + kind};
    if (kind == "exact") return exact_model(objective);
    return make_model(objective + "-" + kind, more);
  }
  std::string exact_model(const std::string& objective) const {
    const std::string name = objective + "-exact";
    if (exists(name)) return name;
    const Result made = run({"train",
                             "-t",
                             "1",
                             "--train",
                             make_fasta("train.fasta"),
                             "-o",
                             name,
                             "--steps",
                             "2",
                             "--set",
                             "model.layers=1",
                             "--set",
                             "model.width=16",
                             "--set",
                             "model.heads=2",
                             "--set",
                             "attention.kind=exact",
                             "--set",
                             "model.objective=" + objective,
                             "--set",
                             "data.length=64",
                             "--set",
                             "data.batch_tokens=256"});
    EXPECT_EQ(made.code, 0) << made.err;
    return name;
  }

  static Arguments with(Arguments arguments, const Arguments& more) {
    arguments.insert(arguments.end(), {"-t", "1"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::string output_of(const Arguments& arguments, const Arguments& more = {}) const {
    const Result result = run(with(arguments, more));
    EXPECT_EQ(result.code, 0) << result.err;
    return result.out;
  }
  // Of the rows of a .npy file of float32, which end it.
  std::vector<float> rows_of(const std::string& name, size_t rows) const {
    const std::string bytes = read(name);
    std::vector<float> values(rows * 16);
    if (bytes.size() < values.size() * 4)
      ADD_FAILURE() << name << " has " << bytes.size() << " bytes";
    else
      std::memcpy(values.data(), bytes.data() + bytes.size() - values.size() * 4, values.size() * 4);
    return values;
  }
  static void expect_near(const std::vector<float>& found, const std::vector<float>& expected,
                          float tolerance) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], tolerance) << "number " << i;
  }
};

TEST_F(RanksThatRead, ScoresAreThoseOfOneProcess) {
  make_fasta("few.fasta", 12);
  for (const char* kind : {"favor-softmax", "exact"}) {
    for (const Arguments& score :
         {Arguments{"score", model("causal", kind), "in.fasta", "few.fasta", "--per-token"},
          Arguments{"score", model("masked", kind), "few.fasta", "few.fasta", "--per-token"}}) {
      const std::string one = output_of(score);
      EXPECT_GT(lines_of(one).size(), 500u);
      for (const char* ranks : {"2", "3"}) EXPECT_EQ(output_of(score, {"--nproc", ranks}), one) << ranks;
    }
  }
}

TEST_F(RanksThatRead, ALongSequenceInSlicesIsScoredAlike) {
  const Arguments score = {"score", model("causal"), "in.fasta", "--per-token"};
  const auto one = lines_of(output_of(score));
  for (const char* ranks : {"2", "3"}) {
    const auto several = lines_of(output_of(score, {"--nproc", ranks, "--sequence-parallel", ranks}));
    ASSERT_EQ(several.size(), one.size());
    for (size_t i = 1; i < one.size(); ++i) {
      const auto expected = columns_of(one[i]), found = columns_of(several[i]);
      EXPECT_EQ(found[0] + found[1] + found[2], expected[0] + expected[1] + expected[2]);
      EXPECT_NEAR(std::stod(found[3]), std::stod(expected[3]), 2e-5);
    }
  }
}

TEST_F(RanksThatRead, EmbeddingsAreThoseOfOneProcess) {
  for (const char* objective : {"causal", "masked"}) {
    for (const char* pool : {"mean", "tokens"}) {
      const std::string name = std::string(objective) + pool;
      const Arguments embed = {"embed", model(objective), "in.fasta", "--pool", pool, "--chunk", "100", "-o"};
      const auto to = [&](const std::string& file) {
        Arguments all = embed;
        all.push_back(file);
        return all;
      };
      output_of(to(name + "1.npy"));
      output_of(to(name + "2.npy"), {"--nproc", "2"});
      output_of(to(name + "3.npy"), {"--nproc", "3", "--sequence-parallel", "3"});
      EXPECT_TRUE(read(name + "2.npy") == read(name + "1.npy")) << name << ": every bit";
      const std::string index = read(name + "1.npy.tsv");
      for (const char* other : {"2.npy.tsv", "3.npy.tsv"}) EXPECT_EQ(read(name + other), index);
      const auto last = columns_of(lines_of(index).back());
      const size_t rows = std::stoul(last[0]) + std::stoul(last[3]);
      expect_near(rows_of(name + "3.npy", rows), rows_of(name + "1.npy", rows), 2e-5F);
    }
  }
  for (const std::string& file : files()) EXPECT_THAT(file, Not(HasSubstr("partial")));
}

TEST_F(RanksThatRead, EvaluationsAreThoseOfOneProcess) {
  for (const char* objective : {"causal", "masked"}) {
    const Arguments evaluate = {"evaluate", model(objective), "in.fasta", "--json"};
    const auto parsed = [](const std::string& text) {
      nlohmann::json json = nlohmann::json::parse(text);
      json.erase("seconds");
      return json;
    };
    const nlohmann::json one = parsed(output_of(evaluate));
    EXPECT_EQ(parsed(output_of(evaluate, {"--nproc", "3"})), one);
    const nlohmann::json sliced = parsed(output_of(evaluate, {"--nproc", "2", "--sequence-parallel", "2"}));
    EXPECT_EQ(sliced["model"]["tokens"], one["model"]["tokens"]);
    EXPECT_NEAR(sliced["model"]["perplexity"], one["model"]["perplexity"], 1e-5);
    EXPECT_EQ(sliced["unigram"], one["unigram"]);
  }
}

TEST_F(RanksThatRead, WhatCannotBeIsRefusedByName) {
  const Arguments two = {"--nproc", "2", "--sequence-parallel", "2"};
  const auto refused = [&](const Arguments& arguments, const std::string& words) {
    const Result result = run(with(arguments, two));
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, HasSubstr("performer: --sequence-parallel 2: " + words));
  };
  const std::string exact = model("causal", "exact");
  refused({"score", exact, "in.fasta"}, "attention.kind = exact has no state of constant size");
  refused({"embed", exact, "in.fasta", "-o", "e.npy"}, "attention.kind = exact has no state");
  refused({"evaluate", exact, "in.fasta"}, "attention.kind = exact has no state");
  refused({"score", model("masked"), "in.fasta"},
          "a masked model is scored by a forward pass for each token");
  const std::string causal = model("causal");
  expect_failure(run({"score", causal, "in.fasta", "--sequence-parallel", "2"}), 2,
                 {"--sequence-parallel is 2, but there is 1 rank"});
  expect_failure(run({"score", causal, "in.fasta", "--nproc", "3", "--sequence-parallel", "2"}), 2,
                 {"--sequence-parallel is 2, but there are 3 ranks"});
  expect_failure(run({"score", causal, "-", "--nproc", "2"}, {.input = ">a\nMKT\n"}), 2,
                 {"standard input can be read only once, and each of 2 ranks reads it"});
  Setting setting;
  setting.environment = {{"WORLD_SIZE", "2"}};
  expect_failure(run({"embed", causal, "in.fasta", "-o", "e.npy"}, setting), 2, {"RANK is missing"});
  EXPECT_FALSE(exists("e.npy"));
}

// All end, and one of them says why; what stood under the name of the output is as it was.
TEST_F(RanksThatRead, AnErrorLeavesNoHalfWrittenOutput) {
  write("bad.fasta", read("in.fasta") + ">x\nMK1\n");
  write("out.tsv", "before");
  const Result scored = run({"score", model("causal"), "bad.fasta", "-o", "out.tsv", "--nproc", "2"});
  EXPECT_EQ(scored.code, 3) << scored.err;
  EXPECT_THAT(scored.err, AllOf(HasSubstr("performer: bad.fasta"), HasSubstr("'1'"), Not(HasSubstr("rank"))));
  EXPECT_EQ(read("out.tsv"), "before");
  // Only rank 0 opens the output.
  const Result nowhere = run({"score", model("causal"), "in.fasta", "-o", "none/out.tsv", "--nproc", "2"});
  EXPECT_EQ(nowhere.code, 1);
  EXPECT_THAT(nowhere.err, AllOf(HasSubstr("performer: cannot write none/out.tsv"), Not(HasSubstr("rank"))));
  for (const char* command : {"score", "evaluate", "embed"}) {
    Arguments missing = {command, model("causal"), "missing.fasta", "--nproc", "3"};
    if (command == std::string("embed")) missing.insert(missing.end(), {"-o", "e.npy"});
    const Result result = run(missing);
    EXPECT_EQ(result.code, 3) << command;
    EXPECT_EQ(lines_of(result.err).size(), 1u) << result.err;
    EXPECT_THAT(result.err, HasSubstr("performer: cannot read missing.fasta")) << command;
  }
  for (const std::string& file : files()) EXPECT_THAT(file, Not(HasSubstr(".tmp-")));
}

TEST_F(RanksThatRead, ALostRankAndASignalEndAllAndEmbedResumes) {
  make_fasta("many.fasta", 3000);
  const std::string name = model("causal");
  const Arguments embed = {"embed", name, "many.fasta", "-t", "1", "--chunk", "30", "-o"};
  const auto to = [&](const std::string& file, const Arguments& more) {
    Arguments all = embed;
    all.push_back(file);
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  ASSERT_EQ(run(to("whole.npy", {})).code, 0);
  const auto finished = [&] {
    return exists("out.npy.partial.tsv") ? lines_of(read("out.npy.partial.tsv")).size() : 0;
  };
  {
    Process process(directory_, to("out.npy", {"--nproc", "2", "--rank-timeout", "5"}), {});
    ASSERT_TRUE(wait_until(process, [&] { return finished() > 100; }));
    const pid_t rank = find_rank(1);
    ASSERT_GT(rank, 0);
    ASSERT_EQ(::kill(rank, SIGKILL), 0);
    const Result result = process.wait();
    EXPECT_EQ(result.code, 1) << result.err;
    EXPECT_THAT(result.err,
                AllOf(HasSubstr("rank 1 was ended by signal 9"), HasSubstr("rank 1 of 2 was lost")));
  }
  EXPECT_FALSE(exists("out.npy"));
  const size_t first = finished();
  EXPECT_GT(first, 100u);
  {
    Process process(directory_, to("out.npy", {"--nproc", "3", "--resume"}), {});
    ASSERT_TRUE(wait_until(process, [&] { return finished() > first + 100; }));
    process.send(SIGTERM);
    const Result result = process.wait();
    EXPECT_EQ(result.signal, SIGTERM) << result.code << result.err;
    EXPECT_THAT(result.err, Not(HasSubstr("was ended by signal")));
  }
  EXPECT_FALSE(exists("out.npy"));
  const Result rest = run(to("out.npy", {"--nproc", "2", "--resume"}));
  ASSERT_EQ(rest.code, 0) << rest.err;
  EXPECT_THAT(rest.err, HasSubstr("sequences are finished"));
  EXPECT_EQ(read("out.npy.tsv"), read("whole.npy.tsv"));
  expect_near(rows_of("out.npy", 3000), rows_of("whole.npy", 3000), 2e-5F);
}

}  // namespace
}  // namespace performer::testing_cli
