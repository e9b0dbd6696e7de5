// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/autoregressive.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/references/performer_pytorch/sampling.h"

namespace performer::references::performer_pytorch {
namespace {

constexpr int64_t kVocabulary = 9;

Autoregressive small_generator(int64_t max_length = 12) {
  torch::manual_seed(6);
  PerformerLMOptions lm;
  lm.vocabulary = kVocabulary;
  lm.max_length = max_length;
  lm.stack.dim = 8;
  lm.stack.depth = 1;
  lm.stack.heads = lm.stack.ff_mult = 2;
  lm.stack.dim_head = 4;
  lm.stack.features = 8;
  lm.stack.causal = true;
  Autoregressive model{PerformerLM(lm)};
  const at::NoGradGuard no_grad;
  for (at::Tensor& parameter : model->parameters()) parameter.normal_(0, 0.7);
  return model;
}

PerformerLMInputs starts(std::vector<int64_t> tokens, int64_t rows = 1) {
  PerformerLMInputs inputs;
  inputs.tokens = at::tensor(tokens, at::kLong).view({rows, -1});
  return inputs;
}

// Makes a token certain to be drawn: no other logit comes near its bias.
void force_token(Autoregressive& model, int64_t token) {
  const at::NoGradGuard no_grad;
  model->named_parameters()["net.output.bias"][token] = 1e4;
}

TEST(Decoding, RefusesImpossibleOptions) {
  const auto refused = [](auto change) {
    DecodingOptions options;
    change(options);
    EXPECT_THROW(validate(options), UsageError);
  };
  EXPECT_NO_THROW(validate(DecodingOptions{}));
  refused([](auto& o) { o.filter = "top_q"; });
  refused([](auto& o) { o.filter_threshold = 1.5; });
  refused([](auto& o) { o.temperature = 0; });
  refused([](auto& o) { o.temperature = NAN; });
  refused([](auto& o) { o.repetition_penalty = 0; });
  refused([](auto& o) { o.repetition_window = -1; });
}

TEST(Sampling, ThresholdsKeepTheRest) {
  const at::Tensor logits = at::tensor({0.1f, 0.5f, 0.15f, 0.25f}).log().unsqueeze(0);
  const auto kept = [](const at::Tensor& x) { return x.isfinite()[0]; };
  EXPECT_TRUE(at::equal(kept(keep_top_k(logits, 0.5)), at::tensor({0, 1, 0, 1}).to(at::kBool)));
  EXPECT_TRUE(at::equal(kept(keep_top_p(logits, 0.4)), at::tensor({0, 1, 0, 1}).to(at::kBool)));
  EXPECT_TRUE(at::equal(kept(keep_top_p(logits, 0.6)), at::tensor({0, 1, 0, 0}).to(at::kBool)));
  EXPECT_FALSE(kept(keep_top_k(logits, 0.9)).any().item<bool>()) << "int(0.1 * 4) tokens";
  EXPECT_THROW(keep_top_k(logits, -0.5), UsageError);
}

TEST(Autoregressive, LossIsTheMeanOverTargetsThatCount) {
  Autoregressive model = small_generator();
  const PerformerLMInputs inputs = starts({1, 2, 3, 0, 4, 5, 0, 0}, 2);
  PerformerLMInputs read;
  read.tokens = inputs.tokens.narrow(1, 0, 3);
  const at::Tensor log_p = model->net()->forward(read).log_softmax(-1);
  const double expected = -(log_p[0][0][2] + log_p[0][1][3] + log_p[1][0][5]).item<double>() / 3;
  EXPECT_NEAR(model(inputs).item<double>(), expected, 1e-5);
}

TEST(Autoregressive, ALossWithoutTargetsIsNaN) {
  EXPECT_TRUE(std::isnan(small_generator()->forward(starts({1, 0, 0})).item<double>()));
  EXPECT_THROW(small_generator()->forward(starts({1})), UsageError);
}

TEST(Autoregressive, StopsWhenAllRowsEndAtOnce) {
  Autoregressive model = small_generator();
  DecodingOptions options;
  options.filter_threshold = 0;  // keep all
  force_token(model, 4);
  options.end_token = 4;
  EXPECT_EQ(model->generate(starts({1, 2}, 2), 12, options).sizes(), (at::IntArrayRef{2, 1}));
}

TEST(Autoregressive, RowsGoOnAfterTheirOwnEnd) {
  Autoregressive model = small_generator();
  DecodingOptions options;
  options.filter_threshold = 0;
  const auto drawn = [&] {
    torch::manual_seed(2);
    return model->generate(starts({1, 2}, 2), 12, options);
  };
  const at::Tensor free = drawn();
  const at::Tensor apart = (free[0] != free[1]).nonzero().flatten();
  ASSERT_GT(apart.numel(), 0);
  const int64_t first = apart[0].item<int64_t>();  // where the first row draws what the second one does not
  options.end_token = free[0][first].item<int64_t>();
  const at::Tensor together = (free == options.end_token).all(0).nonzero().flatten();
  const int64_t steps = together.numel() > 0 ? together[0].item<int64_t>() + 1 : 12;
  ASSERT_GT(steps, first + 1) << "both rows end before that: choose another seed";
  EXPECT_TRUE(at::equal(drawn(), free.narrow(1, 0, steps)));
}

TEST(Autoregressive, PenaltySeesRowsOfTheBatch) {
  Autoregressive model = small_generator();
  const at::Tensor logits = at::tensor({2.0f, -2.0f, 1.0f}).unsqueeze(0);
  const at::Tensor penalised = penalize_repetition(logits, at::tensor({1, 2}, at::kLong), 2);
  EXPECT_TRUE(at::equal(penalised, at::tensor({2.0f, -1.0f, 0.5f}).unsqueeze(0)));
  // A window of one holds the last row only, whatever row a token is drawn for.
  force_token(model, 1);
  {
    const at::NoGradGuard no_grad;
    model->named_parameters()["net.output.bias"][3] = 1e3;
  }
  DecodingOptions options;
  options.filter_threshold = 0.88;  // one of nine: the most probable
  options.repetition_penalty = 50;
  const auto drawn = [&](int64_t window) {
    options.repetition_window = window;
    return model->generate(starts({1, 2, 6, 7}, 2), 1, options);
  };
  EXPECT_TRUE(at::equal(drawn(2), at::full({2, 1}, 3, at::kLong)));
  EXPECT_TRUE(at::equal(drawn(1), at::full({2, 1}, 1, at::kLong)));
}

TEST(Autoregressive, OnlyTheLastWindowIsRead) {
  Autoregressive model = small_generator(3);
  DecodingOptions options;
  options.filter_threshold = 0.88;  // one of nine: the most probable
  const at::Tensor a = model->generate(starts({1, 2, 3, 4}), 5, options);
  EXPECT_TRUE(at::equal(a, model->generate(starts({8, 7, 2, 3, 4}), 5, options)));
}

TEST(Autoregressive, GenerationRestoresTheMode) {
  Autoregressive model = small_generator();
  model->train();
  DecodingOptions options;
  options.filter_threshold = 0;
  const at::Tensor tokens = model->generate(starts({1, 2}), 2, options);
  EXPECT_TRUE(model->net()->is_training());
  EXPECT_FALSE(tokens.requires_grad());
  EXPECT_EQ(model->generate(starts({1, 2}), 0).sizes(), (at::IntArrayRef{1, 0}));
}

TEST(Autoregressive, NeedsACausalModel) {
  PerformerLMOptions options;
  options.vocabulary = options.max_length = 4;
  options.stack.depth = 1;
  EXPECT_THROW(Autoregressive{PerformerLM(options)}, UsageError);
}

}  // namespace
}  // namespace performer::references::performer_pytorch
