// SPDX-License-Identifier: Apache-2.0
#include "performer/data/baselines.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "performer/base/error.h"
#include "performer/data/store.h"

namespace performer::data {
namespace {

using testing::HasSubstr;
using Tokens = std::vector<Token>;

Baselines fitted() {
  Baselines baselines(25);
  baselines.add(Tokens{0, 0, 1});
  baselines.add(Tokens{1, 0});
  return baselines;
}

TEST(Baselines, CountsPairsFromTheStart) {
  const Baselines baselines = fitted();
  const auto& counts = baselines.counts();
  ASSERT_EQ(counts.size(), 26u * 25u);
  EXPECT_EQ(counts[25 * 25 + 0], 1);
  EXPECT_EQ(counts[25 * 25 + 1], 1);
  EXPECT_EQ(counts[0 * 25 + 0], 1);
  EXPECT_EQ(counts[0 * 25 + 1], 1);
  EXPECT_EQ(counts[1 * 25 + 0], 1);
  EXPECT_EQ(counts[0 * 25 + 2], 0);
}

TEST(Baselines, SmoothsUnigramsByOne) {
  Score score;
  fitted().add_unigram(score, Tokens{0, 1, 7});
  EXPECT_NEAR(score.log_likelihood, std::log(4. / 30) + std::log(3. / 30) + std::log(1. / 30), 1e-12);
  EXPECT_EQ(score.tokens, 3);
  EXPECT_EQ(score.correct, 1);  // residue 0 is the most frequent
}

TEST(Baselines, SmoothsBigramsByHalf) {
  Baselines baselines = fitted();
  baselines.add(Tokens{0, 1});  // start: 0 twice; after 0: 0 once, 1 twice
  Score score;
  baselines.add_bigram(score, Tokens{0, 1, 0, 7});
  const double start = std::log(2.5 / 15.5), after_0 = std::log(2.5 / 15.5), after_1 = std::log(1.5 / 13.5);
  EXPECT_NEAR(score.log_likelihood, start + after_0 + after_1 + std::log(0.5 / 15.5), 1e-12);
  EXPECT_EQ(score.tokens, 4);
  EXPECT_EQ(score.correct, 3);
}

TEST(Baselines, ProbabilitiesSumToOne) {
  for (Token previous = 0; previous < 25; ++previous) {
    double unigram = 0, bigram = 0;
    for (Token residue = 0; residue < 25; ++residue) {
      Score single, pair;
      const std::vector<float> last{0, 1};
      fitted().add_unigram(single, Tokens{previous, residue}, last);
      fitted().add_bigram(pair, Tokens{previous, residue}, last);
      unigram += std::exp(single.log_likelihood);
      bigram += std::exp(pair.log_likelihood);
    }
    EXPECT_NEAR(unigram, 1, 1e-12);
    EXPECT_NEAR(bigram, 1, 1e-12);
  }
}

TEST(Baselines, ScoresOnlyWeightedResidues) {
  Score all, chosen, rest;
  const Tokens sequence{0, 1, 0, 7};
  fitted().add_bigram(all, sequence);
  fitted().add_bigram(chosen, sequence, std::vector<float>{0, 1, 0, 1});
  fitted().add_bigram(rest, sequence, std::vector<float>{1, 0, 1, 0});
  EXPECT_EQ(chosen.tokens, 2);
  EXPECT_NEAR(chosen.log_likelihood, std::log(1.5 / 14.5) + std::log(0.5 / 14.5), 1e-12);
  chosen += rest;
  EXPECT_NEAR(chosen.log_likelihood, all.log_likelihood, 1e-12);
  EXPECT_EQ(chosen.correct, all.correct);
  EXPECT_EQ(chosen.tokens, all.tokens);
  EXPECT_THROW(fitted().add_unigram(all, sequence, std::vector<float>{1}), Error);
}

TEST(Baselines, SurviveStorage) {
  const Baselines copy = Baselines::from_counts(25, fitted().counts());
  EXPECT_EQ(copy.counts(), fitted().counts());
  try {
    Baselines::from_counts(25, {1, 2});
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("baselines of 25 symbols need 650 counts, found 2"));
  }
  std::vector<int64_t> counts(650);
  counts[3] = -1;
  EXPECT_THROW(Baselines::from_counts(25, counts), InputError);
}

TEST(Baselines, RefuseMarkers) {
  Baselines baselines(25);
  Score score;
  EXPECT_THROW(baselines.add(Tokens{0, 25}), Error);
  EXPECT_THROW(baselines.add_bigram(score, Tokens{26}), Error);
}

TEST(Baselines, CountAnyNumberOfSymbols) {
  Baselines baselines(256);
  baselines.add(Tokens{255, 0, 255, 0});
  ASSERT_EQ(baselines.counts().size(), 257u * 256u);
  EXPECT_EQ(baselines.counts()[256 * 256 + 255], 1);
  EXPECT_EQ(baselines.counts()[255 * 256 + 0], 2);
  Score unigram, bigram;
  baselines.add_unigram(unigram, Tokens{255, 0});
  baselines.add_bigram(bigram, Tokens{255, 0});
  EXPECT_NEAR(unigram.log_likelihood, 2 * std::log(3. / 260), 1e-12);
  EXPECT_NEAR(bigram.log_likelihood, std::log(1.5 / 129) + std::log(2.5 / 130), 1e-12);
  EXPECT_EQ(Baselines().symbols(), 0);
}

// The table of a bigram would be too large; unigrams go on.
TEST(Baselines, HaveNoBigramOfLargeVocabularies) {
  EXPECT_TRUE(Baselines(1024).has_bigram());
  Baselines baselines(1025);
  EXPECT_FALSE(baselines.has_bigram());
  baselines.add(Tokens{1024, 3, 1024});
  ASSERT_EQ(baselines.counts().size(), 1025u);
  Score unigram, bigram;
  baselines.add_unigram(unigram, Tokens{1024});
  baselines.add_bigram(bigram, Tokens{1024});
  EXPECT_NEAR(unigram.log_likelihood, std::log(3. / 1028), 1e-12);
  EXPECT_EQ(unigram.correct, 1);
  EXPECT_EQ(bigram.tokens, 0);
  EXPECT_EQ(Baselines::from_counts(1025, baselines.counts()).counts(), baselines.counts());
}

TEST(Score, HasMetrics) {
  const Score score{-20, 3, 10};
  EXPECT_DOUBLE_EQ(score.perplexity(), std::exp(2.0));
  EXPECT_DOUBLE_EQ(score.accuracy(), 0.3);
  EXPECT_DOUBLE_EQ((Score{-30 * std::log(2.0), 3, 10}.bits()), 3);
  EXPECT_TRUE(std::isnan(Score{}.bits()));
  EXPECT_TRUE(std::isnan(Score{}.perplexity()));
  EXPECT_TRUE(std::isnan(Score{}.accuracy()));
}

// An untrained unigram is uniform.
TEST(Baselines, AreUniformWithoutData) {
  Score score;
  Baselines(25).add_unigram(score, Tokens{0, 5, 24});
  EXPECT_NEAR(score.perplexity(), 25, 1e-9);
}

// Values of an independent NumPy program on the development split of Swiss-Prot (149.1 M residues of training
// data).
TEST(Baselines, AgreeWithTheRecordedValues) {
  const char* folder = std::getenv("PERFORMER_PROTEINS");
  if (folder == nullptr)
    GTEST_SKIP() << "set PERFORMER_PROTEINS to a folder with train.fasta.zst and test.fasta.zst";
  const std::string prefix = std::string(folder) + "/";
  Baselines baselines(25);
  const SequenceStore train({prefix + "train.fasta.zst"}, testing::TempDir());
  for (int64_t i = 0; i < train.size(); ++i) baselines.add(train.tokens(i));
  Score unigram, bigram;
  const SequenceStore test({prefix + "test.fasta.zst"}, testing::TempDir());
  for (int64_t i = 0; i < test.size(); ++i) {
    baselines.add_unigram(unigram, test.tokens(i));
    baselines.add_bigram(bigram, test.tokens(i));
  }
  EXPECT_NEAR(unigram.perplexity(), 17.95990, 1e-5);
  EXPECT_NEAR(bigram.perplexity(), 17.71256, 1e-5);
  EXPECT_NEAR(unigram.accuracy(), 0.0971970, 1e-7);
  EXPECT_NEAR(bigram.accuracy(), 0.0999765, 1e-7);
}

}  // namespace
}  // namespace performer::data
