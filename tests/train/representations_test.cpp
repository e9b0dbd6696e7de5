// SPDX-License-Identifier: Apache-2.0
// Representations of whole sequences against single forward passes, and their comparison against its
// formulas.
#include "performer/train/representations.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace performer::train {
namespace {

data::MemoryCorpus sequences() {
  return data::MemoryCorpus({{0, 1, 2, 3, 4}, {7}, {9, 8, 7, 6, 5, 4, 3, 2, 1}, {5, 5, 6}},
                            data::Vocabulary::protein());
}

LanguageModel model_of(const std::string& objective) {
  at::manual_seed(5);
  const ModelConfig config{.objective = objective, .layers = 2, .width = 16, .heads = 2, .ffn = 32};
  AttentionConfig exact;
  exact.kind = "exact";
  return LanguageModel(config, exact, data::Vocabulary::protein().size());
}

class SequenceRepresentations : public ::testing::TestWithParam<const char*> {};

TEST_P(SequenceRepresentations, AreMeansOverSymbolsOfEachSequenceByItself) {
  LanguageModel model = model_of(GetParam());
  const data::MemoryCorpus corpus = sequences();
  DataConfig data;
  data.batch_tokens = 12;  // the four sequences take two batches, the third is longer than what is left
  const at::Tensor found = sequence_representations(model, corpus, data);
  ASSERT_EQ(found.sizes(), at::IntArrayRef({4, 16}));
  ASSERT_FALSE(model->is_training());
  const at::NoGradGuard no_grad;
  for (int64_t i = 0; i < corpus.size(); ++i) {
    std::vector<int64_t> tokens = {corpus.vocabulary().bos()};
    for (const data::Token token : corpus.tokens(i)) tokens.push_back(token);
    const std::string objective = GetParam();
    if (objective == "masked") tokens.push_back(corpus.vocabulary().eos());
    SequenceBatch batch;
    batch.tokens = at::tensor(tokens, at::kLong).unsqueeze(0);
    batch.positions = at::arange(std::ssize(tokens)).unsqueeze(0);
    const at::Tensor alone =
        model->hidden(batch)[0].narrow(0, 1, std::ssize(corpus.tokens(i))).to(at::kDouble).mean(0);
    // float32 sums over a handful of tokens in another order
    EXPECT_TRUE(found[i].allclose(alone, 1e-5, 1e-5)) << "sequence " << i;
  }
  EXPECT_TRUE(sequence_representations(model, corpus, data, 2).equal(found.narrow(0, 0, 2)));
}

INSTANTIATE_TEST_SUITE_P(Objectives, SequenceRepresentations, ::testing::Values("causal", "masked"));

TEST(Similarity, IsTheMeanOverSequences) {
  const at::Tensor wanted = at::tensor({3., 0., 0., 2.}, at::kDouble).view({2, 2});
  const at::Tensor found = at::tensor({3., 3., 0., -1.}, at::kDouble).view({2, 2});
  const Similarity similar = similarity(found, wanted);
  EXPECT_NEAR(similar.cosine, (std::sqrt(0.5) - 1) / 2, 1e-15);
  EXPECT_NEAR(similar.relative_error, (1 + 1.5) / 2, 1e-15);
}

TEST(CosineBetweenSequences, IsTheMeanOverPairs) {
  at::manual_seed(1);
  const at::Tensor rows = at::randn({5, 3}, at::kDouble);
  double sum = 0;
  for (int64_t i = 0; i < 5; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      sum += ((rows[i] * rows[j]).sum() / (rows[i].norm() * rows[j].norm())).item<double>() / 10;
    }
  }
  EXPECT_NEAR(cosine_between_sequences(rows), sum, 1e-14);
  EXPECT_TRUE(std::isnan(cosine_between_sequences(rows.narrow(0, 0, 1))));
}

}  // namespace
}  // namespace performer::train
