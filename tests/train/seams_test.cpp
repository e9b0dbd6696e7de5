// SPDX-License-Identifier: Apache-2.0
// The loop trains whatever a task says, and a language model whatever a corpus holds: a vocabulary of seven
// symbols from memory, and a task without any model or data of ours.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "performer/base/error.h"
#include "performer/models/folder.h"
#include "performer/train/language_model_task.h"
#include "performer/train/trainer.h"
#include "tests/train/runs.h"

namespace performer::train {
namespace {

using ::testing::HasSubstr;
using testing::losses;
using testing::records;

class Seams : public ::testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(1); }  // as in runs.h
  testing::TemporaryFolder folder_;
};

// Each symbol is followed by the next but one: i, i + 2, i + 4 .. modulo 7, from a random beginning.
data::MemoryCorpus counting_corpus(int count, uint64_t seed) {
  PhiloxStream random(seed);
  std::vector<std::vector<data::Token>> sequences;
  for (int i = 0; i < count; ++i) {
    std::vector<data::Token> sequence(8 + random.below(9));
    sequence[0] = static_cast<data::Token>(random.below(7));
    for (size_t t = 1; t < sequence.size(); ++t) {
      sequence[t] = static_cast<data::Token>((sequence[t - 1] + 2) % 7);
    }
    sequences.push_back(sequence);
  }
  return {sequences, data::Vocabulary::of_symbols("days", {"Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"})};
}

TEST_F(Seams, ACorpusOfSevenSymbolsFromMemoryTrains) {
  const data::MemoryCorpus train = counting_corpus(200, 1), valid = counting_corpus(50, 2);
  LanguageModelConfig config;
  config.model = {.layers = 1, .width = 32, .heads = 2, .ffn = 64, .dropout = 0};
  config.data.length = 32;
  config.data.batch_tokens = 256;
  config.train.steps = 80;
  config.train.learning_rate = 1e-2;
  config.train.evaluate_every = 40;
  LanguageModelTask task(config, train, &valid);
  const RunFolder output(folder_ / "run", /*resume=*/false);
  const RunResult result = run(task, output, config.train);

  EXPECT_GT(losses(output.path()).front(), 1.5);
  EXPECT_LT(result.loss, 0.6) << "beginning and end of a sequence are left to chance, all else is certain";
  std::vector<nlohmann::json> evaluations;
  for (const auto& record : records(output.path())) {
    if (record.contains("valid")) evaluations.push_back(record["valid"]);
  }
  ASSERT_EQ(evaluations.size(), 2u);
  EXPECT_EQ(evaluations.back()["model"]["tokens"], valid.total_tokens());
  EXPECT_GT(evaluations.back()["model"]["accuracy"], 0.9);
  EXPECT_FALSE(evaluations.back()["model"].contains("bits_per_byte"));

  const ModelFolder saved = load_model(output.path());
  EXPECT_EQ(saved.model->vocabulary(), 7 + 4);
  EXPECT_TRUE(saved.vocabulary == train.vocabulary());
  EXPECT_EQ(saved.vocabulary.name(), "days");
  EXPECT_EQ(saved.data.vocabulary, "days");
  EXPECT_EQ(saved.baselines.counts(), testing::fitted(train).counts());
}

TEST_F(Seams, CorporaOfTwoVocabulariesAreRefused) {
  const data::MemoryCorpus train({{0, 1}}, data::Vocabulary::dna()), valid({{0, 1}}, data::Vocabulary::rna());
  EXPECT_THROW(LanguageModelTask({}, train, &valid), InputError);
}

