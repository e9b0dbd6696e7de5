// SPDX-License-Identifier: Apache-2.0
#include "performer/references/protein_lm/metrics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"

namespace performer::references::protein_lm {
namespace {

double value(const at::Tensor& scalar) {
  return scalar.item<double>();
}

TEST(ProteinLMMetrics, NormalizersDifferWhereTargetsAreOutside) {
  const at::Tensor logits = at::zeros({1, 3, 4}, at::kDouble), targets = at::tensor({0, 9, 1}).view({1, 3});
  const Sums loss = cross_entropy(logits, targets), correct = accuracy(logits, targets);
  EXPECT_NEAR(value(loss.sum), 2 * std::log(4.0), 1e-12);
  EXPECT_EQ(value(loss.normalizer), 2);
  EXPECT_EQ(value(correct.sum), 1);
  EXPECT_EQ(value(correct.normalizer), 3);
}

TEST(ProteinLMMetrics, ExamplesWeighSumsOnly) {
  const at::Tensor logits = at::zeros({2, 1, 4}, at::kDouble), targets = at::zeros({2, 1}, at::kLong);
  const Weights weights{.tokens = at::tensor({1.0, 3.0}).view({2, 1}), .examples = at::tensor({0.5, 2.0})};
  EXPECT_NEAR(value(cross_entropy(logits, targets, weights).sum), 6.5 * std::log(4.0), 1e-12);
  EXPECT_EQ(value(cross_entropy(logits, targets, weights).normalizer), 4);
  EXPECT_EQ(value(accuracy(logits, targets, weights).sum), 6.5);
}

TEST(ProteinLMMetrics, SquaredErrorsAreWeighted) {
  const Sums error = squared_error(at::tensor({1.0, 2.0}), at::tensor({0.0, 4.0}), at::tensor({3.0, 0.5}));
  EXPECT_EQ(value(error.sum), 5);
  EXPECT_EQ(value(error.normalizer), 3.5);
}

TEST(ProteinLMMetrics, CombinesByTheDenominator) {
  const auto combined = combine_metrics({{"loss", at::tensor({30.0, 10.0})},
                                         {"denominator", at::tensor({1.0, 3.0})},
                                         {"learning_rate", at::tensor({0.1, 0.3})}});
  EXPECT_EQ(combined.size(), 3u);
  EXPECT_EQ(value(combined.at("loss")), 10);
  EXPECT_DOUBLE_EQ(value(combined.at("learning_rate")), 0.2);
  EXPECT_EQ(value(combined.at("perplexity")), 1e4) << "cut: exp(10) is 22026";
  EXPECT_THROW(combine_metrics({{"loss", at::ones({1})}}), UsageError);
}

}  // namespace
}  // namespace performer::references::protein_lm
