// SPDX-License-Identifier: Apache-2.0
#include "performer/base/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"

namespace performer {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;

TEST(Ranks, EqualValuesShareTheMeanOfTheirRanks) {
  const std::vector<double> values = {3, 1, 3, 2, 3, -1};
  EXPECT_THAT(mean_ranks(values), ElementsAre(5, 2, 5, 3, 5, 1));
  EXPECT_TRUE(mean_ranks(std::vector<double>{}).empty());
}

TEST(Ranks, SpearmanIsPearsonOfTheMeanRanks) {
  const std::vector<double> a = {1, 2, 3, 4, 5};
  EXPECT_DOUBLE_EQ(spearman(a, std::vector<double>{1, 8, 27, 64, 125}), 1);
  EXPECT_DOUBLE_EQ(spearman(a, std::vector<double>{5, 4, 3, 2, 1}), -1);
  // Ranks 1 2.5 2.5 4 and 1 3 2 4: centred products 2.25 + 0 + 0 + 2.25 over sqrt(4.5 * 5).
  EXPECT_THAT(spearman(std::vector<double>{0, 7, 7, 9}, std::vector<double>{1, 3, 2, 4}),
              DoubleNear(4.5 / std::sqrt(4.5 * 5), 1e-12));
  // scipy.stats.spearmanr([0.1, 0.4, 0.4, 0.2, 0.9, 0.4], [3, 1, 4, 1, 5, 9]).
  EXPECT_THAT(
      spearman(std::vector<double>{0.1, 0.4, 0.4, 0.2, 0.9, 0.4}, std::vector<double>{3, 1, 4, 1, 5, 9}),
      DoubleNear(0.5236349380886428, 1e-12));
}

TEST(Ranks, SpearmanIsNotThereWithoutDifferences) {
  EXPECT_TRUE(std::isnan(spearman(std::vector<double>{1, 1, 1}, std::vector<double>{1, 2, 3})));
  EXPECT_TRUE(std::isnan(spearman(std::vector<double>{1}, std::vector<double>{2})));
  EXPECT_THROW(spearman(std::vector<double>{1}, std::vector<double>{2, 3}), Error);
}

TEST(Ranks, PearsonByHand) {
  // Deviations -2 0 2 and -7/3 -4/3 11/3: 12 over sqrt(8 * 62 / 3).
  EXPECT_THAT(pearson(std::vector<double>{1, 3, 5}, std::vector<double>{1, 2, 7}),
              DoubleNear(12 / std::sqrt(8 * 62 / 3.0), 1e-12));
  EXPECT_TRUE(std::isnan(pearson(std::vector<double>(7, 0.1), std::vector<double>{1, 2, 3, 4, 5, 6, 7})))
      << "whose mean is rounded";
  EXPECT_THROW(pearson(std::vector<double>{1}, std::vector<double>{2, 3}), Error);
}

}  // namespace
}  // namespace performer
