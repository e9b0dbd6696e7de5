// SPDX-License-Identifier: Apache-2.0
// The command train as several processes: results, signals, lost ranks.
#include <gmock/gmock.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

class RanksOfTrain : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    make_fasta("train.fasta");
  }

  // Each rank reads `tokens` a step; everything that draws random numbers is on.
  static Arguments command(const std::string& output, int64_t tokens, const Arguments& more) {
    Arguments options = {"--set", "data.length=32",    "--set", "data.batch_tokens=" + std::to_string(tokens),
                         "--set", "model.dropout=0.1", "--set", "attention.redraw_every=4"};
    options.insert(options.end(), more.begin(), more.end());
    return train_arguments("train.fasta", output, options);
  }
  static Arguments endless(const std::string& output, const Arguments& more = {}, int ranks = 2) {
    Arguments options = {"--nproc", std::to_string(ranks),     "--steps", "1000000",
                         "--set",   "train.checkpoint_every=5"};
    options.insert(options.end(), more.begin(), more.end());
    return command(output, 64, options);
  }

  std::vector<double> losses_of(const std::string& output) const {
    std::vector<double> found;
    for (const auto& [step, loss] : losses(read(output + "/metrics.jsonl"))) found.push_back(std::stod(loss));
    return found;
  }

  void expect_near(const std::string& one, const std::string& several) const {
    const std::vector<double> expected = losses_of(one), found = losses_of(several);
    ASSERT_EQ(found.size(), expected.size());
    ASSERT_FALSE(found.empty());
    for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-5) << "step " << i + 1;
  }

  bool made_steps(const std::string& output, size_t steps) const {
    return exists(output + "/metrics.jsonl") && losses(read(output + "/metrics.jsonl")).size() >= steps;
  }
};

TEST_F(RanksOfTrain, AHundredStepsAreThoseOfOneProcess) {
  const Arguments steps = {"--steps", "100"};
  ASSERT_EQ(run(command("one", 256, steps)).code, 0);
  for (const auto& [ranks, tokens] : {std::pair{2, 128}, {4, 64}}) {
    const std::string output = std::to_string(ranks);
    const Result result = run(command(output, tokens, {"--steps", "100", "--nproc", output}));
    ASSERT_EQ(result.code, 0) << result.err;
    expect_near("one", output);
    EXPECT_THAT(result.err, HasSubstr(output + " ranks: each handed"));
  }
}

TEST_F(RanksOfTrain, SlicesOfSequencesWithDropout) {
  for (const auto& objective : {"causal", "masked"}) {
    const std::string one = std::string("one-") + objective, two = std::string("two-") + objective;
    const std::string setting = std::string("model.objective=") + objective;
    ASSERT_EQ(run(command(one, 128, {"--steps", "20", "--set", setting})).code, 0);
    const Result result = run(command(
        two, 64, {"--steps", "20", "--nproc", "2", "--set", setting, "--set", "train.sequence_parallel=2"}));
    ASSERT_EQ(result.code, 0) << result.err;
    expect_near(one, two);
    EXPECT_THAT(result.err, HasSubstr("2 ranks a sequence: each handed"));
  }
  for (const char* chunk : {"train.slim_chunk=10", "train.slim_chunk=200"}) {  // the second leaves one idle
    const Result result = run(command(
        chunk, 64, {"--steps", "20", "--nproc", "2", "--set", chunk, "--set", "train.sequence_parallel=2"}));
    ASSERT_EQ(result.code, 0) << result.err;
    expect_near("one-causal", chunk);
  }
}

