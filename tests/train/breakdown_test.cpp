// SPDX-License-Identifier: Apache-2.0
#include "performer/train/breakdown.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "performer/train/evaluation.h"
#include "tests/train/runs.h"

namespace performer::train {
namespace {

TEST(Breakdown, CountsSymbolsLengthsAndConfidence) {
  const auto vocabulary = data::Vocabulary::protein();
  data::Baselines baselines(vocabulary.symbols());
  Breakdown breakdown;
  breakdown.add({0, 0, std::log(0.5), 0.5});    // A, right
  breakdown.add({0, 1, std::log(0.25), 0.52});  // A, taken for C
  breakdown.add({2, 2, std::log(1.0), 1.0});    // D, right and sure
  breakdown.add(64, {-2, 1, 2}, {-3, 0, 2}, {});
  breakdown.add(65, {-1, 1, 1}, {-3, 0, 1}, {});
  breakdown.add(1, {}, {}, {});
  const auto json = breakdown.to_json(vocabulary, baselines);
  const auto& lengths = json["by_length"];
  ASSERT_EQ(lengths.size(), 2u);
  EXPECT_EQ(lengths[0]["to"], 64);
  EXPECT_EQ(lengths[0]["sequences"], 2);
  EXPECT_EQ(lengths[0]["model"]["perplexity"], std::exp(1.0));
  EXPECT_TRUE(lengths[0]["bigram"].is_null());
  EXPECT_EQ(lengths[1]["from"], 65);
  EXPECT_EQ(lengths[1]["to"], 128);
  const auto& symbols = json["by_symbol"];
  ASSERT_EQ(symbols.size(), 3u);
  EXPECT_EQ(symbols[0]["symbol"], "A");
  EXPECT_EQ(symbols[0]["tokens"], 2);
  EXPECT_EQ(symbols[0]["accuracy"], 0.5);
  EXPECT_NEAR(symbols[0]["perplexity"].get<double>(), std::sqrt(8.0), 1e-12);
  EXPECT_NEAR(symbols[0]["unigram_perplexity"].get<double>(), 25, 1e-9) << "nothing was counted";
  EXPECT_EQ(symbols[1]["symbol"], "C");
  EXPECT_EQ(symbols[1]["predicted"], 1);
  EXPECT_TRUE(symbols[1]["accuracy"].is_null()) << "no C was asked for";
  const auto& bins = json["calibration"];
  ASSERT_EQ(bins.size(), 10u);
  EXPECT_EQ(bins[5]["tokens"], 2);
  EXPECT_NEAR(bins[5]["confidence"].get<double>(), 0.51, 1e-12);
  EXPECT_EQ(bins[5]["accuracy"], 0.5);
  EXPECT_EQ(bins[9]["tokens"], 1) << "a probability of 1 is in the last bin";
  EXPECT_TRUE(bins[0]["accuracy"].is_null());
  EXPECT_NEAR(json["calibration_error"].get<double>(), (2 * 0.01 + 0) / 3, 1e-12);
  EXPECT_TRUE(Breakdown().to_json(vocabulary, baselines)["calibration_error"].is_null());
}

// The parts of an evaluation add up to the whole.
TEST(Breakdown, AddsUpToTheEvaluation) {
  at::manual_seed(5);
  const testing::TemporaryFolder folder;
  const data::SequenceStore corpus({testing::write_fasta(folder / "p.fasta", testing::random_proteins(30))},
                                   folder / "");
  for (const char* objective : {"causal", "masked"}) {
    ModelConfig model{.objective = objective, .layers = 1, .width = 16, .heads = 2, .ffn = 32};
    LanguageModel made(model, AttentionConfig(), corpus.vocabulary().size());
    const data::Baselines baselines = testing::fitted(corpus);
    const Evaluation all = evaluate(made, corpus, {}, baselines);
    const auto json = all.breakdown.to_json(corpus.vocabulary(), baselines);
    int64_t by_length = 0, by_symbol = 0, in_bins = 0, sequences = 0, predicted = 0;
    double likelihood = 0, right = 0;
    for (const auto& length : json["by_length"]) {
      sequences += length["sequences"].get<int64_t>();
      if (length["model"].is_null()) continue;
      const auto tokens = length["model"]["tokens"].get<int64_t>();
      by_length += tokens;
      likelihood -= static_cast<double>(tokens) * std::log(length["model"]["perplexity"].get<double>());
    }
    for (const auto& symbol : json["by_symbol"]) {
      by_symbol += symbol["tokens"].get<int64_t>();
      predicted += symbol["predicted"].get<int64_t>();
    }
    for (const auto& bin : json["calibration"]) {
      in_bins += bin["tokens"].get<int64_t>();
      if (bin["tokens"] > 0) right += bin["tokens"].get<double>() * bin["accuracy"].get<double>();
    }
    EXPECT_EQ(sequences, corpus.size());
    EXPECT_EQ(by_length, all.model.tokens);
    EXPECT_EQ(by_symbol, all.model.tokens);
    EXPECT_EQ(predicted, all.model.tokens);
    EXPECT_EQ(in_bins, all.model.tokens);
    EXPECT_NEAR(right, static_cast<double>(all.model.correct), 1e-6);
    EXPECT_NEAR(likelihood, all.model.log_likelihood, 1e-6 * std::abs(likelihood));
  }
}

}  // namespace
}  // namespace performer::train
