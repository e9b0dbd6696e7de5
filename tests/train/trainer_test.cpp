// SPDX-License-Identifier: Apache-2.0
// What a training run learns, records and leaves behind. Stopping and resuming: resume_test.cpp.
#include "performer/train/trainer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "performer/base/error.h"
#include "performer/data/batches.h"
#include "performer/models/folder.h"
#include "performer/train/metrics_log.h"
#include "tests/train/runs.h"

namespace performer::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::losses;
using testing::records;

class TrainerTest : public testing::RunTest {};

TEST_F(TrainerTest, LearnsATinySetByHeart) {
  for (const char* kind : {"favor-softmax", "favor-relu"}) {
    LanguageModelRequest small = request(kind);
    small.train_files = {testing::write_fasta(folder_ / "tiny.fasta", testing::random_proteins(3))};
    small.model.width = 32;
    small.model.dropout = 0;
    small.attention.kind = kind;
    small.attention.redraw_every = 0;
    small.data.holdout = 0;
    small.train.steps = 200;
    small.train.learning_rate = 1e-2;
    small.train.weight_decay = 0;
    small.train.accumulate = 1;
    const RunResult result = run(small);
    EXPECT_GT(losses(small.output).front(), 2.5) << kind;
    EXPECT_LT(result.loss, 0.2) << kind;
  }
}

TEST_F(TrainerTest, RecordsEveryStep) {
  const LanguageModelRequest with = request("run");
  const RunResult result = run(with);
  int64_t step = 0, tokens = 0, targets = 0, evaluations = 0;
  double seconds = 0;
  const auto all = records(with.output);
  for (const auto& record : all) {
    if (record.contains("valid")) {
      ++evaluations;
      EXPECT_EQ(record["step"].get<int64_t>() % 5, 0);
      EXPECT_GT(record["valid"]["model"]["perplexity"], 1);
      EXPECT_EQ(record["valid"]["model"]["tokens"], record["valid"]["bigram"]["tokens"]);
    }
    if (!record.contains("loss")) continue;
    EXPECT_EQ(record["step"], ++step);
    EXPECT_NEAR(record["perplexity"].get<double>(), std::exp(record["loss"].get<double>()), 1e-6);
    EXPECT_GT(record["tokens"], tokens);
    EXPECT_GE(record["seconds"], seconds);
    EXPECT_DOUBLE_EQ(record["lr"], 3e-3);
    EXPECT_GT(record["grad_norm"], 0);
    EXPECT_GT(record["tokens_per_second"], 0);
    EXPECT_GT(record["peak_memory_mib"], 1);
    EXPECT_THAT(record["accuracy"].get<double>(), AllOf(::testing::Ge(0), ::testing::Le(1)));
    EXPECT_GT(record["targets"], targets);
    EXPECT_EQ(record["targets"], record["tokens"]) << "a causal model predicts at every token";
    tokens = record["tokens"];
    targets = record["targets"];
    seconds = record["seconds"];
  }
  EXPECT_EQ(step, 10);
  EXPECT_EQ(evaluations, 2);
  EXPECT_EQ(result.steps, 10);
  EXPECT_EQ(result.tokens, tokens);
  EXPECT_EQ(result.targets, targets);
  EXPECT_EQ(result.loss, losses(with.output).back());
  EXPECT_EQ(all.back()["final"]["tokens"], tokens);
  EXPECT_EQ(all.back()["final"]["targets"], targets);
  EXPECT_GT(all.back()["final"]["sequences"], 0);
}

TEST_F(TrainerTest, LeavesAModelFolder) {
  const LanguageModelRequest with = request("run");
  run(with);
  const ModelFolder loaded = load_model(with.output);
  EXPECT_EQ(loaded.model->model_config().width, 16);
  EXPECT_EQ(loaded.data.length, 32);
  EXPECT_THAT(loaded.objective_note, HasSubstr("causal"));
  // The baselines are those of the training split alone.
  const data::SequenceStore corpus(with.train_files, folder_ / "", {},
                                   {data::HashSplit::Side::train, 0.2, 0});
  EXPECT_EQ(loaded.baselines.counts(), testing::fitted(corpus).counts());
  EXPECT_TRUE(loaded.vocabulary == data::Vocabulary::protein());
  EXPECT_EQ(loaded.data.format, "fasta") << "what was automatic is recorded";
  EXPECT_EQ(loaded.data.vocabulary, "protein");
}

