// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/positions.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace performer::nn {
namespace {

TEST(Sinusoids, InterleaveSineAndCosine) {
  for (const int64_t width : {6, 7}) {
    const at::Tensor table = sinusoids(at::tensor({0, 3, 1000}, at::kLong), width);
    ASSERT_EQ(table.sizes(), (at::IntArrayRef{3, width}));
    for (int64_t channel = 0; channel < width; ++channel) {
      const double angle =
          1000 / std::pow(10000.0, static_cast<double>(channel / 2 * 2) / static_cast<double>(width));
      EXPECT_NEAR(table[2][channel].item<double>(), channel % 2 == 0 ? std::sin(angle) : std::cos(angle),
                  1e-12);
    }
  }
}

TEST(Sinusoids, OrConcatenateThem) {
  const at::Tensor positions = at::tensor({0, 3, 1000}, at::kLong);
  for (const int64_t width : {7, 8}) {
    const at::Tensor pairs = sinusoids(positions, width),
                     parts = sinusoids(positions, width, /*concatenate=*/true);
    EXPECT_TRUE(parts.equal(at::cat({pairs.slice(1, 0, width, 2), pairs.slice(1, 1, width, 2)}, 1)));
  }
}

TEST(Rotary, TurnsNeighbouringPairs) {
  const at::Tensor x = at::tensor({1.0, 2.0, 3.0, 4.0}, at::kDouble).view({1, 1, 1, 4});
  const at::Tensor y = rotate(x, rotary_table(at::full({1, 1}, 5, at::kLong), 4, at::kDouble)).flatten();
  const double a = 5, b = 5 / 100.0;
  EXPECT_NEAR(y[0].item<double>(), std::cos(a) - 2 * std::sin(a), 1e-12);
  EXPECT_NEAR(y[1].item<double>(), std::sin(a) + 2 * std::cos(a), 1e-12);
  EXPECT_NEAR(y[2].item<double>(), 3 * std::cos(b) - 4 * std::sin(b), 1e-12);
  EXPECT_NEAR(y[3].item<double>(), 3 * std::sin(b) + 4 * std::cos(b), 1e-12);
}

TEST(Rotary, ScoresDependOnDistanceOnlyEvenFarOut) {
  const at::Tensor q = at::randn({1, 1, 2, 16}), k = at::randn({1, 1, 2, 16});
  const auto score = [&](int64_t i, int64_t j) {
    const auto at_position = [&](const at::Tensor& x, int64_t p) {
      return rotate(x, rotary_table(at::full({1, 1}, p, at::kLong), 16, at::kFloat));
    };
    return (at_position(q, i) * at_position(k, j)).sum(-1).flatten();
  };
  EXPECT_TRUE(at::allclose(score(7, 3), score(1'000'007, 1'000'003), 1e-4, 1e-5));
  EXPECT_FALSE(at::allclose(score(7, 3), score(7, 4), 1e-4, 1e-5));
}

TEST(Rotary, KeepsTheTypeAndWorksInFloat) {
  const at::Tensor x = at::randn({2, 5, 3, 8}, at::kBFloat16);
  const at::Tensor positions = at::arange(5).expand({2, 5});
  const at::Tensor y = rotate(x, rotary_table(positions, 8, at::kBFloat16));
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  const at::Tensor wide = rotate(x.to(at::kFloat), rotary_table(positions, 8, at::kFloat));
  EXPECT_TRUE(at::equal(y, wide.to(at::kBFloat16)));
}

}  // namespace
}  // namespace performer::nn
