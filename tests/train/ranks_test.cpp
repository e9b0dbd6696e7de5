// SPDX-License-Identifier: Apache-2.0
// Training on several ranks gives what one process gives: here ranks are threads, which share LibTorch's
// generator, so that nothing in these runs draws from it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "performer/train/language_model_task.h"
#include "performer/train/trainer.h"
#include "tests/distributed/ranks.h"
#include "tests/train/runs.h"

namespace performer::train {
namespace {

using testing::losses;
using testing::records;

class Ranks : public testing::RunTest {
 protected:
  // Without dropout and held-out sequences, 128 tokens a step of all ranks together.
  LanguageModelRequest plain(const std::string& output, int ranks) {
    LanguageModelRequest made = request(output);
    made.model.dropout = 0;
    made.model.layers = 2;
    made.data.batch_tokens = 128 / ranks;
    made.data.holdout = 0;
    made.train.steps = 8;
    made.train.warmup = 4;
    return made;
  }

  // Runs as `ranks` ranks from the weights of `start_`, which the first run makes.
  void train(LanguageModelRequest made, int ranks) {
    const auto as_rank = [&](distributed::Communicator& communicator) {
      const data::SequenceStore corpus(made.train_files, folder_ / ".", made.data);
      LanguageModelTask task(made, corpus, made.data.holdout > 0 ? &corpus : nullptr);
      if (start_) task.start_from(start_->folder().model);
      task.divide(communicator);
      const RunFolder folder(made.output, made.resume, communicator.rank() == 0);
      RunOptions options;
      options.ranks = &communicator;
      run(task, folder, made.train, options);
    };
    if (!start_) {
      corpus_ = std::make_unique<data::SequenceStore>(made.train_files, folder_ / ".", made.data);
      start_ = std::make_unique<LanguageModelTask>(made, *corpus_);
    }
    if (ranks == 1) {
      as_rank(*distributed::single_rank());
    } else {
      testing::expect_no_errors(testing::run_ranks(ranks, as_rank));
    }
  }

  void expect_as_one(const std::function<void(LanguageModelRequest&)>& change, int ranks,
                     double tolerance = 1e-5, int slices = 1, int64_t slim_chunk = 0) {
    start_.reset();
    ++runs_;
    const std::string one = "one" + std::to_string(runs_), several = "several" + std::to_string(runs_);
    LanguageModelRequest alone = plain(one, 1), divided = plain(several, ranks);
    change(alone);
    change(divided);
    divided.train.sequence_parallel = slices;
    divided.train.slim_chunk = slim_chunk;
    train(alone, 1);
    train(divided, ranks);
    const std::vector<double> expected = losses(folder_ / one), found = losses(folder_ / several);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t step = 0; step < expected.size(); ++step) {
      EXPECT_NEAR(found[step], expected[step], tolerance) << "step " << step + 1;
    }
    EXPECT_EQ(records(folder_ / one).back()["final"]["tokens"],
              records(folder_ / several).back()["final"]["tokens"]);
  }

