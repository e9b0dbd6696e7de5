// SPDX-License-Identifier: Apache-2.0
// The command train as several processes: results, signals, lost ranks.
#include <gmock/gmock.h>
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

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
  static Arguments endless(const std::string& output, const Arguments& more = {}) {
    Arguments options = {"--nproc", "2", "--steps", "1000000", "--set", "train.checkpoint_every=5"};
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

  static bool wait_until(Process& process, const std::function<bool()>& holds) {
    for (int i = 0; i < 6000; ++i) {
      if (holds()) return true;
      if (!process.running()) return false;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }
  bool made_steps(const std::string& output, size_t steps) const {
    return exists(output + "/metrics.jsonl") && losses(read(output + "/metrics.jsonl")).size() >= steps;
  }

  // Processes of this program that have RANK=`rank` and work in this test's folder.
  pid_t find_rank(int rank) const {
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const std::string folder = entry.path().string();
      std::error_code ignored;
      if (std::filesystem::read_symlink(folder + "/cwd", ignored) != std::filesystem::canonical(directory_))
        continue;
      std::ifstream stream(folder + "/environ");
      for (std::string word; std::getline(stream, word, '\0');) {
        if (word == "RANK=" + std::to_string(rank)) return std::atoi(entry.path().filename().c_str());
      }
    }
    return -1;
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

}  // namespace
}  // namespace performer::testing_cli
