// SPDX-License-Identifier: Apache-2.0
// Stopping, crashing and resuming must leave no trace in the results. The small request has dropout, redraws
// and accumulation on, so every random number counts.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "performer/base/error.h"
#include "performer/models/folder.h"
#include "performer/train/run_folder.h"
#include "tests/train/runs.h"

namespace performer::train {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::losses;
using ::testing::Not;
using testing::records;

class ResumeTest : public testing::RunTest {
 protected:
  // Losses and final parameters of a run of `steps` that was never stopped.
  void expect_never_stopped(const LanguageModelRequest& resumed) {
    LanguageModelRequest whole = resumed;
    whole.output = folder_ / "whole";
    whole.resume = false;
    whole.options.stop = nullptr;
    run(whole);
    EXPECT_EQ(losses(resumed.output), losses(whole.output));
    const auto expected = model_state(load_model(whole.output).model),
               got = model_state(load_model(resumed.output).model);
    for (const auto& [name, tensor] : expected) EXPECT_TRUE(at::equal(tensor, got.at(name))) << name;
    for (const char* key : {"tokens", "targets", "sequences", "cropped", "tokens_dropped", "pieces"}) {
      const auto expected_count = records(whole.output).back()["final"][key];
      EXPECT_TRUE(expected_count.is_number_integer()) << key;
      EXPECT_EQ(records(resumed.output).back()["final"][key], expected_count) << key;
    }
  }
};

TEST_F(ResumeTest, LongerAfterTheEnd) {
  LanguageModelRequest with = request("run");
  with.train.steps = 3;  // no multiple of checkpoint_every, evaluate_every or redraw_every but of the last
  run(with);
  with.resume = true;
  with.train.steps = 5;
  run(with);
  with.train.steps = 11;
  with.train.log_every = 3;
  with.train.checkpoint_every = 2;
  run(with);
  expect_never_stopped(with);
}

TEST_F(ResumeTest, EveryLayoutAndObjective) {
  for (const char* objective : {"causal", "masked"}) {
    for (const char* layout : {"packed", "padded", "concatenated"}) {
      for (const char* crop : {"split", "random"}) {
        LanguageModelRequest with = request(fmt::format("{}-{}-{}", objective, layout, crop));
        with.model.objective = objective;
        with.data.layout = layout;
        with.data.crop = crop;
        with.data.length = 16;
        with.train.steps = 3;
        if (!failure(with).empty()) continue;  // combinations that the data layer refuses
        with.resume = true;
        with.train.steps = 9;
        run(with);
        LanguageModelRequest whole = with;
        whole.output += "-whole";
        whole.resume = false;
        run(whole);
        EXPECT_EQ(losses(with.output), losses(whole.output)) << with.output;
      }
    }
  }
}

TEST_F(ResumeTest, InterruptedAtAnyStep) {
  LanguageModelRequest with = request("run");
  with.train.steps = 40;
  with.train.checkpoint_every = 1000;
  std::atomic<bool> stop{false};
  with.options.stop = &stop;
  {
    const std::jthread interrupter([&](const std::stop_token& over) {
      while (!over.stop_requested()) {
        std::error_code ignored;
        if (fs::file_size(with.output + "/metrics.jsonl", ignored) > 600 && !ignored)
          break;  // two or three steps
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      stop = true;
    });
    EXPECT_THROW(run(with), Interrupted);
  }
  const size_t done = losses(with.output).size();
  EXPECT_GT(done, 0u);
  EXPECT_LT(done, 40u);
  EXPECT_NO_THROW(load_model(with.output));
  stop = false;
  with.resume = true;
  run(with);
  expect_never_stopped(with);
}

TEST_F(ResumeTest, InterruptedBeforeTheFirstStep) {
  LanguageModelRequest with = request("run");
  const std::atomic<bool> stop{true};
  with.options.stop = &stop;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("interrupted after step 0"), HasSubstr("--resume")));
  with.options.stop = nullptr;
  with.resume = true;
  run(with);
  expect_never_stopped(with);
}

// An evaluation that was due when the signal came is made up for.
TEST_F(ResumeTest, EvaluationsAreNotLost) {
  LanguageModelRequest with = request("run");
  with.train.steps = 5;
  run(with);
  with.resume = true;
  with.train.steps = 10;
  run(with);
  std::vector<int64_t> evaluated;
  for (const auto& record : records(with.output)) {
    if (record.contains("valid")) evaluated.push_back(record["step"]);
  }
  EXPECT_EQ(evaluated, (std::vector<int64_t>{5, 10}));
}

