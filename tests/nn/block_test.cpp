// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/block.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

namespace performer::nn {
namespace {

ModelConfig config(const std::string& norm, const std::string& activation) {
  ModelConfig model;
  model.width = 16;
  model.heads = 2;
  model.ffn = 20;
  model.norm = norm;
  model.activation = activation;
  return model;
}

// The block written out around its own attention layer.
at::Tensor expected(Block& block, const ModelConfig& model, const at::Tensor& x, const SequenceBatch& batch) {
  auto children = block->named_children();
  auto norm = [&](const char* name, const at::Tensor& y) { return children[name]->as<Norm>()->forward(y); };
  auto dense = [&](const char* name, const at::Tensor& y) {
    return children[name]->as<torch::nn::Linear>()->forward(y);
  };
  auto attend = [&](const at::Tensor& y) {
    return children["attention"]->as<MultiHeadAttention>()->forward(y, batch);
  };
  auto ffn = [&](const at::Tensor& y) {
    const at::Tensor u = dense("up", y);
    const at::Tensor inner = 0.7978845608028654 * (u + 0.044715 * u.pow(3));
    const at::Tensor active = model.activation == "relu"   ? u.clamp_min(0)
                              : model.activation == "gelu" ? 0.5 * u * (1 + at::erf(u / std::sqrt(2.0)))
                                                           : 0.5 * u * (1 + inner.tanh());
    return dense("down", active);
  };
  if (model.norm == "pre") {
    const at::Tensor y = x + attend(norm("attention_norm", x));
    return y + ffn(norm("ffn_norm", y));
  }
  const at::Tensor y = norm("attention_norm", x + attend(x));
  return norm("ffn_norm", y + ffn(y));
}

TEST(Block, FollowsPreAndPostNormWithEachActivation) {
  for (const char* norm : {"pre", "post"}) {
    for (const char* activation : {"gelu-tanh", "gelu", "relu"}) {
      torch::manual_seed(2);
      const ModelConfig model = config(norm, activation);
      Block block(model, AttentionConfig{}, 0);
      block->eval();
      const at::Tensor x = at::randn({2, 7, 16}) * 2;
      SequenceBatch batch;
      batch.positions = at::arange(7).expand({2, 7});
      const at::Tensor y = block(x, batch);
      EXPECT_TRUE(at::allclose(y, expected(block, model, x, batch), 1e-5, 1e-5)) << norm << " " << activation;
    }
  }
}

TEST(Block, DropsOutInTrainingOnly) {
  ModelConfig model = config("pre", "gelu-tanh");
  model.dropout = 0.5;
  torch::manual_seed(2);
  Block block(model, AttentionConfig{}, 0);
  SequenceBatch batch;
  batch.positions = at::arange(7).unsqueeze(0);
  const at::Tensor x = at::randn({1, 7, 16});
  block->train();
  EXPECT_FALSE(at::equal(block(x, batch), block(x, batch)));
  block->eval();
  EXPECT_TRUE(at::equal(block(x, batch), block(x, batch)));
}

}  // namespace
}  // namespace performer::nn
