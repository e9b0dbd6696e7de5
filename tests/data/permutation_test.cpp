// SPDX-License-Identifier: Apache-2.0
#include "performer/data/permutation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>
#include <string>
#include <vector>

namespace performer::data {
namespace {

TEST(Permutation, IsABijection) {
  std::vector<uint64_t> sizes(2050);
  std::iota(sizes.begin(), sizes.end(), 1);
  sizes.insert(sizes.end(), {4095, 4096, 4097, 65536, 100'000, 262'145});
  for (const uint64_t n : sizes) {
    const Permutation order(n, 3, n);
    std::vector<bool> seen(n);
    for (uint64_t i = 0; i < n; ++i) {
      const uint64_t at = order(i);
      ASSERT_LT(at, n);
      ASSERT_FALSE(seen[at]) << n;
      seen[at] = true;
    }
  }
}

TEST(Permutation, IsNamedBySeedAndEpoch) {
  const auto values = [](uint64_t seed, uint64_t epoch) {
    const Permutation order(1000, seed, epoch);
    std::vector<uint64_t> result;
    for (uint64_t i = 0; i < 1000; ++i) result.push_back(order(i));
    return result;
  };
  EXPECT_EQ(values(1, 2), values(1, 2));
  EXPECT_NE(values(1, 2), values(1, 3));
  EXPECT_NE(values(1, 2), values(2, 2));
  EXPECT_NE(values(1, 2), values(2, 1));
}

TEST(Permutation, WorksOnLargeSizes) {
  for (const uint64_t n : {(uint64_t{1} << 32) + 12345, uint64_t{1} << 62}) {
    const Permutation order(n, 1, 0);
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < 1000; ++i) seen.insert(order(n - 1 - i));
    EXPECT_EQ(seen.size(), 1000u);
    EXPECT_LT(*seen.rbegin(), n);
  }
}

// Chi-squared with k degrees of freedom is close to normal: 5 standard deviations above its mean.
void expect_uniform(const std::vector<double>& counts, double expected, const std::string& what) {
  double chi_squared = 0;
  for (const double count : counts) chi_squared += (count - expected) * (count - expected) / expected;
  const double k = static_cast<double>(counts.size() - 1);
  EXPECT_LT(chi_squared, k + 5 * std::sqrt(2 * k)) << what;
}

// Over many epochs every place takes every value equally often, neighbours included.
TEST(Permutation, ShufflesEvenly) {
  for (const int n : {3, 5, 16, 37}) {
    constexpr int kEpochs = 40'000;
    std::vector<double> single(n * n), steps(n);
    for (int epoch = 0; epoch < kEpochs; ++epoch) {
      const Permutation order(n, 17, epoch);
      for (int i = 0; i < n; ++i) ++single[i * n + static_cast<int>(order(i))];
      ++steps[(order(1) + n - order(0)) % n];
    }
    EXPECT_EQ(steps[0], 0);
    steps.erase(steps.begin());
    expect_uniform(single, double(kEpochs) / n, "places, n = " + std::to_string(n));
    expect_uniform(steps, double(kEpochs) / (n - 1), "steps, n = " + std::to_string(n));
  }
}

TEST(Permutation, LeavesNoTrendInOneLargeEpoch) {
  constexpr int kSize = 100'003, kBins = 20;
  const Permutation order(kSize, 5, 0);
  std::vector<double> joint(kBins * kBins), ascents(2);
  for (int i = 0; i < kSize; ++i) {
    ++joint[i * int64_t{kBins} / kSize * kBins + static_cast<int64_t>(order(i)) * kBins / kSize];
    if (i > 0) ++ascents[order(i) > order(i - 1)];
  }
  expect_uniform(joint, double(kSize) / (kBins * kBins), "place against value");
  EXPECT_NEAR(ascents[1], kSize / 2.0, 5 * std::sqrt(kSize / 12.0));  // variance of ascents: (n + 1) / 12
}

}  // namespace
}  // namespace performer::data