TEST_F(RanksOfTrain, SignalsStopAllAndResumeIsExact) {
  Process process(directory_, endless("run"), {});
  ASSERT_TRUE(wait_until(process, [&] { return made_steps("run", 7); }));
  process.send(SIGTERM);
  const Result stopped = process.wait();
  EXPECT_EQ(stopped.code, 130) << stopped.err;
  EXPECT_THAT(stopped.err, HasSubstr("interrupted after step"));
  const std::string steps = std::to_string(losses_of("run").size() + 5);
  const Result resumed = run({"train", "-t", "1", "--train", "train.fasta", "-o", "run", "--resume",
                              "--steps", steps, "--nproc", "2"});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  ASSERT_EQ(run(command("whole", 64, {"--steps", steps, "--nproc", "2"})).code, 0);
  EXPECT_EQ(losses(read("run/metrics.jsonl")), losses(read("whole/metrics.jsonl")));
  EXPECT_EQ(read("run/model.safetensors"), read("whole/model.safetensors"));
}

TEST_F(RanksOfTrain, ALostRankEndsTheOthersAndTheCheckpointStays) {
  for (const int victim : {1, 0}) {
    const std::string output = "lost" + std::to_string(victim);
    Process process(directory_, endless(output, {"--rank-timeout", "5"}), {});
    ASSERT_TRUE(wait_until(process, [&] { return made_steps(output, 7); }));
    const pid_t rank = find_rank(victim);
    ASSERT_GT(rank, 0);
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_EQ(::kill(rank, SIGKILL), 0);
    const Result result = process.wait();
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 30s);
    EXPECT_EQ(result.code, 1) << result.err;
    EXPECT_THAT(result.err, HasSubstr("rank " + std::to_string(victim) + " was ended by signal 9"));
    EXPECT_THAT(result.err,
                HasSubstr("rank " + std::to_string(victim) + (victim == 0 ? " was lost" : " of 2 was lost")));
    const Result resumed = run({"train", "-t", "1", "--train", "train.fasta", "-o", output, "--resume",
                                "--steps", "8", "--nproc", "3", "--set", "train.checkpoint_every=0"});
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_GE(losses_of(output).size(), 8U);
  }
}

TEST_F(RanksOfTrain, AStoppedRankIsLostAfterTheTimeout) {
  Process process(directory_, endless("stopped", {"--rank-timeout", "3"}), {});
  ASSERT_TRUE(wait_until(process, [&] { return made_steps("stopped", 3); }));
  const pid_t rank = find_rank(1);
  ASSERT_GT(rank, 0);
  ASSERT_EQ(::kill(rank, SIGSTOP), 0);
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_TRUE(wait_until(process, [&] { return find_rank(0) < 0; }));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 20s);
  ::kill(rank, SIGKILL);
  const Result result = process.wait();
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("rank 1 of 2 was lost: it has given no sign of life"));
}

TEST_F(RanksOfTrain, ErrorsOfOneRankReachAll) {
  // The folder is not empty, which only rank 0 looks at.
  std::filesystem::create_directories(path("full"));
  write("full/file", "something");
  const Result result = run(command("full", 64, {"--steps", "3", "--nproc", "2"}));
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_THAT(result.err, HasSubstr("performer: full is not empty"));
  EXPECT_THAT(result.err, HasSubstr("performer: rank 1: rank 0 failed: full is not empty"));
}

// The numbers of the files of sequences that a process maps.
std::set<std::string> mapped_sequences(pid_t process) {
  std::ifstream maps("/proc/" + std::to_string(process) + "/maps");
  std::set<std::string> found;
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::string range, mode, offset, device, number, path;
    words >> range >> mode >> offset >> device >> number >> path;
    if (path.find("/performer-sequences-") == std::string::npos) continue;
    EXPECT_EQ(mode, "r--s") << line;
    found.insert(device + " " + number);
  }
  return found;
}

