// SPDX-License-Identifier: Apache-2.0
#include "performer/references/protein_lm/data.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "performer/base/error.h"
#include "performer/data/vocabulary.h"
#include "tests/errors.h"

namespace performer::references::protein_lm {
namespace {

using test::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<Tokens> rows_of(const at::Tensor& batch) {
  std::vector<Tokens> rows;
  for (int64_t i = 0; i < batch.size(0); ++i) {
    const at::Tensor row = batch[i].contiguous();
    rows.emplace_back(row.const_data_ptr<int64_t>(), row.const_data_ptr<int64_t>() + row.numel());
  }
  return rows;
}

TEST(ProteinLMVocabulary, IsOursByDefault) {
  const Vocabulary vocabulary;
  const data::Vocabulary ours = data::Vocabulary::protein();
  std::vector<int64_t> ids(ours.size());
  std::iota(ids.begin(), ids.end(), int64_t{0});
  EXPECT_EQ(vocabulary.letters(), ours.decode(ids));
  EXPECT_EQ(vocabulary.bos(), ours.bos());
  EXPECT_EQ(vocabulary.eos(), ours.eos());
  EXPECT_EQ(vocabulary.pad(), ours.pad());
  EXPECT_EQ(vocabulary.mask(), ours.mask());
  EXPECT_EQ(std::ssize(vocabulary.normal_tokens()), ours.symbols());
}

TEST(ProteinLMVocabulary, LeavesOutWhatItIsTold) {
  const Vocabulary small({.anomalous = false, .align = true, .bos = false, .pad = false, .mask = false});
  EXPECT_EQ(small.letters(), "ACDEFGHIKLMNPQRSTVWY.->");
  EXPECT_EQ(small.eos(), 22);
  EXPECT_FALSE(small.bos() || small.pad() || small.mask());
  EXPECT_THAT(small.encode("A-Y>"), ElementsAre(0, 21, 19, 22));
  EXPECT_EQ(small.decode(Tokens{0, 22, 1}), "A>C");
  EXPECT_EQ(small.decode(Tokens{0, 22, 1}, /*stop_at_eos=*/true), "A");
  EXPECT_THAT(error_of<InputError>([&] { small.encode("AB"); }), HasSubstr("'B' at position 2"));
  EXPECT_THAT(error_of<InputError>([&] { Vocabulary().encode("J"); }), HasSubstr("'J' at position 1"));
  EXPECT_THAT(error_of<InputError>([&] { small.decode(Tokens{23}); }), HasSubstr("token 23"));
  const Vocabulary endless({.eos = false});
  EXPECT_THAT(error_of<UsageError>([&] { endless.decode(Tokens{0}, true); }), HasSubstr("without EOS"));
}

TEST(ProteinLMDomain, PadsBehindAndCutsInFront) {
  EXPECT_THAT(rows_of(pad_sequences({{1, 2}, {1, 2, 3, 4}, {}}, 3, 26)),
              ElementsAre(ElementsAre(1, 2, 26), ElementsAre(2, 3, 4), ElementsAre(26, 26, 26)));
}

TEST(ProteinLMDomain, ValidRowsEndWithNothingButEos) {
  const Vocabulary vocabulary;
  EXPECT_TRUE(is_valid(Tokens{1, 2, 26, 26}, vocabulary, 4));
  EXPECT_TRUE(is_valid(Tokens{1, 2, 3, 4}, vocabulary, 4));
  EXPECT_FALSE(is_valid(Tokens{1, 26, 2, 26}, vocabulary, 4)) << "tokens after an end";
  EXPECT_FALSE(is_valid(Tokens{1, 29}, vocabulary, 4)) << "no such token";
  EXPECT_FALSE(is_valid(Tokens{1, 2, 3}, vocabulary, 2)) << "too long";
  EXPECT_FALSE(is_valid(Tokens{1, 26}, vocabulary, 4, 2)) << "too short";
}

TEST(ProteinLMBatches, PadOrPack) {
  const std::vector<Tokens> sequences = {{0, 1, 2, 3}, {4}, {5, 6}};
  const auto padded = batches(sequences, {.length = 3, .batch_size = 2});
  ASSERT_EQ(padded.size(), 1u) << "the third sequence fills no batch";
  EXPECT_THAT(rows_of(padded[0]), ElementsAre(ElementsAre(0, 1, 2), ElementsAre(4, 27, 27)));
  const auto whole = batches(sequences, {.length = 0, .batch_size = 3});
  EXPECT_THAT(rows_of(whole.at(0)),
              ElementsAre(ElementsAre(0, 1, 2, 3), ElementsAre(4, 27, 27, 27), ElementsAre(5, 6, 27, 27)));
  const auto packed = batches(sequences, {.length = 3, .batch_size = 1, .pack_length = 4});
  ASSERT_EQ(packed.size(), 2u);
  EXPECT_THAT(rows_of(packed[0]), ElementsAre(ElementsAre(0, 1, 2, 26)));
  EXPECT_THAT(rows_of(packed[1]), ElementsAre(ElementsAre(4, 26, 5, 6)));
  EXPECT_THAT(error_of<UsageError>([&] { batches(sequences, {.batch_size = 0}); }),
              HasSubstr("not 512, 0 and 0"));
}

TEST(ProteinLMExamples, CausalOnesAreShifted) {
  const at::Tensor tokens = at::tensor({1, 2, 27}, at::kLong).view({1, 3});
  const Example example = causal_example(tokens, 25, 27);
  EXPECT_THAT(rows_of(example.inputs), ElementsAre(ElementsAre(25, 1, 2)));
  EXPECT_THAT(rows_of(example.weights), ElementsAre(ElementsAre(1, 1, 0)));
  EXPECT_TRUE(causal_example(tokens, 25, 27, /*shift=*/false).inputs.equal(tokens));
  EXPECT_TRUE(causal_example(tokens, 25, {}).weights.all().item<bool>());
}

TEST(ProteinLMExamples, MaskedOnesFollowTheirDraws) {
  const at::Tensor tokens = at::tensor({1, 2, 3, 26, 27}, at::kLong).view({1, 5});
  const MaskDraws draws{at::tensor({0.1F, 0.1F, 0.9F, 0.1F, 0.1F}).view({1, 5}),
                        at::tensor({0.05F, 0.5F, 0.05F, 0.95F, 0.05F}).view({1, 5}),
                        at::tensor({7, 8, 9, 10, 11}, at::kLong).view({1, 5})};
  const Example example = masked_example(tokens, Vocabulary(), draws);
  EXPECT_THAT(rows_of(example.inputs), ElementsAre(ElementsAre(28, 8, 3, 26, 27)));
  EXPECT_THAT(rows_of(example.weights), ElementsAre(ElementsAre(1, 1, 0, 1, 0)))
      << "EOS can be chosen, PAD not";
  EXPECT_TRUE(example.targets.equal(tokens));
  EXPECT_TRUE(masked_example(tokens, Vocabulary(), {}).inputs.equal(tokens));
  EXPECT_EQ(evaluation_seed(tokens), 59);
}

}  // namespace
}  // namespace performer::references::protein_lm
