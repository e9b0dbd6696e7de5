// SPDX-License-Identifier: Apache-2.0
// Runs that are stopped, killed and continued.
#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <thread>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using namespace std::chrono_literals;

class Resume : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    make_fasta("train.fasta");
  }

  // Waits until `holds` or the program ends; false when it ended first.
  static bool wait_until(Process& process, const std::function<bool()>& holds) {
    for (int i = 0; i < 6000; ++i) {
      if (holds()) return true;
      if (!process.running()) return false;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }

  int64_t last_step(const std::string& model) const {
    if (!exists(model + "/metrics.jsonl")) return 0;
    const auto by_step = losses(read(model + "/metrics.jsonl"));
    return by_step.empty() ? 0 : by_step.rbegin()->first;
  }

  // Options of a run that would take far longer than the test.
  static Arguments endless(const std::string& checkpoint_every) {
    return {"--steps", "1000000", "--set", "train.checkpoint_every=" + checkpoint_every};
  }

  // Continues `model` by some steps and compares with a run that was never stopped.
  void expect_as_if_never_stopped(const std::string& model, const std::string& checkpoint_every) {
    const std::string steps = std::to_string(last_step(model) + 10);
    const Result resumed =
        run({"train", "-t", "1", "--train", "train.fasta", "-o", model, "--resume", "--steps", steps});
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    const Result whole = run(train_arguments(
        "train.fasta", "whole", {"--steps", steps, "--set", "train.checkpoint_every=" + checkpoint_every}));
    ASSERT_EQ(whole.code, 0) << whole.err;
    const auto expected = losses(read("whole/metrics.jsonl"));
    EXPECT_EQ(expected.size(), std::stoul(steps));
    EXPECT_EQ(losses(read(model + "/metrics.jsonl")), expected);
    EXPECT_EQ(read(model + "/model.safetensors"), read("whole/model.safetensors"));
  }

  void expect_no_temporary_files() const {
    for (const auto& file : files()) EXPECT_THAT(file, testing::Not(testing::HasSubstr(".tmp-")));
  }
};

TEST_F(Resume, AfterAKillFromTheLastCheckpoint) {
  {
    Process process(directory_, train_arguments("train.fasta", "killed", endless("10")), {});
    ASSERT_TRUE(wait_until(process, [&] { return last_step("killed") >= 25; })) << process.wait().err;
    process.send(SIGKILL);
    EXPECT_EQ(process.wait().signal, SIGKILL);
  }
  ASSERT_TRUE(exists("killed/training.safetensors"));
  expect_as_if_never_stopped("killed", "10");
  expect_no_temporary_files();
}

TEST_F(Resume, SignalsWriteACheckpointAndExitWith130) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const std::string model = "stopped_" + std::to_string(signal);
    Process process(directory_, train_arguments("train.fasta", model, endless("0")), {});
    ASSERT_TRUE(wait_until(process, [&] { return last_step(model) >= 3; })) << process.wait().err;
    process.send(signal);
    const Result result = process.wait();
    EXPECT_EQ(result.signal, 0);
    expect_failure(result, 130, {"checkpoint", "--resume", model});
    EXPECT_TRUE(exists(model + "/training.safetensors"));
  }
  expect_as_if_never_stopped("stopped_" + std::to_string(SIGTERM), "0");
  expect_no_temporary_files();
}

TEST_F(Resume, RefusesAChangeThatWouldChangeTheResults) {
  make_model("model", {"--set", "train.checkpoint_every=2"});
  const Result result = run(train_arguments("train.fasta", "model", {"--resume", "--set", "model.width=32"}));
  expect_failure(result, 2, {"model.width", "16", "32"});
  make_fasta("other.fasta", 10);
  expect_failure(
      run({"train", "--train", "other.fasta", "-o", "model", "--resume", "--steps", "9", "-t", "1"}), 2,
      {"model"});
}

TEST_F(Resume, TimeLimitEndsWithAFinishedModel) {
  const Result result =
      run(train_arguments("train.fasta", "model", {"--steps", "1000000", "--time-limit", "0.5s", "--quiet"}));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(run({"evaluate", "model", "train.fasta"}).code, 0);
}

