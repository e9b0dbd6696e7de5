// SPDX-License-Identifier: Apache-2.0
#include "performer/base/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace performer {
namespace {

// Known answers of Philox4x32-10, published with Random123.
TEST(Philox, KnownAnswers) {
  using Block = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox4x32({ones, ones, ones, ones}, {ones, ones}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, AnyPlaceOfAStreamCanBeReached) {
  PhiloxStream whole(1, 2, 3, 4);
  std::vector<uint32_t> words(40);
  for (uint32_t& word : words) word = whole.next();
  EXPECT_EQ(whole.index(), 40u);
  for (uint64_t at = 0; at < words.size(); ++at) {
    PhiloxStream other(1, 2, 3, 4);
    other.seek(at);
    EXPECT_EQ(other.index(), at);
    EXPECT_EQ(other.next(), words[at]);
  }
}

TEST(Philox, NamesGiveDifferentStreams) {
  const auto first = [](uint64_t seed, uint32_t a, uint32_t b, uint32_t c) {
    return PhiloxStream(seed, a, b, c).next64();
  };
  const uint64_t base = first(1, 2, 3, 4);
  EXPECT_NE(base, first(0, 2, 3, 4));
  EXPECT_NE(base, first(uint64_t{1} << 32, 2, 3, 4));
  EXPECT_NE(base, first(1, 0, 3, 4));
  EXPECT_NE(base, first(1, 2, 0, 4));
  EXPECT_NE(base, first(1, 2, 3, 0));
}

TEST(Philox, UniformAndNormalHaveTheirMoments) {
  PhiloxStream random(7);
  const int n = 200000;
  double sum = 0, normal = 0, square = 0, fourth = 0;
  for (int i = 0; i < n; ++i) {
    const double u = random.uniform(), x = random.normal();
    ASSERT_TRUE(u >= 0 && u < 1);
    sum += u, normal += x, square += x * x, fourth += x * x * x * x;
  }
  const double error = 5 / std::sqrt(n);  // five standard errors times each deviation
  EXPECT_NEAR(sum / n, 0.5, error * std::sqrt(1.0 / 12));
  EXPECT_NEAR(normal / n, 0, error);
  EXPECT_NEAR(square / n, 1, error * std::sqrt(2.0));
  EXPECT_NEAR(fourth / n, 3, error * std::sqrt(96.0));
}

TEST(Philox, BelowIsUniform) {
  PhiloxStream random(8);
  std::vector<int> counts(7);
  const int n = 70000;
  for (int i = 0; i < n; ++i) ++counts[random.below(7)];
  for (int count : counts) EXPECT_NEAR(count, n / 7, 5 * std::sqrt(n * 6.0 / 49));
  EXPECT_EQ(random.below(1), 0u);
}

}  // namespace
}  // namespace performer