TEST_F(RanksOfTrain, AMachineHasOneCopyOfTheSequences) {
  Process process(directory_, endless("run", {"--set", "data.holdout=0.2"}, 3), {});
  ASSERT_TRUE(wait_until(process, [&] { return made_steps("run", 2); }));
  const std::set<std::string> first = mapped_sequences(find_rank(0));
  EXPECT_EQ(first.size(), 2U) << "training and held-out sequences";
  for (const int rank : {1, 2}) EXPECT_EQ(mapped_sequences(find_rank(rank)), first);
  for (const std::string& file : files())
    EXPECT_EQ(file.find("performer-sequences"), std::string::npos) << file;
  for (const int rank : {0, 1, 2}) ::kill(find_rank(rank), SIGKILL);
  process.wait();
  for (const std::string& file : files())
    EXPECT_EQ(file.find("performer-sequences"), std::string::npos) << file;
}

TEST_F(RanksOfTrain, InputThatTheFirstRankCannotReadEndsAll) {
  write("bad.fasta", read("train.fasta") + ">bad\nAC1\n");
  for (const auto& [file, what] :
       {std::pair{"missing.fasta", "missing.fasta"}, {"bad.fasta", "illegal letter '1'"}}) {
    const std::string output = std::string("of-") + file;
    const Result result = run(train_arguments(file, output, {"--nproc", "2"}));
    EXPECT_EQ(result.code, 3) << result.err;
    size_t lines = 0;  // the error itself once, and that it ended the other rank
    for (const std::string& line : lines_of(result.err)) {
      if (line.find(what) == std::string::npos) continue;
      ++lines;
      EXPECT_TRUE(line.starts_with("performer: rank 1: rank 0 failed: ") ||
                  !line.starts_with("performer: rank"))
          << line;
    }
    EXPECT_EQ(lines, 2U) << result.err;
  }
}

TEST_F(RanksOfTrain, AFullDiskIsAnErrorOfAll) {
  Setting setting;
  setting.file_limit = 1000;
  const Result result = run(command("run", 64, {"--nproc", "2"}), setting);
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(
      result.err,
      HasSubstr("performer: cannot write the temporary file of the sequences in run after 1000 bytes"));
  EXPECT_THAT(result.err, HasSubstr("performer: rank 1: rank 0 failed: cannot write the temporary file"));
}

TEST_F(RanksOfTrain, LaunchersEnvironments) {
  const Arguments three = command("model", 64, {"--steps", "3"});
  Setting setting;
  setting.environment = {{"WORLD_SIZE", "2"}};
  expect_failure(run(three, setting), 2, {"RANK is missing, although WORLD_SIZE is set"});
  setting.environment = {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}};
  expect_failure(run(three, setting), 2, {"MASTER_PORT is missing"});
  setting.environment["MASTER_PORT"] = "29999";
  Arguments contradicting = three;
  contradicting.insert(contradicting.end(), {"--nproc", "3"});
  expect_failure(run(contradicting, setting), 2, {"--nproc is 3, but torchrun started 2 ranks"});
  setting.environment = {
      {"RANK", "0"}, {"WORLD_SIZE", "1"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "29999"}};
  EXPECT_EQ(run(three, setting).code, 0);
  expect_failure(run(command("uneven", 64, {"--set", "train.sequence_parallel=2"})), 2,
                 {"there are 1 ranks"});
}

// What a launcher starts again goes on by itself.
TEST_F(RanksOfTrain, AJobThatIsStartedAgainResumes) {
  Setting setting;
  setting.environment = {{"RANK", "0"},
                         {"WORLD_SIZE", "1"},
                         {"MASTER_ADDR", "a"},
                         {"MASTER_PORT", "1"},
                         {"TORCHELASTIC_RESTART_COUNT", "0"}};
  ASSERT_EQ(run(command("model", 64, {"--steps", "3"}), setting).code, 0);
  EXPECT_EQ(run(command("model", 64, {"--steps", "5"}), setting).code, 2);
  setting.environment["TORCHELASTIC_RESTART_COUNT"] = "1";
  const Result again = run(command("model", 64, {"--steps", "5"}), setting);
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.err, HasSubstr("continuing the run in model after step 3"));
  EXPECT_EQ(losses_of("model").size(), 5U);
}