TEST_F(TrainerTest, HoldsSequencesOut) {
  const data::SequenceStore held_out({fasta_}, folder_ / "", {}, {data::HashSplit::Side::held_out, 0.2, 0});
  const LanguageModelRequest with = request("run");
  run(with);
  const auto all = records(with.output);
  const auto last = std::find_if(all.rbegin(), all.rend(), [](const auto& r) { return r.contains("valid"); });
  ASSERT_NE(last, all.rend());
  EXPECT_EQ((*last)["valid"]["sequences"], held_out.size());
  EXPECT_EQ((*last)["valid"]["model"]["tokens"], held_out.total_tokens());

  LanguageModelRequest own = request("own");
  own.valid_files = {testing::write_fasta(folder_ / "v.fasta", testing::random_proteins(7, 9))};
  own.train.steps = 1;
  run(own);
  for (const auto& record : records(own.output)) {
    if (record.contains("valid")) {
      EXPECT_EQ(record["valid"]["sequences"], 7);
    }
  }

  LanguageModelRequest none = request("none");  // so small that nothing falls into the held-out part
  none.train_files = {testing::write_fasta(folder_ / "one.fasta", testing::random_proteins(1))};
  none.data.holdout = 1e-6;
  none.train.steps = 1;
  EXPECT_EQ(failure(none), "");
}

TEST_F(TrainerTest, SameSeedSameLosses) {
  LanguageModelRequest a = request("a"), b = request("b"), c = request("c");
  c.train.seed = 1;
  run(a);
  run(b);
  run(c);
  EXPECT_EQ(losses(a.output), losses(b.output));
  EXPECT_NE(losses(a.output).front(), losses(c.output).front()) << "the seed names the weights";
}

// Rows of different lengths: only the mean over all tokens of the group, not that of batch means, is the
// same.
TEST_F(TrainerTest, TwoHalfBatchesAreOneBatch) {
  LanguageModelRequest halves = request("halves"), whole = request("whole");
  for (LanguageModelRequest* r : {&halves, &whole}) {
    r->model.dropout = 0;
    r->data.layout = "padded";
    r->data.length = 48;
    r->train.evaluate_every = 0;
  }
  halves.data.batch_tokens = 48 * 3;
  halves.train.accumulate = 2;
  whole.data.batch_tokens = 48 * 6;
  whole.train.accumulate = 1;
  const RunResult a_result = run(halves), b_result = run(whole);
  EXPECT_EQ(a_result.tokens, b_result.tokens);
  EXPECT_EQ(a_result.targets, b_result.targets);
  const auto a = losses(halves.output), b = losses(whole.output);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 2e-5) << "step " << i + 1;
}

TEST_F(TrainerTest, CheckpointedActivationsChangeNothing) {
  LanguageModelRequest plain = request("plain"), lean = request("lean");
  lean.train.checkpoint_activations = true;
  run(plain);
  run(lean);
  EXPECT_EQ(losses(plain.output), losses(lean.output));
}

TEST_F(TrainerTest, Bfloat16StaysNearFloat32) {
  LanguageModelRequest full = request("full"), half = request("half");
  half.train.precision = "bfloat16";
  run(full);
  run(half);
  const auto a = losses(full.output), b = losses(half.output);
  ASSERT_EQ(a.size(), b.size());
  EXPECT_NE(a, b) << "autocast must do something";
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 0.05) << "step " << i + 1;
}

TEST_F(TrainerTest, MaskedAndPaddedAndConcatenated) {
  for (const char* objective : {"causal", "masked"}) {
    for (const char* layout : {"packed", "padded", "concatenated"}) {
      LanguageModelRequest with = request(std::string(objective) + layout);
      with.model.objective = objective;
      with.data.layout = layout;
      with.train.steps = 3;
      EXPECT_EQ(failure(with), "") << objective << " " << layout;
      for (const double loss : losses(with.output)) EXPECT_TRUE(std::isfinite(loss));
    }
  }
}

