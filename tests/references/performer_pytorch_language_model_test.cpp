// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/language_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "performer/base/error.h"
#include "performer/references/performer_pytorch/import.h"

namespace performer::references::performer_pytorch {
namespace {

PerformerLMOptions small_lm(const char* positions = "rotary") {
  PerformerLMOptions options;
  options.vocabulary = 7;
  options.max_length = 16;
  options.positions = positions;
  options.stack.dim = 8;
  options.stack.depth = options.stack.heads = options.stack.ff_mult = 2;
  options.stack.dim_head = 4;
  options.stack.features = 8;
  return options;
}

PerformerLMInputs tokens_of(int64_t batch, int64_t length) {
  PerformerLMInputs inputs;
  inputs.tokens = at::randint(0, 7, {batch, length}, at::kLong);
  return inputs;
}

int64_t parameter_count(const torch::nn::Module& model) {
  int64_t count = 0;
  for (const at::Tensor& parameter : model.parameters()) count += parameter.numel();
  return count;
}

TEST(PerformerLM, HasTheParametersItShouldHave) {
  // Two blocks of norms 2 * 16, projections 4 * 64, feed-forward 8 * 16 + 16 + 16 * 8 + 8.
  const int64_t stack = 2 * (32 + 256 + 280), ends = 7 * 8 + 16;  // embedding, final norm
  EXPECT_EQ(parameter_count(*PerformerLM(small_lm())), stack + ends + 8 * 7 + 7);
  EXPECT_EQ(parameter_count(*PerformerLM(small_lm("learned"))), stack + ends + 16 * 8 + 8 * 7 + 7);
  EXPECT_EQ(parameter_count(*PerformerLM(small_lm("axial"))), stack + ends + (1 + 64) * 8 + 8 * 7 + 7);
  PerformerLMOptions options = small_lm("none");
  options.tied_output = true;
  EXPECT_EQ(parameter_count(*PerformerLM(options)), stack + ends);
  options.tied_output = options.output = false;
  EXPECT_EQ(parameter_count(*PerformerLM(options)), stack + ends);
}

TEST(PerformerLM, KnowsWhereTokensStandWithAllPositionsButNone) {
  for (const char* positions : {"rotary", "rotary-only", "axial", "learned", "none"}) {
    torch::manual_seed(4);
    PerformerLM model(small_lm(positions));
    model->eval();
    PerformerLMInputs inputs = tokens_of(1, 6), turned;
    inputs.tokens = at::tensor({1, 2, 3, 4, 5, 6}, at::kLong).unsqueeze(0);
    turned.tokens = inputs.tokens.flip(1);
    const bool blind = at::allclose(model(inputs).flip(1), model(turned), 1e-4, 1e-5);
    EXPECT_EQ(blind, std::string(positions) == "none") << positions;
  }
}

TEST(PerformerLM, LogitsAreOfTheEncodings) {
  PerformerLMOptions options = small_lm();
  options.tied_output = true;
  PerformerLM model(options);
  model->eval();
  const PerformerLMInputs inputs = tokens_of(2, 5);
  const at::Tensor hidden = model->encode(inputs);
  EXPECT_EQ(hidden.sizes(), (at::IntArrayRef{2, 5, 8}));
  EXPECT_TRUE(
      at::allclose(model(inputs), at::matmul(hidden, model->token_embedding()->weight.t()), 1e-5, 1e-6));
  // The final norm starts with gain 1 and bias 0.
  EXPECT_TRUE(at::allclose(hidden.square().mean(-1), at::ones({2, 5}), 1e-2, 1e-2));
}

TEST(PerformerLM, DropsEmbeddingsInTraining) {
  PerformerLMOptions options = small_lm();
  options.embedding_dropout = 0.5;
  PerformerLM model(options);
  const PerformerLMInputs inputs = tokens_of(1, 5);
  EXPECT_FALSE(at::equal(model(inputs), model(inputs)));
  model->eval();
  EXPECT_TRUE(at::equal(model(inputs), model(inputs)));
}

TEST(PerformerLM, ReversibleModelsLearn) {
  PerformerLMOptions options = small_lm();
  options.stack.reversible = true;
  options.stack.causal = true;
  PerformerLM model(options);
  const PerformerLMInputs inputs = tokens_of(2, 8);
  const auto loss = [&] {
    return at::cross_entropy_loss(model(inputs).flatten(0, 1), inputs.tokens.flatten());
  };
  const double before = loss().item<double>();
  for (int step = 0; step < 30; ++step) {
    model->zero_grad();
    loss().backward();
    const at::NoGradGuard no_grad;
    for (at::Tensor& parameter : model->parameters()) parameter.sub_(0.1 * parameter.grad());
  }
  EXPECT_LT(loss().item<double>(), 0.5 * before);
}

TEST(PerformerLM, RefusesImpossibleOptionsAndInputs) {
  PerformerLMOptions options = small_lm();
  options.vocabulary = 0;
  EXPECT_THROW(PerformerLM{options}, UsageError);
  EXPECT_THROW(PerformerLM(small_lm("absolute")), UsageError);
  options = small_lm();
  options.axial_shape = {4, 4};
  EXPECT_THROW(PerformerLM{options}, UsageError);
  options = small_lm();
  options.stack.dim_head = 5;
  EXPECT_THROW(PerformerLM{options}, UsageError);
  PerformerLM model(small_lm());
  EXPECT_THROW(model(tokens_of(1, 17)), UsageError);
  PerformerLMInputs inputs = tokens_of(1, 3);
  inputs.tokens[0][1] = 7;
  EXPECT_THROW(model(inputs), UsageError);
  options = small_lm();
  options.output = false;
  EXPECT_THROW(PerformerLM(options)->forward(tokens_of(1, 3)), UsageError);
}

TEST(PerformerPytorch, NamesBecomeOurs) {
  const std::pair<const char*, const char*> names[] = {
      {"net.layers.3.0.norm.weight", "blocks_3.attention_norm.weight"},
      {"net.layers.0.1.g", "blocks_0.feed_forward_norm.gain"},
      {"net.layers.12.0.fn.to_q.bias", "blocks_12.attention.to_q.bias"},
      {"net.layers.0.0.fn.fn.to_out.weight", "blocks_0.attention.to_out.weight"},
      {"net.layers.1.1.fn.fn.fn.w1.weight", "blocks_1.feed_forward.w1.weight"},
      {"net.blocks.2.f.net.fn.fast_attention.projection_matrix",
       "blocks_2.attention.fast_attention.projection_matrix"},
      {"performer.net.blocks.2.g.net.fn.fn.w2.bias", "stack.blocks_2.feed_forward.w2.bias"},
      {"net.performer.net.layers.0.0.fn.to_v.weight", "net.stack.blocks_0.attention.to_v.weight"},
      {"performer.proj_updater.instance.layers.0.0.fn.to_v.weight", ""},
      {"performer.proj_updater.calls_since_last_redraw", ""},
      {"token_emb.weight", "token_embedding.weight"},
      {"pos_emb.emb", "position_table"},
      {"layer_pos_emb.emb", "rotary_table"},
      {"pos_emb.emb.weight", "learned_positions.weight"},
      {"pos_emb.weights.1", "axial_positions.weights_1"},
      {"norm.bias", "final_norm.bias"},
      {"to_out.weight", "output.weight"},
      {"enc.token_emb.weight", "encoder.token_embedding.weight"},
      {"dec.net.norm.weight", "decoder.net.final_norm.weight"},
      {"something.else", "something.else"}};
  for (const auto& [theirs, ours] : names) EXPECT_EQ(performer_pytorch_name(theirs), ours) << theirs;
}

TEST(PerformerPytorch, ImportNeedsEveryParameter) {
  PerformerLM model(small_lm("none"));
  EXPECT_THROW(import_performer_pytorch(*model, {{"token_emb.weight", at::zeros({7, 8})}}), InputError);
  EXPECT_THROW(import_performer_pytorch(*model, {{"pos_emb.emb", at::zeros({16, 8})}}), InputError);
}

}  // namespace
}  // namespace performer::references::performer_pytorch