// Labels of most of some sequences, and weights of them.
class RanksWithLabels : public RanksOfTrain {
 protected:
  void SetUp() override {
    RanksOfTrain::SetUp();
    std::string fasta, classes = "id\tlabel\tweight\n", values = "id\tlabel\n", tokens = "id\tlabel\n";
    for (int i = 0; i < 60; ++i) {
      const std::string name = "s" + std::to_string(i);
      const std::string protein =
          std::string(static_cast<size_t>(5 + i % 17), i % 3 == 0 ? 'A' : 'W') + "MKT";
      fasta += ">" + name + "\n" + protein + "\n";
      if (i % 7 == 2) continue;
      classes += name + "\t" + (i % 3 == 0 ? "rich" : "poor") + "\t" + std::to_string(1 + i % 2) + "\n";
      values += name + "\t" + std::to_string(i % 3 + 0.1 * i) + "\n";
      tokens += name + "\t" + std::string(protein.size() - 2, 'H') + "?E\n";
    }
    write("data.fasta", fasta);
    write("classes.tsv", classes);
    write("values.tsv", values);
    write("tokens.tsv", tokens);
    for (const char* objective : {"masked", "causal"})
      make_model(std::string("base-") + objective, {"--set", std::string("model.objective=") + objective});
  }

  Result tune(const std::string& output, const std::string& base, int ranks, const Arguments& more) const {
    Arguments arguments = {"train",
                           "-t",
                           "1",
                           "--from",
                           base,
                           "--train",
                           "data.fasta",
                           "-o",
                           output,
                           "--nproc",
                           std::to_string(ranks),
                           "--steps",
                           "20"};
    for (const std::string& setting :
         {std::string("data.length=32"), "data.batch_tokens=" + std::to_string(192 / ranks),
          std::string("data.holdout=0.3"), std::string("train.warmup=0"),
          std::string("train.evaluate_every=10"), std::string("model.dropout=0.1"),
          std::string("attention.redraw_every=4")})
      arguments.insert(arguments.end(), {"--set", setting});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  std::vector<nlohmann::json> evaluations(const std::string& output) const {
    std::vector<nlohmann::json> found;
    for (const std::string& line : lines_of(read(output + "/metrics.jsonl"))) {
      const auto record = nlohmann::json::parse(line);
      if (record.contains("valid")) found.push_back(record["valid"]);
    }
    return found;
  }
  // `slices` ranks share each sequence.
  void expect_as_one(const std::string& name, const std::string& base, const Arguments& more,
                     const std::vector<int>& counts = {2, 3}, int slices = 1) const {
    const Result one = tune(name + "1", base, 1, more);
    ASSERT_EQ(one.code, 0) << one.err;
    Arguments divided = more;
    divided.insert(divided.end(), {"--set", "train.sequence_parallel=" + std::to_string(slices)});
    for (const int ranks : counts) {
      const std::string output = name + std::to_string(ranks);
      const Result several = tune(output, base, ranks, divided);
      ASSERT_EQ(several.code, 0) << several.err;
      expect_near(name + "1", output);
      const auto expected = evaluations(name + "1"), found = evaluations(output);
      ASSERT_EQ(found.size(), expected.size());
      ASSERT_GE(found.size(), 2U);
      for (size_t i = 0; i < found.size(); ++i) {
        EXPECT_EQ(found[i]["labels"], expected[i]["labels"]);
        for (const char* key : {"cross_entropy", "mse"}) {
          if (found[i].contains(key)) {
            EXPECT_NEAR(found[i][key], expected[i][key], 1e-4) << output;
          }
        }
      }
    }
  }
};

TEST_F(RanksWithLabels, AreAsOneProcess) {
  expect_as_one("classes", "base-masked", {"--task", "sequence-classification", "--labels", "classes.tsv"});
  expect_as_one("values", "base-causal",
                {"--task", "sequence-regression", "--labels", "values.tsv", "--set", "data.layout=padded"});
  expect_as_one("tokens", "base-masked", {"--task", "token-classification", "--labels", "tokens.tsv"});
}

TEST_F(RanksWithLabels, AreAsOneProcessWithAdaptersAndFewLabels) {
  expect_as_one(
      "lora", "base-masked",
      {"--task", "sequence-classification", "--labels", "classes.tsv", "--set", "task.pool=first", "--set",
       "train.lora_rank=2", "--set", "train.lora_dropout=0.2", "--set", "train.accumulate=2"});
  // Many parts of a batch have none.
  std::string few = "id\tlabel\n";
  for (const std::string& line : lines_of(read("tokens.tsv"))) {
    if (line == "id\tlabel") continue;
    std::string label = columns_of(line)[1];
    for (char& each : label) each = columns_of(line)[0].back() == '1' && each == 'E' ? 'E' : '?';
    few += columns_of(line)[0] + "\t" + (columns_of(line)[0] == "s3" ? "H" + label.substr(1) : label) + "\n";
  }
  write("few.tsv", few);
  expect_as_one("few", "base-causal", {"--task", "token-classification", "--labels", "few.tsv"});
}

// Sequences that are cut: pooled over the slices, or with the labels of their own tokens.
TEST_F(RanksWithLabels, SlicesOfSequencesAreAsOneProcess) {
  const Arguments classes = {"--task", "sequence-classification", "--labels", "classes.tsv"};
  Arguments first = classes;
  first.insert(first.end(), {"--set", "task.pool=first", "--set", "train.lora_rank=2"});
  expect_as_one("mean", "base-masked", classes, {2, 4}, 2);
  expect_as_one("first", "base-masked", first, {4}, 2);
  expect_as_one("values", "base-causal",
                {"--task", "sequence-regression", "--labels", "values.tsv", "--set", "data.layout=padded"},
                {4}, 2);
  expect_as_one("tokens", "base-masked", {"--task", "token-classification", "--labels", "tokens.tsv"}, {3},
                3);
  expect_as_one("padded", "base-causal",
                {"--task", "token-classification", "--labels", "tokens.tsv", "--set", "data.layout=padded"},
                {2}, 2);
}

TEST_F(RanksWithLabels, ResumeIsExactAndPredictionsAreThoseOfOneProcess) {
  const Arguments task = {"--task", "token-classification", "--labels", "tokens.tsv"};
  ASSERT_EQ(tune("whole", "base-masked", 2, task).code, 0);
  Arguments stopped = {"--time-limit", "0.01s"};
  stopped.insert(stopped.begin(), task.begin(), task.end());
  ASSERT_EQ(tune("stopped", "base-masked", 2, stopped).code, 0);
  EXPECT_LT(losses_of("stopped").size(), 20U);
  const Result resumed = run({"train", "-t", "1", "--train", "data.fasta", "-o", "stopped", "--resume",
                              "--nproc", "2", "--labels", "tokens.tsv"});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(losses(read("stopped/metrics.jsonl")), losses(read("whole/metrics.jsonl")));
  EXPECT_EQ(read("stopped/head.safetensors"), read("whole/head.safetensors"));
  for (const Arguments& command :
       {Arguments{"predict", "whole", "data.fasta", "-t", "1"},
        Arguments{"evaluate", "whole", "data.fasta", "--labels", "tokens.tsv", "--json", "-t", "1"}}) {
    Arguments several = command;
    several.insert(several.end(), {"--nproc", "3"});
    const Result one = run(command), found = run(several);
    ASSERT_EQ(one.code, 0) << one.err;
    EXPECT_EQ(found.code, 0) << found.err;
    EXPECT_EQ(found.out, one.out);
  }
}

}  // namespace
}  // namespace performer::testing_cli