// A masked model reads every token and is asked for some. Padding is neither.
TEST_F(TrainerTest, CountsWhatIsReadAndWhatIsPredicted) {
  for (const char* layout : {"packed", "padded"}) {
    LanguageModelRequest with = request(layout);
    with.model.objective = "masked";
    with.data.layout = layout;
    with.data.holdout = 0;
    with.train.steps = 3;
    with.train.evaluate_every = 0;
    const RunResult result = run(with);

    const data::SequenceStore corpus(with.train_files, folder_ / "");
    data::BatchStream stream(corpus, with.data, "masked");
    int64_t tokens = 0, targets = 0, places = 0;
    for (int i = 0; i < 3 * 2; ++i) {  // steps times train.accumulate
      const data::Batch batch = stream.next();
      tokens += std::ssize(batch.inputs) - std::ranges::count(batch.inputs, corpus.vocabulary().pad());
      targets += std::ranges::count(batch.weights, 1.0F);
      places += std::ssize(batch.inputs);
    }
    EXPECT_EQ(result.tokens, tokens) << layout;
    EXPECT_EQ(result.targets, targets) << layout;
    EXPECT_LT(targets, tokens / 2);
    EXPECT_EQ(tokens < places, std::string(layout) == "padded");

    const auto all = records(with.output);
    double seconds = 0;
    int64_t before = 0;
    for (const auto& record : all) {
      if (!record.contains("loss")) continue;
      seconds += (record["tokens"].get<double>() - static_cast<double>(before)) /
                 record["tokens_per_second"].get<double>();
      before = record["tokens"];
    }
    EXPECT_NEAR(all.back()["final"]["tokens_per_second"].get<double>() * seconds, static_cast<double>(tokens),
                1e-6 * static_cast<double>(tokens));
  }
}

// Draw i serves the steps i * redraw_every + 1 to (i + 1) * redraw_every.
TEST_F(TrainerTest, RedrawsAtStepBoundaries) {
  const auto projection_after = [&](int64_t steps) {
    LanguageModelRequest with = request(fmt::format("run{}", steps));
    with.train.steps = steps;
    run(with);
    return model_state(load_model(with.output).model).at("blocks_0.attention.kind.projection").clone();
  };
  const LanguageModelRequest with = request("x");
  LanguageModel reference(with.model, with.attention, data::Vocabulary::protein().size());
  const auto draw = [&](int64_t index) {
    reference->redraw(index);
    return model_state(reference).at("blocks_0.attention.kind.projection").clone();
  };
  EXPECT_TRUE(at::equal(projection_after(3), draw(0)));
  EXPECT_TRUE(at::equal(projection_after(4), draw(1)));
  EXPECT_TRUE(at::equal(projection_after(7), draw(2)));
  EXPECT_FALSE(at::equal(draw(0), draw(1)));
}

TEST_F(TrainerTest, DecayOfMatricesSparesNorms) {
  const auto norm_weight = [&](const std::string& decay) {
    LanguageModelRequest with = request(decay);
    with.train.decay = decay;
    with.train.learning_rate = 1e-9;  // only the decay moves anything
    with.train.weight_decay = 1e8;
    with.train.steps = 1;
    run(with);
    const auto state = model_state(load_model(with.output).model);
    EXPECT_LT(state.at("embedding.weight").abs().mean().item<double>(), 0.75) << "0.9 of 0.8";
    return state.at("final_norm.weight").mean().item<double>();
  };
  EXPECT_NEAR(norm_weight("matrices"), 1, 1e-6);
  EXPECT_NEAR(norm_weight("all"), 0.9, 1e-6);
}

TEST_F(TrainerTest, StopsAtTheTimeLimit) {
  LanguageModelRequest with = request("run");
  with.train.steps = 1000000;
  with.train.evaluate_every = with.train.checkpoint_every = 0;
  with.options.time_limit = 0.3;
  const RunResult result = run(with);
  EXPECT_GT(result.steps, 0);
  EXPECT_LT(result.steps, 1000000);
  EXPECT_GE(result.seconds, 0.3);
  EXPECT_NO_THROW(load_model(with.output));
  EXPECT_TRUE(records(with.output).back().contains("final"));
}

