// SPDX-License-Identifier: Apache-2.0
#include "performer/data/masking.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "performer/base/error.h"
#include "tests/data/sequences.h"

namespace performer::data {
namespace {

using test::kBos, test::kEos, test::kMask, test::kPad;
using testing::ElementsAre;

constexpr MaskingMarkers kMarkers{kPad, kMask};

// Draws and results recorded from protein_lm: tests/golden/masking_test.cpp.
TEST(Masking, ComparesInFloat32) {
  // 0.9f is below 0.1 + 0.8 in double and equal to it in float32; 0.15f likewise is above 0.15 in double.
  std::vector<int64_t> tokens{1, 1, 1, 1};
  const float rate = 0.15f, below = std::nextafter(rate, 0.f);
  const auto weights = corrupt(tokens, {rate, below, 0, 0}, {0, 0, 0.9f, std::nextafter(0.9f, 0.f)},
                               {7, 7, 7, 7}, 0.15, corruption_from_name("protein-lm"), kMarkers);
  EXPECT_THAT(weights, ElementsAre(0, 1, 1, 1));
  EXPECT_THAT(tokens, ElementsAre(1, kMask, 1, 7));
}

TEST(Masking, NeedsADrawOfEachKindForEachToken) {
  std::vector<int64_t> tokens{1, 2};
  EXPECT_THROW(corrupt(tokens, {0, 0}, {0}, {0, 0}, 0.15, {}, kMarkers), Error);
}

TEST(Masking, KnowsTwoMixes) {
  EXPECT_EQ(corruption_from_name("bert").mask, 0.8);
  EXPECT_EQ(corruption_from_name("bert").random, 0.1);
  EXPECT_EQ(corruption_from_name("protein-lm").mask, 0.1);
  EXPECT_EQ(corruption_from_name("protein-lm").random, 0.8);
  EXPECT_THROW(corruption_from_name("BERT"), UsageError);
}

TEST(Masking, NeverChoosesMarkers) {
  std::vector<int64_t> tokens{kBos, 3, kPad, kMask, 4, kEos}, before = tokens;
  std::vector<float> weights(tokens.size(), 9);
  corrupt_symbols(tokens, weights, PhiloxStream(1), 0, 1.0, {1, 0}, Vocabulary::protein());
  EXPECT_THAT(weights, ElementsAre(0, 1, 0, 0, 1, 0));
  EXPECT_THAT(tokens, ElementsAre(kBos, kMask, kPad, kMask, kMask, kEos));
}

TEST(Masking, DoesNotDependOnCuts) {
  const std::vector<int64_t> original(200, 5);
  std::vector<int64_t> whole = original, parts = original;
  std::vector<float> whole_weights(200), part_weights(200);
  corrupt_symbols(whole, whole_weights, PhiloxStream(3), 0, 0.5, {}, Vocabulary::protein());
  corrupt_symbols(std::span(parts).first(77), std::span(part_weights).first(77), PhiloxStream(3), 0, 0.5, {},
                  Vocabulary::protein());
  corrupt_symbols(std::span(parts).last(123), std::span(part_weights).last(123), PhiloxStream(3), 77, 0.5, {},
                  Vocabulary::protein());
  EXPECT_EQ(whole, parts);
  EXPECT_EQ(whole_weights, part_weights);
}

// Fractions of a million tokens within 5 standard deviations.
TEST(Masking, MixesInTheStatedFractions) {
  constexpr int64_t kTokens = 1'000'000, kOriginal = 6;
  for (const char* name : {"bert", "protein-lm"}) {
    const Corruption corruption = corruption_from_name(name);
    std::vector<int64_t> tokens(kTokens, kOriginal);
    std::vector<float> weights(kTokens);
    corrupt_symbols(tokens, weights, PhiloxStream(11), 0, 0.15, corruption, Vocabulary::protein());
    double chosen = 0, masked = 0;
    std::array<double, 25> residues{};
    for (int64_t i = 0; i < kTokens; ++i) {
      if (weights[i] == 0) {
        ASSERT_EQ(tokens[i], kOriginal);
        continue;
      }
      ++chosen;
      if (tokens[i] == kMask)
        ++masked;
      else
        ++residues[tokens[i]];
    }
    const auto expect_count = [](double count, double n, double p) {
      EXPECT_NEAR(count, n * p, 5 * std::sqrt(n * p * (1 - p)));
    };
    expect_count(chosen, kTokens, 0.15);
    expect_count(masked, chosen, corruption.mask);
    for (int residue = 0; residue < 25; ++residue) {
      const double kept = residue == kOriginal ? 1 - corruption.mask - corruption.random : 0;
      expect_count(residues[residue], chosen, corruption.random / 25 + kept);
    }
  }
}

}  // namespace
}  // namespace performer::data