TEST_F(Seams, AResumeInAnotherVocabularyIsRefused) {
  const std::vector<std::vector<data::Token>> sequences = {{0, 1, 2, 3}, {3, 2, 1}};
  LanguageModelConfig config;
  config.model = {.layers = 1, .width = 16, .heads = 2, .ffn = 32};
  config.train.steps = 1;
  const auto train_on = [&](const data::Vocabulary& vocabulary, bool resume) {
    const data::MemoryCorpus corpus(sequences, vocabulary);
    LanguageModelTask task(config, corpus);
    run(task, RunFolder(folder_ / "run", resume), config.train);
  };
  train_on(data::Vocabulary::dna(), false);
  EXPECT_NO_THROW(train_on(data::Vocabulary::dna(), true));
  try {
    train_on(data::Vocabulary::rna(), true);
    FAIL() << "the ids are the same, their meaning is not";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("of another vocabulary"));
  }
}

// Finds the mean of noisy measurements of a constant: one parameter, a squared error, measurements drawn by
// number, and noise of LibTorch's generator on top. It keeps a running mean of its own beside the parameter.
class ConstantTask final : public Task {
 public:
  static constexpr double kConstant = 3;

  struct Measurements final : Batch {
    at::Tensor values;
  };

  std::vector<NamedParameter> parameters() override { return {{"estimate", estimate_, /*decays=*/false}}; }

  std::unique_ptr<Batch> next() override {
    auto batch = std::make_unique<Measurements>();
    PhiloxStream random(5, static_cast<uint32_t>(drawn_++));
    std::vector<float> values;
    for (int i = 0; i < 8; ++i) values.push_back(static_cast<float>(kConstant) + 0.25F * (i % 2 ? 1 : -1));
    values[random.below(8)] += 0.1F;
    batch->values = at::tensor(values);
    batch->tokens = batch->targets = 8;
    batch->weight = 8;
    return batch;
  }

  BatchSums backward(const Batch& batch, double divisor) override {
    const at::Tensor& values = dynamic_cast<const Measurements&>(batch).values;
    const at::Tensor noise = at::randn(values.sizes()) * 0.01;
    const at::Tensor loss = (values + noise - estimate_).square().sum() / divisor;
    loss.backward();
    return {loss.item<double>(), std::nan("")};
  }

  void before_step(int64_t steps) override { EXPECT_EQ(steps, steps_++); }
  void after_step() override { average_ = 0.9 * average_ + 0.1 * estimate(); }

  std::optional<EvaluationReport> evaluate() override {
    EvaluationReport report;
    const double error = std::abs(estimate() - kConstant);
    report.record = {{"error", error}};
    report.scalars = {{"error", error}};
    report.summary = fmt::format("error {:.3f}", error);
    return report;
  }

  Settings settings() const override { return {{"constant.value", fmt::format("{}", kConstant)}}; }
  TaskState state() const override {
    return {{{"drawn", drawn_}, {"average", average_}, {"steps", steps_}},
            {{"estimate", estimate_.detach()}}};
  }
  void set_state(const TaskState& state, const std::string&) override {
    state.values.at("drawn").get_to(drawn_);
    state.values.at("average").get_to(average_);
    state.values.at("steps").get_to(steps_);
    const at::NoGradGuard no_grad;
    estimate_.copy_(state.tensors.at("estimate"));
  }
  void save(const std::string& folder) const override {
    write_file(folder + "/constant.txt", fmt::format("{}\n", estimate()));
  }

  double estimate() const { return estimate_.item<double>(); }
  double average() const { return average_; }

 private:
  at::Tensor estimate_ = at::zeros({1}).requires_grad_();
  int64_t drawn_ = 0, steps_ = 0;
  double average_ = 0;
};

TrainConfig constant_config(int64_t steps) {
  TrainConfig config;
  config.steps = steps;
  config.learning_rate = 0.05;
  config.accumulate = 2;
  config.clip = 100;
  config.evaluate_every = 50;
  config.checkpoint_every = 7;
  return config;
}

// Runs or resumes in a folder; returns the task as it is then.
ConstantTask run_constant(const std::string& path, const TrainConfig& config, bool resume = false,
                          const RunOptions& options = {}) {
  ConstantTask task;
  if (!resume) at::manual_seed(1);
  run(task, RunFolder(path, resume), config, options);
  return task;
}

