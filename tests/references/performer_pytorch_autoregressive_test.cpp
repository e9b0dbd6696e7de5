// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/autoregressive.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>

#include "performer/base/error.h"

namespace performer::autoregressive_test {
namespace {

constexpr int64_t kVocabulary = 9;

Autoregressive small(bool compatible, const AutoregressiveOptions& options = {}, int64_t max_length = 12) {
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
  lm.stack.compatible = compatible;
  Autoregressive model(PerformerLM(lm), options);
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

at::Tensor probabilities(std::vector<double> logits, const DecodingOptions& options,
                         const std::vector<int64_t>& recent = {}) {
  return next_token_probabilities(at::tensor(logits, at::kDouble), recent, options);
}

TEST(NextToken, TopPKeepsTheSmallestSetThatReachesP) {
  const std::vector<double> logits = {std::log(0.1), std::log(0.5), std::log(0.15), std::log(0.25)};
  DecodingOptions options;
  options.top_p = 0.7;
  const at::Tensor p = probabilities(logits, options);  // 0.5 is not enough, 0.5 + 0.25 is
  EXPECT_TRUE(at::allclose(p, at::tensor({0.0, 2.0 / 3, 0.0, 1.0 / 3}, at::kDouble)));
  options.top_p = 0.4;
  EXPECT_TRUE(at::allclose(probabilities(logits, options), at::tensor({0.0, 1.0, 0.0, 0.0}, at::kDouble)));
}

TEST(NextToken, TopKKeepsTies) {
  DecodingOptions options;
  options.top_k = 2;
  const at::Tensor p = probabilities({1, 3, 2, 2}, options);
  EXPECT_EQ(p[0].item<double>(), 0);
  EXPECT_GT(p[1].item<double>(), p[2].item<double>());
  EXPECT_GT(p[2].item<double>(), 0);
  EXPECT_EQ(p[2].item<double>(), p[3].item<double>());
  EXPECT_NEAR(p.sum().item<double>(), 1, 1e-12);
}

TEST(NextToken, RepetitionMakesTokensLessProbableWhateverTheirSign) {
  DecodingOptions options;
  const at::Tensor plain = probabilities({1, -1, 0.5}, options, {0, 1});
  options.repetition_penalty = 2;
  const at::Tensor p = probabilities({1, -1, 0.5}, options, {0, 1, 1});
  EXPECT_TRUE(at::allclose(p, at::tensor({0.5, -2.0, 0.5}, at::kDouble).softmax(0)));
  options.repetition_window = 1;  // only the last token, 1
  EXPECT_TRUE(at::allclose(probabilities({1, -1, 0.5}, options, {0, 1}),
                           at::tensor({1.0, -2.0, 0.5}, at::kDouble).softmax(0)));
  EXPECT_LT(p[1].item<double>(), plain[1].item<double>());
}

TEST(NextToken, TemperatureComesBeforeTheFilters) {
  DecodingOptions options;
  options.temperature = 2;
  EXPECT_TRUE(at::allclose(probabilities({2, 0}, options), at::tensor({1.0, 0.0}, at::kDouble).softmax(0)));
  options.temperature = 0;
  EXPECT_TRUE(at::equal(probabilities({1, 3, 3}, options), at::tensor({0.0, 1.0, 0.0}, at::kDouble)));
}

TEST(NextToken, RefusesBrokenLogitsAndOptions) {
  EXPECT_THROW(probabilities({0, NAN}, {}), Error);
  EXPECT_THROW(probabilities({-INFINITY, -INFINITY}, {}), Error);
  DecodingOptions options;
  options.top_p = 0;
  EXPECT_THROW(validate(options), UsageError);
  options = {};
  options.filter = "top_q";
  EXPECT_THROW(validate(options), UsageError);
  options = {};
  options.temperature = -1;
  EXPECT_THROW(validate(options), UsageError);
}

TEST(PytorchSampling, ThresholdsKeepTheRest) {
  const at::Tensor logits = at::tensor({0.1f, 0.5f, 0.15f, 0.25f}).log().unsqueeze(0);
  const auto kept = [](const at::Tensor& x) { return x.isfinite()[0]; };
  EXPECT_TRUE(
      at::equal(kept(pytorch_sampling::keep_top_k(logits, 0.5)), at::tensor({0, 1, 0, 1}).to(at::kBool)));
  EXPECT_TRUE(
      at::equal(kept(pytorch_sampling::keep_top_p(logits, 0.4)), at::tensor({0, 1, 0, 1}).to(at::kBool)));
  EXPECT_TRUE(
      at::equal(kept(pytorch_sampling::keep_top_p(logits, 0.6)), at::tensor({0, 1, 0, 0}).to(at::kBool)));
  EXPECT_FALSE(kept(pytorch_sampling::keep_top_k(logits, 0.9)).any().item<bool>()) << "int(0.1 * 4) tokens";
  EXPECT_THROW(pytorch_sampling::keep_top_k(logits, -0.5), UsageError);
}

TEST(Autoregressive, LossIsTheMeanOverTargetsThatCount) {
  Autoregressive model = small(false);
  const PerformerLMInputs inputs = starts({1, 2, 3, 0, 4, 5, 0, 0}, 2);
  PerformerLMInputs read;
  read.tokens = inputs.tokens.narrow(1, 0, 3);
  const at::Tensor log_p = model->net()->forward(read).log_softmax(-1);
  const double expected = -(log_p[0][0][2] + log_p[0][1][3] + log_p[1][0][5]).item<double>() / 3;
  EXPECT_NEAR(model(inputs).item<double>(), expected, 1e-5);
}

TEST(Autoregressive, MaskedTargetsDoNotCountInOurOwnMode) {
  Autoregressive model = small(false);
  PerformerLMInputs inputs = starts({1, 2, 3, 4, 5});
  inputs.mask = at::tensor({1, 1, 1, 0, 0}).to(at::kBool).unsqueeze(0);
  EXPECT_NEAR(model(inputs).item<double>(), model(starts({1, 2, 3})).item<double>(), 1e-5);
}

TEST(Autoregressive, ALossWithoutTargetsIsZeroOrAsThere) {
  const PerformerLMInputs inputs = starts({1, 0, 0});
  const at::Tensor loss = small(false)->forward(inputs);
  EXPECT_EQ(loss.item<double>(), 0);
  EXPECT_TRUE(loss.requires_grad());
  EXPECT_TRUE(std::isnan(small(true)->forward(inputs).item<double>()));
  EXPECT_THROW(small(false)->forward(starts({1})), UsageError);
}

TEST(Autoregressive, DrawsAreNamedBySeedAndRow) {
  Autoregressive model = small(false);
  DecodingOptions options;
  options.seed = 3;
  const at::Tensor both = model->generate(starts({1, 2, 3, 4}, 2), 20, options);
  ASSERT_EQ(both.sizes(), (at::IntArrayRef{2, 20}));
  const at::Tensor first = model->generate(starts({1, 2}), 20, options);
  EXPECT_TRUE(at::equal(first[0], both[0])) << "the first row depends on the second";
  options.seed = 4;
  EXPECT_FALSE(at::equal(model->generate(starts({1, 2}), 20, options), first));
}

TEST(Autoregressive, MaskedTokensOfAStartDoNotExist) {
  Autoregressive model = small(false);
  DecodingOptions options;
  options.temperature = 0;
  PerformerLMInputs padded = starts({0, 0, 5, 3, 7, 8, 0, 6}, 2);
  padded.mask = at::tensor({0, 0, 1, 1, 1, 1, 0, 1}).to(at::kBool).view({2, 4});
  const at::Tensor together = model->generate(padded, 6, options);
  EXPECT_TRUE(at::equal(together[0], model->generate(starts({5, 3}), 6, options)[0]));
  EXPECT_TRUE(at::equal(together[1], model->generate(starts({7, 8, 6}), 6, options)[0]));
  padded.mask = at::zeros({2, 4}, at::kBool);
  EXPECT_THROW(model->generate(padded, 1), UsageError);
}

TEST(Autoregressive, RowsEndWithTheirEndToken) {
  AutoregressiveOptions options;
  options.pad_token = 8;
  Autoregressive model = small(false, options);
  DecodingOptions decoding;
  decoding.seed = 1;
  const at::Tensor free = model->generate(starts({1, 2}, 2), 12, decoding);
  decoding.end_token = free[0][3].item<int64_t>();
  const at::Tensor ended = model->generate(starts({1, 2}, 2), 12, decoding);
  for (int64_t row = 0; row < 2; ++row) {
    bool over = false;
    for (int64_t i = 0; i < ended.size(1); ++i) {
      const int64_t token = ended[row][i].item<int64_t>();
      EXPECT_EQ(token, over ? 8 : free[row][i].item<int64_t>()) << row << " " << i;
      over = over || token == decoding.end_token;
    }
    EXPECT_TRUE(over || row == 1);
  }
}

TEST(Autoregressive, CompatibleRowsGoOnUntilAllEndAtOnce) {
  Autoregressive model = small(true);
  DecodingOptions options;
  options.filter_threshold = 0;  // keep all
  force_token(model, 4);
  options.end_token = 4;
  EXPECT_EQ(model->generate(starts({1, 2}, 2), 12, options).sizes(), (at::IntArrayRef{2, 1}));
}

TEST(Autoregressive, CompatibleRowsGoOnAfterTheirOwnEnd) {
  Autoregressive model = small(true);
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

TEST(Autoregressive, CompatiblePenaltySeesRowsOfTheBatch) {
  Autoregressive model = small(true);
  const at::Tensor logits = at::tensor({2.0f, -2.0f, 1.0f}).unsqueeze(0);
  const at::Tensor penalised =
      pytorch_sampling::penalize_repetition(logits, at::tensor({1, 2}, at::kLong), 2);
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
  for (const bool compatible : {false, true}) {
    Autoregressive model = small(compatible, {}, 3);
    DecodingOptions options;
    options.temperature = compatible ? 1 : 0;
    options.filter_threshold = 0.88;
    const at::Tensor a = model->generate(starts({1, 2, 3, 4}), 5, options);
    EXPECT_TRUE(at::equal(a, model->generate(starts({8, 7, 2, 3, 4}), 5, options)));
  }
}

TEST(Autoregressive, GenerationRestoresTheMode) {
  Autoregressive model = small(false);
  model->train();
  const at::Tensor tokens = model->generate(starts({1, 2}), 2);
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
}  // namespace performer::autoregressive_test
