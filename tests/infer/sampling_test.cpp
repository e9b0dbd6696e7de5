// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "performer/base/error.h"
#include "performer/infer/sampling.h"

namespace performer {
namespace {

using testing::ElementsAre;

std::vector<int64_t> kept(const std::vector<double>& log_probabilities) {
  std::vector<int64_t> tokens;
  for (size_t i = 0; i < log_probabilities.size(); ++i) {
    if (std::isfinite(log_probabilities[i])) tokens.push_back(static_cast<int64_t>(i));
  }
  return tokens;
}

double total(const std::vector<double>& log_probabilities) {
  double sum = 0;
  for (const double x : log_probabilities) sum += std::exp(x);
  return sum;
}

std::vector<double> filter(const std::vector<float>& logits, const SamplingOptions& options,
                           const std::vector<int64_t>& recent = {}) {
  return filter_logits(logits, recent, options, {});
}

TEST(FilterLogits, TemperatureDividesLogits) {
  const auto result = filter({1, 3}, {.temperature = 2});
  EXPECT_NEAR(result[1] - result[0], 1, 1e-12);
  EXPECT_NEAR(total(result), 1, 1e-12);
}

TEST(FilterLogits, TemperatureZeroTakesTheFirstOfTheMostProbable) {
  EXPECT_THAT(kept(filter({0, 2, 2, 1}, {.temperature = 0})), ElementsAre(1));
}

TEST(FilterLogits, TopKKeepsTies) {
  EXPECT_THAT(kept(filter({1, 3, 2, 2, 0}, {.top_k = 2})), ElementsAre(1, 2, 3));
  EXPECT_THAT(kept(filter({1, 3, 2, 2, 0}, {.top_k = 1})), ElementsAre(1));
  EXPECT_EQ(kept(filter({1, 3, 2}, {.top_k = 9})).size(), 3u);
}

TEST(FilterLogits, TopPKeepsTheSmallestSetThatReachesIt) {
  const std::vector<float> logits = {std::log(0.2f), std::log(0.5f), std::log(0.3f)};
  EXPECT_THAT(kept(filter(logits, {.top_p = 0.4})), ElementsAre(1));
  EXPECT_THAT(kept(filter(logits, {.top_p = 0.6})), ElementsAre(1, 2));
  EXPECT_THAT(kept(filter(logits, {.top_p = 0.9})), ElementsAre(0, 1, 2));
  const auto result = filter(logits, {.top_p = 0.6});
  EXPECT_NEAR(std::exp(result[1]), 0.5 / 0.8, 1e-6);
}

TEST(FilterLogits, PenaltyActsOnceOnTheTokensOfTheWindow) {
  const SamplingOptions options{.repetition_penalty = 2, .repetition_window = 3};
  const auto plain = filter({1, -1, 3, 0.5}, {});
  const auto result = filter({1, -1, 3, 0.5}, options, {2, 0, 0, 1});
  EXPECT_NEAR(result[2] - result[3], plain[2] - plain[3], 1e-12);  // out of the window
  EXPECT_NEAR(result[0] - result[3], 0.5 - 0.5, 1e-12);            // positive: divided once
  EXPECT_NEAR(result[1] - result[3], -2 - 0.5, 1e-12);             // negative: multiplied
}

// The limit is the most probable of the allowed tokens; 0 is forbidden.
TEST(FilterLogits, ValuesBeyondDoubleLeaveTheMostProbableAllowedToken) {
  const std::vector<float> logits = {9, 2, 5, 1, -3};
  for (const double tiny : {1e-308, 1e-310, 5e-324}) {
    EXPECT_THAT(kept(filter_logits(logits, {}, {.temperature = tiny}, {0})), ElementsAre(2));
    // Positive logits seen lately grow without bound, and the largest of these most.
    EXPECT_THAT(kept(filter_logits(logits, {1, 3}, {.repetition_penalty = tiny}, {0})), ElementsAre(1));
    EXPECT_THAT(kept(filter_logits(logits, {1, 3}, {.temperature = 0, .repetition_penalty = tiny}, {0})),
                ElementsAre(1));
    EXPECT_THAT(kept(filter_logits(logits, {1, 4},
                                   {.temperature = tiny, .top_p = tiny, .repetition_penalty = tiny}, {0})),
                ElementsAre(1));
  }
  // All allowed ones fall below the range: the least unlikely is left.
  const std::vector<float> negative = {9, -2, -5, -2.5};
  EXPECT_THAT(
      kept(filter_logits(negative, {1, 2, 3}, {.temperature = 1e-3, .repetition_penalty = 1e307}, {0})),
      ElementsAre(1));
}

TEST(FilterLogits, NoFiniteSettingGivesAForbiddenTokenOrNaN) {
  const std::vector<float> logits = {3, -1, 0, 7, 2};
  const std::vector<double> values = {5e-324, 1e-310, 1e-308, 1e-150, 1e-3, 1, 1e3, 1e150, 1e308};
  for (const double temperature : values) {
    for (const double penalty : values) {
      for (const double top_p : {5e-324, 1e-3, 0.5, 1.0}) {
        for (const int64_t top_k : {0, 1, 3}) {
          const SamplingOptions options{temperature, top_k, top_p, penalty, 4};
          const auto found = filter_logits(logits, {0, 1, 2, 4}, options, {3});
          EXPECT_FALSE(kept(found).empty());
          EXPECT_NEAR(total(found), 1, 1e-9);
          for (const double u : {0.0, 0.5, 0.999999}) EXPECT_NE(draw_token(found, u), 3);
        }
      }
    }
  }
}

TEST(FilterLogits, MarkersAreForbiddenBeforeAnythingElse) {
  for (const data::Vocabulary& vocabulary :
       {data::Vocabulary::protein(), data::Vocabulary::dna(), data::Vocabulary::bytes()}) {
    std::vector<float> logits(static_cast<size_t>(vocabulary.size()), 0);
    logits[vocabulary.bos()] = logits[vocabulary.pad()] = logits[vocabulary.mask()] = 100;
    logits[3] = 1;
    const auto never = never_sampled(vocabulary);
    EXPECT_THAT(kept(filter_logits(logits, {}, {.top_k = 1}, never)), ElementsAre(3));
    EXPECT_EQ(std::ssize(kept(filter_logits(logits, {}, {}, never))),
              vocabulary.symbols() + 1);  // symbols and the end marker
  }
}

TEST(FilterLogits, DamagedLogitsAreAnError) {
  EXPECT_THROW(filter({0, std::numeric_limits<float>::quiet_NaN()}, {}), Error);
  EXPECT_THROW(filter({0, std::numeric_limits<float>::infinity()}, {}), Error);
  EXPECT_THROW(filter_logits({0, 1}, {}, {}, {0, 1}), Error);
}

TEST(DrawToken, InvertsTheCumulativeDistribution) {
  const std::vector<double> half = {std::log(0.25), std::log(0.5), std::log(0.25)};
  EXPECT_EQ(draw_token(half, 0.1), 0);
  EXPECT_EQ(draw_token(half, 0.3), 1);
  EXPECT_EQ(draw_token(half, 0.74), 1);
  EXPECT_EQ(draw_token(half, 0.76), 2);
}

TEST(DrawToken, NeverReturnsADroppedToken) {
  constexpr double dropped = -std::numeric_limits<double>::infinity();
  EXPECT_EQ(draw_token({dropped, 0, dropped}, 0), 1);
  // Rounding may leave the last cumulative value below u.
  EXPECT_EQ(draw_token({dropped, std::log(0.5), std::log(0.4), dropped}, 0.99), 2);
  EXPECT_THROW(draw_token({dropped, dropped}, 0.5), Error);
}

TEST(SamplingOptions, AreChecked) {
  EXPECT_THROW(validate(SamplingOptions{.temperature = -1}), UsageError);
  EXPECT_THROW(validate(SamplingOptions{.top_k = -1}), UsageError);
  EXPECT_THROW(validate(SamplingOptions{.top_p = 0}), UsageError);
  EXPECT_THROW(validate(SamplingOptions{.top_p = 1.5}), UsageError);
  EXPECT_THROW(validate(SamplingOptions{.repetition_penalty = 0}), UsageError);
  EXPECT_THROW(validate(SamplingOptions{.repetition_window = -1}), UsageError);
  EXPECT_NO_THROW(validate(SamplingOptions{}));
}

}  // namespace
}  // namespace performer