TEST_F(TrainerTest, DivergenceNamesTheStepAndKeepsTheCheckpoint) {
  LanguageModelRequest with = request("run");
  with.train.learning_rate = 1e38;
  with.train.checkpoint_every = 1;
  EXPECT_THAT(failure(with), AllOf(HasSubstr(" is "), HasSubstr("in step "), HasSubstr("train.learning_rate"),
                                   HasSubstr("checkpoint of step")));
  EXPECT_NO_THROW(load_model(with.output));
}

TEST_F(TrainerTest, UsageErrors) {
  LanguageModelRequest with = request("run");
  write_file(folder_ / "notes.txt", "keep me");
  with.output = folder_ / "";
  EXPECT_THAT(failure(with), AllOf(HasSubstr("is not empty"), HasSubstr("--resume")));
  EXPECT_EQ(read_file(folder_ / "notes.txt"), "keep me");

  with = request("run");
  with.train_files.clear();
  EXPECT_THAT(failure(with), HasSubstr("--train"));

  with = request("run");
  with.train_files = {"-"};
  EXPECT_THAT(failure(with), AllOf(HasSubstr("standard input"), HasSubstr("--valid")));

  with = request("run");
  with.train.steps = 0;
  EXPECT_THAT(failure(with), HasSubstr("train.steps"));

  with = request("run");
  with.model.positions = "learned";
  with.model.max_length = 16;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("data.length"), HasSubstr("model.max_length")));
  with.data.length = 16;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("longest sequence"), HasSubstr("model.max_length")));

  with = request("run");
  with.model.objective = "masked";
  with.attention = AttentionConfig{};
  with.attention.kind = "linformer";
  with.attention.set("length", 16).set("rank", 4);
  EXPECT_THAT(failure(with),
              AllOf(HasSubstr("data.length"), HasSubstr("attention.kind = linformer takes at most 16")));
  with.data.length = 16;
  EXPECT_THAT(failure(with),
              AllOf(HasSubstr("longest held-out sequence"), HasSubstr("raise attention.length")));

  with = request("run");
  with.train_files = {folder_ / "absent.fasta"};
  EXPECT_THROW(run(with), InputError);
  EXPECT_TRUE(std::filesystem::is_empty(with.output)) << "nothing half-made is left";
}

TEST_F(TrainerTest, HugeModelsAndBatchesNameWhatToLower) {
  LanguageModelRequest with = request("model");
  with.model.width = 1 << 22;
  with.model.ffn = 1 << 23;  // 2^45 weights
  EXPECT_THAT(failure(with), AllOf(HasSubstr("out of memory"), HasSubstr("model.width")));
}

TEST_F(TrainerTest, BatchesThatCannotFitAreRefusedBeforehand) {
  LanguageModelRequest with = request("run");
  with.data.batch_tokens = int64_t{1} << 40;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("out of memory"), HasSubstr("data.batch_tokens")));
  EXPECT_FALSE(std::filesystem::exists(with.output));
}

// A child with little address space left, so that a batch does not fit.
int train_in_little_memory(LanguageModelRequest with) {
  rlimit limit{};
  const auto vsize = [] {
    long pages = 0;
    if (FILE* file = std::fopen("/proc/self/statm", "r")) {
      if (std::fscanf(file, "%ld", &pages) != 1) pages = 0;
      std::fclose(file);
    }
    return static_cast<rlim_t>(pages) * 4096;
  }();
  limit.rlim_cur = limit.rlim_max = vsize + (rlim_t{400} << 20);
  ::setrlimit(RLIMIT_AS, &limit);
  try {
    run(with);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.exit_code();
  }
  return 0;
}

TEST_F(TrainerTest, BatchTooLargeForMemory) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  LanguageModelRequest with = request("run");
  with.train_files = {testing::write_fasta(folder_ / "large.fasta", testing::random_proteins(8000))};
  with.model.ffn = 4096;
  with.data.batch_tokens = 150000;
  with.data.holdout = 0;
  EXPECT_EXIT(::_exit(train_in_little_memory(with)), ::testing::ExitedWithCode(1),
              "out of memory in step 1 with a batch of 1 x [0-9]+ tokens: lower data.batch_tokens "
              ".*checkpoint of step 0");
}

}  // namespace
}  // namespace performer::train