TEST_F(Resume, SignalsOfSchedulersAndTerminalsLeaveACheckpoint) {
  for (const int signal : {SIGHUP, SIGUSR1, SIGUSR2}) {
    const std::string model = "model" + std::to_string(signal);
    Process process(directory_, train_arguments("train.fasta", model, endless("1000000")), {});
    ASSERT_TRUE(wait_until(process, [&] { return last_step(model) >= 2; }));
    process.send(signal);
    const Result result = process.wait();
    EXPECT_EQ(result.code, 130) << result.signal;
    EXPECT_THAT(result.err, testing::HasSubstr("--resume"));
    EXPECT_EQ(run({"train", "--train", "train.fasta", "-o", model, "--resume", "--steps", "1"}).code, 0);
  }
}

TEST_F(Resume, IgnoredSignalsStayIgnored) {
  const Arguments arguments = train_arguments("train.fasta", "model", endless("1000000"));
  std::string script = "trap '' HUP; exec \"$PERFORMER\"";
  for (const std::string& argument : arguments) script += " '" + argument + "'";
  Process process(directory_, {}, {.shell = script});
  ASSERT_TRUE(wait_until(process, [&] { return last_step("model") >= 2; }));
  process.send(SIGHUP);
  const int64_t then = last_step("model");
  EXPECT_TRUE(wait_until(process, [&] { return last_step("model") >= then + 5; })) << "it went on";
  process.send(SIGTERM);
  EXPECT_EQ(process.wait().code, 130);
}

TEST_F(Resume, AnEvaluationStopsSoon) {
  make_fasta("valid.fasta", 30000);
  Process process(directory_,
                  train_arguments("train.fasta", "model", {"--steps", "1", "--valid", "valid.fasta"}), {});
  ASSERT_TRUE(wait_until(process, [&] { return last_step("model") >= 1; }));
  process.send(SIGINT);
  const Result result = process.wait();
  EXPECT_EQ(result.code, 130) << result.err;
  EXPECT_THAT(result.err, testing::HasSubstr("interrupted after step 1"));
  EXPECT_EQ(read("model/metrics.jsonl").find("valid"), std::string::npos);
}

TEST_F(Resume, ReadingEndsAtASignal) {
  // Nobody writes into the named pipe, so that reading would wait without end.
  const Arguments arguments = train_arguments("pipe", "model", {"--set", "data.holdout=0"});
  std::string script = "mkfifo pipe; exec 3<>pipe; touch ready; exec \"$PERFORMER\"";
  for (const std::string& argument : arguments) script += " '" + argument + "'";
  Process process(directory_, {}, {.shell = script});
  ASSERT_TRUE(wait_until(process, [&] { return exists("model"); }));
  std::this_thread::sleep_for(500ms);
  process.send(SIGTERM);
  EXPECT_EQ(process.wait().code, 130);
}

TEST_F(Resume, InterruptedCommandsLeaveNothingHalfWritten) {
  make_model();
  make_fasta("many.fasta", 30000);
  Process process(directory_, {"score", "model", "many.fasta", "-t", "1", "-o", "scores.tsv"}, {});
  const std::string aside = "scores.tsv.tmp-";
  const auto begun = [&] {
    for (const auto& file : files()) {
      if (file.find(aside) != std::string::npos) return true;
    }
    return false;
  };
  ASSERT_TRUE(wait_until(process, begun));
  process.send(SIGTERM);
  EXPECT_EQ(process.wait().signal, SIGTERM);
  EXPECT_FALSE(exists("scores.tsv"));
  expect_no_temporary_files();
  // Where nothing could be removed, the next command that writes there does it.
  Process killed(directory_, {"score", "model", "many.fasta", "-t", "1", "-o", "scores.tsv"}, {});
  ASSERT_TRUE(wait_until(killed, begun));
  killed.send(SIGKILL);
  killed.wait();
  EXPECT_TRUE(begun());
  EXPECT_EQ(run({"score", "model", "train.fasta", "-o", "scores.tsv"}).code, 0);
  expect_no_temporary_files();
}

}  // namespace
}  // namespace performer::testing_cli