TEST_F(Seams, ATaskThatFitsAConstantTrains) {
  const std::string output = folder_ / "run";
  const ConstantTask task = run_constant(output, constant_config(200));
  EXPECT_NEAR(task.estimate(), ConstantTask::kConstant, 0.05);
  EXPECT_NEAR(task.average(), task.estimate(), 0.05);
  EXPECT_EQ(read_file(output + "/constant.txt"), fmt::format("{}\n", task.estimate()));
  EXPECT_FALSE(std::filesystem::exists(output + "/model.safetensors"));

  int64_t steps = 0;
  for (const auto& record : records(output)) {
    if (!record.contains("loss")) continue;
    EXPECT_EQ(record["step"], ++steps);
    EXPECT_EQ(record["tokens"], 16 * steps);
    EXPECT_EQ(record["targets"], 16 * steps);
    EXPECT_FALSE(record.contains("accuracy")) << "there is nothing that is right or wrong";
    EXPECT_FALSE(record.contains("perplexity"));
  }
  EXPECT_EQ(steps, 200);
  const auto all = records(output);
  EXPECT_EQ(std::ranges::count_if(all, [](const auto& r) { return r.contains("valid"); }), 4);
  EXPECT_GT(losses(output).front(), 8);
  EXPECT_LT(losses(output).back(), 0.2);
}

TEST_F(Seams, ItResumesAsIfNeverStopped) {
  const std::string whole = folder_ / "whole", parts = folder_ / "parts";
  const ConstantTask expected = run_constant(whole, constant_config(60));
  run_constant(parts, constant_config(23));
  at::manual_seed(99);  // a resumed run depends on nothing but its checkpoint
  run_constant(parts, constant_config(41), /*resume=*/true);
  at::manual_seed(98);
  const ConstantTask got = run_constant(parts, constant_config(60), /*resume=*/true);
  EXPECT_EQ(losses(parts), losses(whole));
  EXPECT_EQ(got.estimate(), expected.estimate());
  EXPECT_EQ(got.average(), expected.average());

  const auto last = load_training(parts), first = load_training(whole);
  EXPECT_EQ(last.task.values, first.task.values);
  EXPECT_EQ(last.settings, first.settings);
  for (const auto& [name, tensor] : first.adam) EXPECT_TRUE(at::equal(last.adam.at(name), tensor)) << name;
  EXPECT_TRUE(at::equal(last.generator, first.generator));
}

TEST_F(Seams, ItContinuesFromTheCheckpointOfAnInterruption) {
  const std::string whole = folder_ / "whole", parts = folder_ / "parts";
  run_constant(whole, constant_config(30));
  const std::atomic<bool> stop{true};
  EXPECT_THROW(run_constant(parts, constant_config(30), false, {.stop = &stop}), Interrupted);
  EXPECT_EQ(load_training(parts).state.step, 0);
  run_constant(parts, constant_config(30), /*resume=*/true);
  EXPECT_EQ(losses(parts), losses(whole));

  TrainConfig other = constant_config(40);
  other.learning_rate = 1;
  EXPECT_THROW(run_constant(parts, other, /*resume=*/true), UsageError);
}

TEST_F(Seams, ItStopsAtATimeLimit) {
  const std::string output = folder_ / "run";
  TrainConfig config = constant_config(100'000'000);
  config.checkpoint_every = config.evaluate_every = 0;
  run_constant(output, config, false, {.time_limit = 0.2});
  const auto state = load_training(output).state;
  EXPECT_GT(state.step, 0);
  EXPECT_LT(state.step, config.steps);
  EXPECT_GE(state.seconds, 0.2);
  EXPECT_TRUE(records(output).back().contains("final"));
}

}  // namespace
}  // namespace performer::train
