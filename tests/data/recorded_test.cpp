// SPDX-License-Identifier: Apache-2.0
// What the data layer made of one FASTA file when it knew nothing but residues of one byte: reports, splits,
// fingerprints, orders, crops, masks, batches and baselines are still the same, number for number.
#include <gtest/gtest.h>

#include <map>

#include "performer/base/files.h"
#include "performer/data/baselines.h"
#include "performer/data/batches.h"
#include "performer/data/store.h"
#include "tests/data/packed_bytes.h"

namespace performer::data {
namespace {

// 300 records with rare residues, lower case, J, gaps, stops and ten names given twice.
std::string recorded_input() {
  PhiloxStream draws(2024);
  std::string text;
  for (int i = 0; i < 300; ++i) {
    text += ">r" + std::to_string(i % 290) + " made\n";
    const uint64_t size = 1 + draws.below(120);
    for (uint64_t j = 0; j < size; ++j) {
      text += "ACDEFGHIKLMNPQRSTVWYBOUXZacdxJj-."[draws.below(33)];
      if (j % 50 == 49) text += '\n';
    }
    text += "M";
    text += i % 7 == 0 ? "*\n" : "\n";
  }
  return text;
}

SequenceStore recorded_store(const HashSplit& split = {}) {
  return SequenceStore({test::file_with(recorded_input())}, testing::TempDir(), {}, split);
}

void add_numbers(std::string& text, const std::vector<int64_t>& numbers) {
  text += std::to_string(numbers.size()) + ":";
  for (const int64_t number : numbers) text += std::to_string(number) + ",";
}

uint64_t digest_of(const Batch& batch) {
  std::string text = std::to_string(batch.rows) + "x" + std::to_string(batch.width) + ";";
  add_numbers(text, batch.inputs);
  add_numbers(text, batch.targets);
  add_numbers(text, batch.positions);
  add_numbers(text, batch.cu_seqlens);
  add_numbers(text, {batch.weights.begin(), batch.weights.end()});
  add_numbers(text, {batch.valid.begin(), batch.valid.end()});
  return stable_hash(text);
}

TEST(Recorded, InputIsTheOneOfTheRecords) {
  EXPECT_EQ(stable_hash(recorded_input()), 0x346357b1a6ad8d0c);
}

TEST(Recorded, ReportSplitAndFingerprint) {
  const std::vector<ReportLine> lines = {{2706, "lower-case letters read as upper case"},
                                         {43, "'*' at the end of a record dropped"},
                                         {1070, "gaps dropped"},
                                         {1106, "J read as X"},
                                         {10, "duplicate names kept"}};
  struct Part {
    HashSplit split;
    int64_t size, tokens;
    uint64_t fingerprint;
  };
  for (const Part& part : {Part{{}, 300, 17116, 0xe236f99f5f227945},
                           Part{{HashSplit::Side::train, 0.2, 7}, 241, 14036, 0x3fe6e305423058d4},
                           Part{{HashSplit::Side::held_out, 0.2, 7}, 59, 3080, 0x9a352bce5539c907}}) {
    const SequenceStore store = recorded_store(part.split);
    EXPECT_EQ(store.size(), part.size);
    EXPECT_EQ(store.total_tokens(), part.tokens);
    EXPECT_EQ(store.fingerprint(), part.fingerprint);
    EXPECT_EQ(store.report().records, 300);
    EXPECT_EQ(store.report().tokens, 17116);
    EXPECT_EQ(store.report().lines, lines);
  }
}

struct Stream {
  const char *layout, *crop, *objective;
  uint64_t digest;
  int64_t cropped, dropped, pieces;
};

// Two epochs of each form of batches.
constexpr Stream kStreams[] = {
    {"packed", "split", "causal", 0xd4785d7cb1750e0c, 360, 0, 1058},
    {"packed", "split", "masked", 0x788c703052109561, 372, 0, 1078},
    {"packed", "random", "causal", 0xf1e4502ee868f4e7, 360, 11304, 603},
    {"packed", "random", "masked", 0x3ce5febaa255e838, 372, 11323, 603},
    {"packed", "start", "causal", 0xe01ed589c2678fe5, 360, 11277, 603},
    {"packed", "start", "masked", 0xd1ca817c7d000e54, 372, 11637, 603},
    {"padded", "split", "causal", 0x934e041a386e8f55, 359, 0, 1056},
    {"padded", "split", "masked", 0x18f38ab17022d582, 371, 0, 1076},
    {"padded", "random", "causal", 0xf48a1ca60de88d4, 358, 11268, 600},
    {"padded", "random", "masked", 0xc90cbedd1a401cf9, 370, 11287, 600},
    {"padded", "start", "causal", 0x5c4a7d6b27402474, 358, 11242, 600},
    {"padded", "start", "masked", 0xe3c9038859e147a4, 370, 11600, 600},
    {"concatenated", "split", "causal", 0x6a5080bff488a4aa, 0, 0, 728},
    {"concatenated", "split", "masked", 0xa2bd88d79f861c22, 0, 0, 728},
};

TEST(Recorded, TrainingBatches) {
  const SequenceStore store = recorded_store();
  for (const Stream& form : kStreams) {
    DataConfig config;
    config.layout = form.layout;
    config.crop = form.crop;
    config.length = 48;
    config.batch_tokens = 200;
    config.seed = 5;
    config.corruption = config.crop == "random" ? "protein-lm" : "bert";
    BatchStream stream(store, config, form.objective);
    uint64_t digest = 0;
    while (stream.cursor().epoch < 2) digest = digest * 31 + digest_of(stream.next());
    const std::string name = std::string(form.layout) + " " + form.crop + " " + form.objective;
    EXPECT_EQ(digest, form.digest) << name;
    EXPECT_EQ(stream.crops().cropped, form.cropped) << name;
    EXPECT_EQ(stream.crops().tokens_dropped, form.dropped) << name;
    EXPECT_EQ(stream.crops().pieces, form.pieces) << name;
  }
}

TEST(Recorded, EvaluationBatches) {
  const SequenceStore store = recorded_store();
  DataConfig config;
  config.batch_tokens = 500;
  const std::map<std::string, uint64_t> recorded = {{"causal", 0xe1f450ba0db9e546},
                                                    {"masked", 0x4a5eb7a33f6bbe6d}};
  for (const auto& [objective, expected] : recorded) {
    EvaluationStream stream(store, config, objective);
    uint64_t digest = 0;
    while (const auto batch = stream.next()) digest = digest * 31 + digest_of(*batch);
    EXPECT_EQ(digest, expected) << objective;
  }
}

TEST(Recorded, Baselines) {
  const SequenceStore store = recorded_store();
  Baselines baselines(25);
  for (int64_t i = 0; i < store.size(); ++i) baselines.add(store.tokens(i));
  std::string text;
  add_numbers(text, baselines.counts());
  EXPECT_EQ(stable_hash(text), 0xc954374df0d5e307);
  Score unigram, bigram;
  for (int64_t i = 0; i < store.size(); ++i) {
    baselines.add_unigram(unigram, store.tokens(i));
    baselines.add_bigram(bigram, store.tokens(i));
  }
  // Machines differ in the last bits of their logarithms.
  EXPECT_NEAR(unigram.log_likelihood, -53399.122022766729, 1e-8);
  EXPECT_NEAR(bigram.log_likelihood, -53095.25983529941, 1e-8);
  EXPECT_EQ(unigram.correct, 2169);
  EXPECT_EQ(bigram.correct, 2169);
}

}  // namespace
}  // namespace performer::data