// What kill -9 leaves: records behind the checkpoint, a line cut off, a half-written file.
TEST_F(ResumeTest, AfterACrash) {
  LanguageModelRequest with = request("run");
  with.train.steps = 4;
  run(with);
  {
    std::ofstream metrics(with.output + "/metrics.jsonl", std::ios::app);
    metrics << R"({"step": 5, "loss": 99.0, "tokens": 1})"
            << "\n"
            << R"({"step": 6, "lo)";
  }
  const std::string stale = with.output + "/model.safetensors.tmp-4194399";  // above the largest process id
  write_file(stale, "half");
  fs::remove(with.output + "/model.safetensors");  // training.safetensors alone must do
  with.resume = true;
  with.train.steps = 10;
  run(with);
  EXPECT_FALSE(fs::exists(stale));
  expect_never_stopped(with);
  int64_t step = 0;
  for (const auto& record : records(with.output)) {  // throws for a line that is no JSON
    if (record.contains("loss")) {
      EXPECT_EQ(record["step"], ++step);
    }
  }
}

TEST_F(ResumeTest, NothingLeftToDo) {
  LanguageModelRequest with = request("run");
  const RunResult first = run(with);
  with.resume = true;
  const RunResult again = run(with);
  EXPECT_EQ(again.steps, first.steps);
  EXPECT_EQ(again.tokens, first.tokens);
  EXPECT_EQ(again.loss, first.loss);
}

TEST_F(ResumeTest, WhatChangesResultsIsRefused) {
  LanguageModelRequest with = request("run");
  with.train.steps = 2;
  run(with);
  with.resume = true;
  const auto refusal = [&](const auto& change) {
    LanguageModelRequest changed = with;
    change(changed);
    return failure(changed);
  };
  EXPECT_THAT(refusal([](auto& r) { r.train.learning_rate = 1; }),
              AllOf(HasSubstr("train.learning_rate is 1"), HasSubstr("0.003"), HasSubstr("train.steps")));
  EXPECT_THAT(refusal([](auto& r) { r.model.width = 32; }), HasSubstr("model.width"));
  EXPECT_THAT(refusal([](auto& r) { r.attention.redraw_every = 7; }), HasSubstr("attention.redraw_every"));
  EXPECT_THAT(refusal([](auto& r) { r.data.batch_tokens = 64; }), HasSubstr("data.batch_tokens"));
  EXPECT_THAT(refusal([](auto& r) { r.train.accumulate = 1; }), HasSubstr("train.accumulate"));
  const auto other = testing::write_fasta(folder_ / "other.fasta", testing::random_proteins(40, 2));
  EXPECT_THAT(refusal([&](auto& r) { r.train_files = {other}; }), HasSubstr("--train"));
  EXPECT_THAT(refusal([&](auto& r) { r.valid_files = {other}; }), HasSubstr("--"));
  EXPECT_THAT(refusal([](auto& r) { r.data.vocabulary = "protein"; }),
              AllOf(HasSubstr("data.vocabulary is protein"), HasSubstr("started with auto")));
  EXPECT_EQ(load_training(with.output).settings.at("train.learning_rate"), "0.003");
  EXPECT_EQ(losses(with.output).size(), 2u) << "a refusal changes nothing";
}

TEST_F(ResumeTest, WithoutACheckpoint) {
  LanguageModelRequest with = request("absent");
  with.resume = true;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("does not exist"), HasSubstr("--resume")));
  EXPECT_FALSE(fs::exists(with.output));
  fs::create_directories(with.output);
  EXPECT_THAT(failure(with), HasSubstr("holds no checkpoint"));
}

TEST_F(ResumeTest, DamagedOrNewerCheckpoints) {
  LanguageModelRequest with = request("run");
  with.train.steps = 1;
  run(with);
  with.resume = true;
  const std::string path = with.output + "/training.safetensors";
  const std::string whole = read_file(path);

  write_file(path, whole.substr(0, whole.size() / 2));
  EXPECT_THROW(run(with), InputError);

  const auto edited = [&](const std::string& from, const std::string& to) {
    std::string text = whole;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos);
    return text.replace(at, from.size(), to);
  };
  write_file(path,
             edited(fmt::format(R"("performer_format":"{}")", kModelFormat), R"("performer_format":"9")"));
  EXPECT_THAT(failure(with), AllOf(HasSubstr("format 9"), HasSubstr(path)));
  write_file(path,
             edited(fmt::format(R"("performer_format":"{}")", kModelFormat), R"("performer_format":"1")"));
  EXPECT_THAT(failure(with), AllOf(HasSubstr("format 1"), HasSubstr("train into another folder")));
  write_file(path, edited("performer_format", "performer_fornat"));
  EXPECT_THAT(failure(with), HasSubstr("not a training checkpoint"));
  for (const auto& [key, other] : {std::pair{"seconds", "sekonds"}, std::pair{"cursor", "kursor"}}) {
    write_file(path, edited(key, other));  // of the loop, and of the task
    EXPECT_THAT(failure(with),
                AllOf(HasSubstr("damaged training state"), HasSubstr(path), Not(HasSubstr("json.exception"))))
        << key;
  }
}

TEST_F(ResumeTest, OneProcessAFolder) {
  const std::string path = folder_ / "run";
  {
    const RunFolder first(path, false);
    EXPECT_THROW(RunFolder(path, true), UsageError);
  }
  EXPECT_NO_THROW(RunFolder(path, true));
}

}  // namespace
}  // namespace performer::train
