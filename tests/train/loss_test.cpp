// SPDX-License-Identifier: Apache-2.0
#include "performer/train/loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace performer::train {
namespace {

at::Tensor longs(std::vector<int64_t> values) {
  return at::tensor(values, at::kLong);
}

TEST(WeightedCrossEntropy, ByHand) {
  // Logits 0 and log 3: probabilities 1/4 and 3/4.
  const at::Tensor logits = at::tensor({0.0, std::log(3.0), 0.0, std::log(3.0)}, at::kDouble).reshape({2, 2});
  const at::Tensor loss = weighted_cross_entropy(logits, longs({1, 0}), at::tensor({2.0, 0.5}));
  EXPECT_NEAR(loss.item<double>(), -2 * std::log(0.75) - 0.5 * std::log(0.25), 1e-12);
}

TEST(WeightedCrossEntropy, WeightZeroAndTargetsOutsideCountNothing) {
  const at::Tensor logits =
      at::tensor({0.0f, 5.0f, -1.0f, 2.0f, 1e30f, -1e30f}).reshape({3, 2}).requires_grad_(true);
  const at::Tensor loss = weighted_cross_entropy(logits, longs({7, -1, 1}), at::tensor({1.0f, 1.0f, 0.0f}));
  EXPECT_EQ(loss.item<float>(), 0);
  loss.backward();
  EXPECT_TRUE(at::equal(logits.grad(), at::zeros({3, 2})));
}

TEST(WeightedCrossEntropy, HalfPrecisionLogitsAreSummedInFloat) {
  const at::Tensor logits = at::zeros({4096, 4}, at::kBFloat16);
  const at::Tensor loss = weighted_cross_entropy(logits, at::zeros({4096}, at::kLong), at::ones({4096}));
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  EXPECT_NEAR(loss.item<float>(), 4096 * std::log(4.0), 0.01);
}

// Loss, hits and gradient of the pass that overwrites the logits are those of the plain sums; more rows than
// are worked on at a time, targets outside and weights of zero among them.
TEST(CrossEntropyGradient, IsThatOfThePlainSums) {
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const int64_t rows : {1, 70, 3000}) {
      at::manual_seed(1);
      const at::Tensor logits = (at::randn({rows, 700}) * 4).to(type);
      const at::Tensor targets = at::randint(-1, 703, {rows}, at::kLong);
      const at::Tensor weights = at::rand({rows}) * at::randint(0, 2, {rows});
      const at::Tensor leaf = logits.to(at::kDouble).requires_grad_(true);
      const at::Tensor loss = weighted_cross_entropy(leaf, targets, weights) / 9;
      loss.backward();
      const double hits = weighted_correct(leaf, targets, weights).item<double>();
      const CrossEntropySums sums = cross_entropy_gradient(logits, targets, weights, 9);
      const double tolerance = type == at::kDouble ? 1e-12 : 1e-5;
      EXPECT_NEAR(sums.loss, loss.item<double>(), tolerance * (1 + loss.item<double>()));
      EXPECT_NEAR(sums.correct, hits, tolerance * (1 + hits));
      const at::Tensor error = (logits.to(at::kDouble) - leaf.grad()).abs();
      EXPECT_LE(error.max().item<double>(), type == at::kBFloat16 ? 0x1p-12 : tolerance)
          << type << ": half a unit of values up to 1/9";
    }
  }
}

TEST(WeightedCorrect, CountsWeightsOfHits) {
  const at::Tensor logits = at::tensor({1.0f, 0.0f, 0.0f, 1.0f, 2.0f, 2.0f}).reshape({3, 2});
  EXPECT_EQ(weighted_correct(logits, longs({0, 0, 0}), at::tensor({1.0f, 1.0f, 0.5f})).item<float>(), 1.5f)
      << "the first of equal logits is the prediction";
  EXPECT_EQ(weighted_correct(logits, longs({1, 1, 9}), at::tensor({1.0f, 1.0f, 1.0f})).item<float>(), 1.0f);
}

TEST(WeightedSoftCorrect, PartialCredit) {
  // Substitution scores -1 .. 3 become 0 .. 1; predictions 0, 0, 1 for targets 0, 1, 0.
  const at::Tensor scores = at::tensor({3.0f, 1.0f, 0.0f, -1.0f}).reshape({2, 2});
  const at::Tensor logits = at::tensor({1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 1.0f}).reshape({3, 2});
  EXPECT_FLOAT_EQ(
      weighted_soft_correct(logits, longs({0, 1, 0}), at::tensor({1.0f, 1.0f, 1.0f}), scores).item<float>(),
      1 + 0.5f + 0.25f);
}

}  // namespace
}  // namespace performer::train
