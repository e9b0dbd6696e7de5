// SPDX-License-Identifier: Apache-2.0
#include "performer/kernels/dropout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "performer/kernels/element.h"
#include "tests/kernels/each_target.h"

namespace performer::kernels {
namespace {

std::vector<float> dropped(int64_t count, uint64_t key, double probability) {
  std::vector<float> x(static_cast<size_t>(count), 1.0f), y(x.size());
  dropout(x.data(), y.data(), 0, count, {key, probability});
  return y;
}

TEST(Dropout, DropsTheStatedFractionAndScalesTheRest) {
  const int64_t n = 1 << 20;
  for (const double p : {0.1, 0.5, 0.9}) {
    int64_t kept = 0;
    for (float y : dropped(n, 12345, p)) {
      ASSERT_TRUE(y == 0 || std::abs(y - 1 / (1 - p)) < 1e-6 * y);
      kept += y != 0;
    }
    EXPECT_NEAR(static_cast<double>(kept), n * (1 - p), 5 * std::sqrt(n * p * (1 - p)));
  }
}

// Neighbours, rows a power of two apart, and masks of neighbouring keys must be independent.
TEST(Dropout, ElementsAndKeysAreIndependent) {
  const int64_t n = 1 << 18;
  const auto correlation = [&](const std::vector<float>& a, const std::vector<float>& b, int64_t lag) {
    double sum = 0;
    for (int64_t i = 0; i + lag < n; ++i) sum += (a[i] - 1) * (b[i + lag] - 1);
    return sum / static_cast<double>(n - lag);  // of variables with mean 0 and variance 1 (p = 1/2)
  };
  const auto base = dropped(n, 99, 0.5);
  for (const int64_t lag : {1, 2, 16, 128, 512, 4096})
    EXPECT_NEAR(correlation(base, base, lag), 0, 5 / std::sqrt(n));
  for (const uint64_t key : {uint64_t{98}, uint64_t{100}, uint64_t{99} + (uint64_t{1} << 32)}) {
    for (const int64_t lag : {0, 1, 2})
      EXPECT_NEAR(correlation(base, dropped(n, key, 0.5), lag), 0, 5 / std::sqrt(n)) << key;
  }
}

TEST(Dropout, AnyRangeGivesTheSameMask) {
  const int64_t n = 1000;
  const auto whole = dropped(n, 7, 0.3);
  std::vector<float> x(n, 1.0f), parts(n, -1.0f);
  for (int64_t begin = 0; begin < n; begin += 37)
    dropout(x.data(), parts.data(), begin, std::min<int64_t>(n, begin + 37), {7, 0.3});
  EXPECT_EQ(whole, parts);
}

TEST(Dropout, EveryTargetGivesTheSameMask) {
  const std::vector<float> first = dropped(5000, 7, 0.3);
  for_each_target([&](const char* target) { EXPECT_EQ(dropped(5000, 7, 0.3), first) << target; });
}

TEST(Dropout, OfBfloat16IsThatOfFloatsRoundedOnce) {
  for_each_target([](const char* target) {
    const int64_t n = 777;
    std::vector<float> x(n), y(n);
    std::vector<uint16_t> halves(n);
    for (int64_t i = 0; i < n; ++i) {
      halves[i] = float_to_bfloat16(static_cast<float>(i) * 0.37f - 100);
      x[i] = bfloat16_to_float(halves[i]);
    }
    halves[9] = 0x7fff;  // NaN, which rounding must not turn into a number
    x[9] = bfloat16_to_float(0x7fff);
    dropout(x.data(), y.data(), 0, n, {7, 0.3}, 5);
    dropout(halves.data(), halves.data(), 0, n, {7, 0.3}, 5);
    EXPECT_TRUE(std::isnan(bfloat16_to_float(halves[9])) && std::isnan(y[9])) << target;
    for (int64_t i = 0; i < n; ++i) {
      if (i == 9) continue;
      EXPECT_EQ(halves[i], float_to_bfloat16(y[i])) << target << " " << i;
    }
  });
}

}  // namespace
}  // namespace performer::kernels
