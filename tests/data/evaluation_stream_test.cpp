// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "performer/data/batches.h"
#include "tests/data/batch_checks.h"
#include "tests/data/sequences.h"

namespace performer::data {
namespace {

using test::config_of, test::expect_well_formed, test::Ints, test::slice;
using test::kBos, test::kEos;
using test::proteins, test::random_sequences;
using test::Sequences;

TEST(EvaluationStream, VisitsEverySequenceInOrderUncut) {
  const Sequences sequences = random_sequences(50, 10, 90);
  const MemoryCorpus store = proteins(sequences);
  for (const std::string objective : {"causal", "masked"}) {
    EvaluationStream stream(store, config_of("padded", 8, 60), objective);
    int64_t seen = 0;
    while (const auto batch = stream.next()) {
      expect_well_formed(*batch);
      ASSERT_EQ(stream.first(), seen);
      ASSERT_EQ(std::ssize(batch->cu_seqlens), stream.count() + 1);
      EXPECT_TRUE(batch->width <= 60 || stream.count() == 1);
      for (int64_t s = 0; s < stream.count(); ++s, ++seen) {
        const auto& sequence = sequences[seen];
        const int64_t begin = batch->cu_seqlens[s], end = batch->cu_seqlens[s + 1],
                      at = begin + stream.symbol_offset();
        ASSERT_EQ(end - begin, std::ssize(sequence) + (objective == "causal" ? 1 : 2));
        EXPECT_EQ(slice(batch->targets, at, at + std::ssize(sequence)),
                  Ints(sequence.begin(), sequence.end()));
        EXPECT_EQ(batch->targets[end - 1], kEos);
        EXPECT_EQ(batch->inputs[begin], kBos);
        for (int64_t i = begin; i < end; ++i) EXPECT_EQ(batch->positions[i], i - begin);
      }
    }
    EXPECT_EQ(seen, 50);
    EXPECT_EQ(stream.next(), std::nullopt);
  }
}

TEST(EvaluationStream, FillsBatches) {
  const MemoryCorpus store = proteins(Sequences(10, std::vector<Token>(9, 1)));
  EvaluationStream stream(store, config_of("packed", 8, 30), "causal");
  EXPECT_EQ(stream.next()->width, 30);
  EXPECT_EQ(stream.count(), 3);
}

std::map<std::string, Ints> evaluation_masks(const Sequences& sequences, const DataConfig& config) {
  const MemoryCorpus store = proteins(sequences);
  EvaluationStream stream(store, config, "masked");
  std::map<std::string, Ints> result;
  while (const auto batch = stream.next()) {
    for (int64_t s = 0; s < stream.count(); ++s) {
      const auto sequence = store.tokens(stream.first() + s);
      result[std::string(sequence.begin(), sequence.end())] =
          slice(batch->inputs, batch->cu_seqlens[s], batch->cu_seqlens[s + 1]);
    }
  }
  return result;
}

TEST(EvaluationStream, MasksDoNotDependOnBatchesOrderOrSeed) {
  Sequences sequences = random_sequences(60, 11, 70);
  DataConfig config = config_of("packed", 8, 64);
  const auto reference = evaluation_masks(sequences, config);
  config.seed = 77;
  config.batch_tokens = 1;
  EXPECT_EQ(evaluation_masks(sequences, config), reference);
  config.batch_tokens = 100'000;
  std::ranges::reverse(sequences);
  EXPECT_EQ(evaluation_masks(sequences, config), reference);
  config.mask_rate = 0.5;
  EXPECT_NE(evaluation_masks(sequences, config), reference);
}

TEST(EvaluationStream, MasksTheStatedFraction) {
  const MemoryCorpus store = proteins(random_sequences(2000, 12, 200));
  EvaluationStream stream(store, config_of("packed", 8, 4096), "masked");
  int64_t chosen = 0;
  while (const auto batch = stream.next()) chosen += batch->targets_counted();
  const double n = static_cast<double>(store.total_tokens());
  EXPECT_NEAR(static_cast<double>(chosen), 0.15 * n, 5 * std::sqrt(n * 0.15 * 0.85));
}

}  // namespace
}  // namespace performer::data