  int runs_ = 0;
  std::unique_ptr<data::SequenceStore> corpus_;
  std::unique_ptr<LanguageModelTask> start_;
};

void use_rows(LanguageModelRequest& request) {
  request.data.layout = "padded";
}
void use_masks(LanguageModelRequest& request) {
  request.model.objective = "masked";
}

TEST_F(Ranks, TwoAreAsOne) {
  expect_as_one([](auto&) {}, 2);
  expect_as_one(use_rows, 2);
}

TEST_F(Ranks, FourAreAsOneWithMasks) {
  expect_as_one(use_masks, 4);
  expect_as_one([](auto& request) { use_masks(request), use_rows(request); }, 4);
  expect_as_one([](auto& request) { use_masks(request), request.data.layout = "concatenated"; }, 4);
}

TEST_F(Ranks, ASequenceOnTwoRanks) {
  for (const auto& layout : {"packed", "padded", "concatenated"}) {
    for (const auto& objective : {"causal", "masked"}) {
      SCOPED_TRACE(std::string(layout) + ", " + objective);
      expect_as_one([&](auto& request) { request.data.layout = layout, request.model.objective = objective; },
                    2, 1e-5, 2);
    }
  }
}

TEST_F(Ranks, ChunksOfASequenceOnRanksInTurn) {
  for (const auto& layout : {"packed", "padded", "concatenated"}) {
    SCOPED_TRACE(layout);
    const auto change = [&](LanguageModelRequest& request) { request.data.layout = layout; };
    expect_as_one(change, 2, 1e-5, 2, 7);
    expect_as_one(change, 4, 1e-5, 4, 20);  // a rank may be without a chunk
    expect_as_one(change, 4, 1e-5, 2, 5);
  }
}

TEST_F(Ranks, ASequenceThatNoRankHoldsAlone) {
  for (const auto& layout : {"packed", "padded", "concatenated"}) {
    SCOPED_TRACE(layout);
    const auto change = [&](LanguageModelRequest& request) {
      request.data.layout = layout;
      request.data.length = 128;  // of which each rank has 64 tokens
    };
    expect_as_one(change, 2, 1e-5, 2);
    expect_as_one(change, 2, 1e-5, 2, 16);
  }
  LanguageModelRequest refused = plain("refused", 1);
  refused.data.length = 300;
  refused.train.sequence_parallel = 2;
  EXPECT_THAT(failure(refused), ::testing::HasSubstr("data.batch_tokens (128) on each of the 2 ranks"));
}

// Slices of which some lie within one segment, and others hold the ends of several.
TEST_F(Ranks, ASequenceOnFourRanksAndTwoSequencesOnFour) {
  for (const auto& objective : {"causal", "masked"}) {
    SCOPED_TRACE(objective);
    expect_as_one([&](auto& request) { request.model.objective = objective; }, 4, 1e-5, 4);
    expect_as_one([&](auto& request) { request.model.objective = objective; }, 4, 1e-5, 2);
  }
}

TEST_F(Ranks, SlicesWithActivationsRecomputedAndOtherPositions) {
  expect_as_one([](auto& request) { request.train.checkpoint_activations = true; }, 2, 1e-5, 2);
  for (const auto& positions : {"learned", "rotary"}) {
    expect_as_one([&](auto& request) { request.model.positions = positions; }, 2, 1e-5, 2);
  }
}

TEST_F(Ranks, SlicesNeedAState) {
  LanguageModelRequest made = plain("refused", 1);
  made.train.sequence_parallel = 2;
  made.attention = {};
  made.attention.kind = "exact";
  EXPECT_THAT(failure(made),
              ::testing::HasSubstr("train.sequence_parallel = 2 needs an attention kind with a state"));
  made = plain("refused", 1);
  made.train.sequence_parallel = 2;
  EXPECT_THAT(failure(made), ::testing::HasSubstr("there are 1 ranks"));
  made.model.token_shift = true;
  EXPECT_THAT(failure(made), ::testing::HasSubstr("model.token_shift"));
}

TEST_F(Ranks, TheOptimizersStateMayBeDivided) {
  LanguageModelRequest whole = plain("whole", 2), divided = plain("divided", 2);
  divided.train.shard_optimizer = true;
  train(whole, 2);
  train(divided, 2);
  EXPECT_EQ(losses(folder_ / "divided"), losses(folder_ / "whole"));
  // A checkpoint does not know it: one process and three ranks go on from it.
  const std::vector<double> before = losses(folder_ / "divided");
  for (const int ranks : {1, 3}) {
    divided.train.steps += 2;
    divided.resume = true;
    train(divided, ranks);
    EXPECT_EQ(losses(folder_ / "divided").size(), static_cast<size_t>(divided.train.steps));
  }
  EXPECT_EQ(records(folder_ / "divided").back()["final"]["tokens"].get<int64_t>() > 0, true);
}

TEST_F(Ranks, ResumedIsNeverStopped) {
  LanguageModelRequest whole = plain("whole", 2), stopped = plain("stopped", 2);
  train(whole, 2);
  stopped.train.steps = 3;
  train(stopped, 2);
  stopped.train.steps = whole.train.steps;
  stopped.resume = true;
  train(stopped, 2);
  EXPECT_EQ(losses(folder_ / "stopped"), losses(folder_ / "whole"));
  EXPECT_EQ(read_file(folder_ / "stopped/model.safetensors"), read_file(folder_ / "whole/model.safetensors"));
}

TEST_F(Ranks, EvaluationsAreThoseOfOne) {
  expect_as_one([](auto& request) { request.data.holdout = 0.5; }, 3);
  const auto valid = [&](const std::string& output) {
    nlohmann::json found;
    for (const auto& record : records(folder_ / output)) {
      if (record.contains("valid")) found = record["valid"]["model"];
    }
    return found;
  };
  const nlohmann::json one = valid("one1"), several = valid("several1");
  EXPECT_EQ(one["tokens"], several["tokens"]);
  EXPECT_NEAR(one["perplexity"], several["perplexity"], 1e-4);
}

class RanksOfKinds : public Ranks, public ::testing::WithParamInterface<std::string> {};

TEST_P(RanksOfKinds, AreAsOne) {
  const nn::AttentionKind& kind = nn::find_kind(GetParam());
  const auto change = [&](LanguageModelRequest& request) {
    request.attention = {};
    request.attention.kind = GetParam();
    if (nn::has_option(kind, "features")) request.attention.set("features", 8);
    request.attention.redraw_every = kind.capabilities.redraws ? 3 : 0;
    if (!kind.capabilities.causal) use_masks(request);
    request.train.accumulate = 1;
    request.train.steps = 4;
  };
  // Rounding decides which tokens meet, or is made large by a small denominator.
  const bool rough = !kind.capabilities.continuous ||
                     (kind.feature_map &&
                      ops::feature_map_traits(kind.feature_map(plain("x", 1).attention).map).signed_features);
  expect_as_one(change, 2, rough ? 1e-3 : 1e-5);
  if (kind.capabilities.chunks) expect_as_one(change, 2, rough ? 1e-3 : 1e-5, 2);
}

std::string kind_test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& letter : name) {
    if (!std::isalnum(static_cast<unsigned char>(letter))) letter = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, RanksOfKinds, ::testing::ValuesIn(nn::kind_names()), kind_test_name);

}  // namespace
}  // namespace performer::train
