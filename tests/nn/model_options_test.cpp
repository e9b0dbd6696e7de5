// SPDX-License-Identifier: Apache-2.0
// Options of blocks that pretrained models have, each against its definition written out.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/nn/block.h"
#include "performer/nn/norm.h"
#include "performer/nn/positions.h"

namespace performer::nn {
namespace {

ModelConfig optioned() {
  ModelConfig model;
  model.width = 16;
  model.heads = 4;
  model.ffn = 20;
  model.positions = "none";
  return model;
}

AttentionConfig exact() {
  AttentionConfig attention;
  attention.kind = "exact";
  return attention;
}

SequenceBatch places(int64_t rows, int64_t length) {
  SequenceBatch batch;
  batch.positions = at::arange(length).expand({rows, length});
  return batch;
}

TEST(RmsNorm, DividesByTheRootMeanSquare) {
  ModelConfig model = optioned();
  model.norm_type = "rms";
  Norm norm(model);
  EXPECT_EQ(norm->parameters().size(), 1U) << "no bias";
  torch::NoGradGuard no_grad;
  norm->named_parameters()["weight"].copy_(at::randn({16}));
  const at::Tensor x = at::randn({3, 16}) + 2;
  const at::Tensor expected =
      x / (x.square().mean(-1, true) + model.norm_epsilon).sqrt() * norm->named_parameters()["weight"];
  EXPECT_TRUE(norm->forward(x).allclose(expected, 1e-5, 1e-6));
  EXPECT_EQ(norm->forward_as(x, at::kBFloat16).scalar_type(), at::kBFloat16);
}

TEST(Gate, MultipliesWhatGoesUp) {
  for (const bool bias : {true, false}) {
    ModelConfig model = optioned();
    model.activation = "silu";
    model.ffn_gate = true;
    model.ffn_bias = bias;
    torch::manual_seed(1);
    Block block(model, exact(), 0);
    block->eval();
    torch::NoGradGuard no_grad;
    auto parameters = block->named_parameters();
    for (auto& item : parameters) {
      if (item.key().ends_with("bias")) item.value().normal_();
    }
    EXPECT_EQ(parameters.contains("gate.bias"), bias);
    auto children = block->named_children();
    const auto linear = [&](const char* name, const at::Tensor& x) {
      return children[name]->as<torch::nn::Linear>()->forward(x);
    };
    const at::Tensor x = at::randn({2, 5, 16});
    const SequenceBatch batch = places(2, 5);
    const at::Tensor y = x + children["attention"]->as<MultiHeadAttention>()->forward(
                                 children["attention_norm"]->as<Norm>()->forward(x), batch);
    const at::Tensor n = children["ffn_norm"]->as<Norm>()->forward(y);
    const at::Tensor gates = linear("gate", n);
    const at::Tensor expected = y + linear("down", gates * gates.sigmoid() * linear("up", n));
    EXPECT_TRUE(block(x, batch).allclose(expected, 1e-4, 1e-5)) << bias;
  }
}

// Two heads of keys for four of queries are four heads whose weights are the same by pairs.
TEST(GroupedKeys, AreKeysThatHeadsShare) {
  ModelConfig few = optioned(), all = optioned();
  few.kv_heads = 2;
  few.positions = all.positions = "rotary";
  torch::manual_seed(2);
  MultiHeadAttention shared(few, exact(), 0), own(all, exact(), 0);
  torch::NoGradGuard no_grad;
  auto from = shared->named_parameters(), to = own->named_parameters();
  EXPECT_EQ(from["key.weight"].size(0), 8);
  for (const char* name : {"query.weight", "out.weight"}) to[name].copy_(from[name]);
  for (const char* name : {"key.weight", "value.weight"})
    to[name].copy_(from[name].view({2, 1, 4, 16}).expand({2, 2, 4, 16}).reshape({16, 16}));
  const at::Tensor x = at::randn({2, 7, 16});
  const at::Tensor expected = own->forward(x, places(2, 7));
  EXPECT_TRUE(shared->forward(x, places(2, 7)).allclose(expected, 1e-4, 1e-5));
  auto cache = shared->begin(2);
  for (int64_t i = 0; i < 7; ++i)
    EXPECT_TRUE(shared->step(x.select(1, i), at::full({2}, i, at::kLong), *cache)
                    .allclose(expected.select(1, i), 1e-4, 1e-5));
}

TEST(RotaryRates, AreThoseOfTheBase) {
  const at::Tensor rates = rotary_rates(8, 100);
  for (int64_t i = 0; i < 4; ++i)
    EXPECT_NEAR(rates[i].item<double>(), std::pow(100.0, -2.0 * static_cast<double>(i) / 8), 1e-12);
  const at::Tensor positions = at::arange(5).unsqueeze(0);
  EXPECT_TRUE(
      rotary_table(positions, rates, at::kDouble).equal(rotary_table(positions, 8, at::kDouble, 100)));
}

TEST(StoredRates, AreNeverReplacedByComputedOnes) {
  ModelConfig model = optioned();
  model.positions = "rotary";
  model.rotary_stored = true;
  MultiHeadAttention attention(model, exact(), 0);
  EXPECT_THROW(attention->forward(at::randn({1, 3, 16}), places(1, 3)), UsageError);
}

}  // namespace
}  // namespace performer::nn
