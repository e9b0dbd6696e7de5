// SPDX-License-Identifier: Apache-2.0
// Rows of the matrices of a whole layer, local heads and exact first tokens included. Kinds by themselves are
// in kind_properties.cpp.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "performer/base/error.h"
#include "performer/nn/attention.h"
#include "tests/errors.h"
#include "tests/nn/kind_properties.h"

namespace performer::nn {
namespace {

MultiHeadAttention mixed_layer(bool causal) {
  ModelConfig model;
  model.width = 24;
  model.heads = 4;
  model.objective = causal ? "causal" : "masked";
  AttentionConfig attention;
  attention.kind = "favor-softmax";
  attention.set("features", 16);
  attention.local_heads = 1;
  attention.local_window = 4;
  attention.begin_kernel = 3;
  MultiHeadAttention layer(model, attention, 0);
  layer->eval();
  return layer;
}

SequenceBatch packed() {
  SequenceBatch batch;
  batch.cu_seqlens = at::tensor({0, 11, 11, 17}, at::kLong);
  return batch;
}

SequenceBatch masked() {
  SequenceBatch batch;
  at::Tensor mask = at::ones({1, 17}, at::kBool);
  mask.narrow(1, 13, 4).fill_(false);
  batch.key_mask = mask;
  return batch;
}

TEST(AttentionRows, OfALayerGiveWhatItsHeadsGive) {
  torch::manual_seed(4);
  const at::NoGradGuard no_grad;
  const auto draw = [] { return at::randn({1, 17, 4, 6}); };
  for (const bool causal : {true, false}) {
    MultiHeadAttention layer = mixed_layer(causal);
    for (const SequenceBatch& batch : {SequenceBatch{}, packed(), masked()}) {
      const MultiHeadAttentionImpl::Heads heads{draw(), draw(), draw()};
      const at::Tensor rows =
          at::cat({layer->rows(heads, batch, {0, 2}), layer->rows(heads, batch, {2, 15})}, 2);
      const at::Tensor out = at::matmul(rows, heads.value.to(at::kDouble).transpose(1, 2)).transpose(1, 2);
      const at::Tensor expected = layer->attend(heads, batch).to(at::kDouble);
      EXPECT_TRUE(at::allclose(out, expected, 1e-4, 1e-5)) << causal << (out - expected).abs().max();
    }
  }
}

// Nothing of 30,000 x 30,000 numbers (6.7 GiB) is made on the way.
TEST(AttentionRows, OfLongSequencesTakeWhatTheyHold) {
  torch::manual_seed(5);
  const auto attention = properties::make("favor-softmax", false);
  const properties::Tokens tokens = properties::random_tokens(1, 30000);
  const at::Tensor rows = attention->rows({tokens.query, tokens.key, tokens.value}, {29998, 2});
  EXPECT_EQ(rows.sizes(), (std::vector<int64_t>{1, 2, 2, 30000}));
  EXPECT_LT((rows.sum(-1) - 1).abs().max().item<double>(), 1e-9);
  const at::Tensor out = at::matmul(rows, tokens.value.to(at::kDouble).transpose(1, 2)).transpose(1, 2);
  const at::Tensor expected = properties::run(*attention, tokens, false).narrow(1, 29998, 2).to(at::kDouble);
  EXPECT_TRUE(at::allclose(out, expected, 1e-3, 1e-5)) << (out - expected).abs().max();
}

TEST(AttentionRows, AreRefusedByKindsWithoutThem) {
  AttentionKind kind = find_kind("exact");
  kind.name = "without-rows";
  kind.capabilities.rows = false;
  register_kind(kind);
  ModelConfig model;
  AttentionConfig attention;
  attention.kind = "without-rows";
  MultiHeadAttention layer(model, attention, 0);
  EXPECT_THAT(test::error_of<UsageError>([&] {
                layer->rows({}, {}, {0, 1});
              }),
              ::testing::AllOf(::testing::HasSubstr("attention.kind = without-rows has no rows"),
                               ::testing::HasSubstr("exact"), ::testing::HasSubstr("favor-softmax")));
}

}  // namespace
}  // namespace performer::nn
