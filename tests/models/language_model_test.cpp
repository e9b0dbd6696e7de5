// SPDX-License-Identifier: Apache-2.0
#include "performer/models/language_model.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/nn/functional/loss.h>
#include <torch/utils.h>

#include "performer/base/error.h"
#include "performer/models/sizes.h"
#include "tests/models/make.h"

namespace performer {
namespace {

class Models : public ::testing::TestWithParam<Variant> {};

TEST_P(Models, StepsEqualTheFullForward) {
  const at::NoGradGuard no_grad;
  LanguageModel model = make_model(GetParam());
  const at::Tensor tokens = random_tokens({3, 37});
  const at::Tensor full = model(rows(tokens));
  DecodeState state = model->begin(3);
  for (int64_t t = 0; t < 37; ++t) {
    const at::Tensor logits = model->step(tokens.select(1, t), state);
    ASSERT_TRUE(at::allclose(logits, full.select(1, t), 1e-4, 1e-4)) << "token " << t;
  }
  EXPECT_TRUE(at::equal(state.positions, at::full({3}, 37, at::kLong)));
}

TEST_P(Models, PackedEqualsPaddedEqualsOneAtATime) {
  const at::NoGradGuard no_grad;
  for (const char* objective : {"causal", "masked"}) {
    LanguageModel model = make_model(GetParam(), objective);
    std::vector<at::Tensor> sequences;
    for (const int64_t length : {1, 12, 40, 7, 64}) sequences.push_back(random_tokens({length}));
    const at::Tensor side_by_side = model(packed(sequences));
    const at::Tensor filled = model(padded(sequences, 27));
    const at::Tensor other_filling = model(padded(sequences, 3));
    int64_t at = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const int64_t length = sequences[i].size(0);
      const at::Tensor alone = model(rows(sequences[i].unsqueeze(0)))[0];
      EXPECT_TRUE(at::allclose(side_by_side[0].narrow(0, at, length), alone, 1e-4, 1e-4)) << objective << i;
      EXPECT_TRUE(at::allclose(filled[i].narrow(0, 0, length), alone, 1e-4, 1e-4)) << objective << i;
      EXPECT_TRUE(at::allclose(other_filling[i].narrow(0, 0, length), alone, 1e-4, 1e-4)) << objective << i;
      at += length;
    }
  }
}

// Attention weights blown up: |q|, |k| of a few hundred and residual streams to match.
void blow_up(LanguageModel& model) {
  const at::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    const bool scores = item.key().find("query.weight") != std::string::npos ||
                        item.key().find("key.weight") != std::string::npos;
    if (scores) item.value().mul_(200);
  }
}

TEST_P(Models, APrefixDoesNotSeeWhatFollows) {
  const at::NoGradGuard no_grad;
  for (const bool hostile : {false, true}) {
    LanguageModel model = make_model(GetParam());
    if (hostile) blow_up(model);
    const at::Tensor tokens = random_tokens({2, 90});
    const at::Tensor full = model(rows(tokens));
    ASSERT_TRUE(full.isfinite().all().item<bool>());
    for (const int64_t length : {1, 31, 64, 65, 89}) {
      const at::Tensor prefix = model(rows(tokens.narrow(1, 0, length)));
      EXPECT_TRUE(at::allclose(prefix, full.narrow(1, 0, length), 1e-3, 1e-3))
          << "length " << length << (hostile ? ", hostile" : "") << " worst "
          << (prefix - full.narrow(1, 0, length)).abs().max().item<float>();
      at::Tensor changed = tokens.clone();
      changed.narrow(1, length, 90 - length).copy_(random_tokens({2, 90 - length}));
      EXPECT_TRUE(
          at::allclose(model(rows(changed)).narrow(1, 0, length), full.narrow(1, 0, length), 1e-3, 1e-3))
          << "length " << length;
    }
  }
}

TEST_P(Models, DropoutActsInTrainingOnly) {
  const at::NoGradGuard no_grad;
  LanguageModel model = make_model(GetParam());
  const SequenceBatch batch = rows(random_tokens({1, 20}));
  EXPECT_TRUE(at::equal(model(batch), model(batch)));
  model->train();
  EXPECT_FALSE(at::equal(model(batch), model(batch)));
}

std::map<std::string, at::Tensor> gradients(LanguageModel& model, const SequenceBatch& batch,
                                            bool checkpointed) {
  at::manual_seed(9);  // the same dropout
  model->zero_grad();
  model->set_checkpoint_activations(checkpointed);
  const at::Tensor logits = model(batch);
  torch::nn::functional::cross_entropy(logits.flatten(0, 1), batch.tokens.flatten()).backward();
  std::map<std::string, at::Tensor> found;
  for (const auto& item : model->named_parameters()) {
    if (item.value().grad().defined()) found[item.key()] = item.value().grad().clone();
  }
  return found;
}

TEST_P(Models, ActivationCheckpointingKeepsGradients) {
  LanguageModel model = make_model(GetParam());
  model->train();  // dropout on
  std::vector<at::Tensor> sequences;
  for (const int64_t length : {12, 30, 9}) sequences.push_back(random_tokens({length}));
  const SequenceBatch batch = packed(sequences);
  const auto plain = gradients(model, batch, false);
  const auto recomputed = gradients(model, batch, true);
  ASSERT_EQ(plain.size(), recomputed.size());
  ASSERT_GT(plain.size(), 20u);
  for (const auto& [name, gradient] : plain) {
    EXPECT_TRUE(at::allclose(recomputed.at(name), gradient, 1e-5, 1e-7)) << name;
  }
}

TEST_P(Models, AutocastForwardAndBackwardAreFinite) {
  LanguageModel model = make_model(GetParam());
  model->train();
  const SequenceBatch batch = rows(random_tokens({2, 33}));
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const at::Tensor logits = model(batch);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_TRUE(logits.isfinite().all().item<bool>());
  logits.to(at::kFloat).square().mean().backward();
  for (const auto& item : model->named_parameters()) {
    if (!item.value().grad().defined()) continue;
    EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
  }
  model->eval();
  const at::Tensor precise = model(batch);
  EXPECT_EQ(precise.scalar_type(), at::kFloat);
}

INSTANTIATE_TEST_SUITE_P(All, Models,
                         ::testing::Values(Variant{"favor-relu"}, Variant{"favor-softmax"}, Variant{"exact"},
                                           Variant{"identity"}, Variant{"favor-relu", "learned", "post"},
                                           Variant{"favor-softmax", "sinusoidal", "pre", true},
                                           Variant{"exact", "none", "post", true}),
                         [](const auto& info) { return variant_name(info.param); });

TEST(LanguageModel, CountsParametersAsProteinLm) {
  ModelConfig model;
  model.layers = 2;
  model.heads = 2;
  model.width = model.ffn = 32;
  model.max_length = 4;
  model.positions = "learned";
  EXPECT_EQ(LanguageModel(model, AttentionConfig{}, 3)->parameter_count(),
            13059);  // check value of the reference
  model.tied_output = true;
  EXPECT_EQ(LanguageModel(model, AttentionConfig{}, 3)->parameter_count(), 13059 - 96);
  model.attention_bias = true;
  EXPECT_EQ(LanguageModel(model, AttentionConfig{}, 3)->parameter_count(), 13059 - 96 + 2 * 4 * 32);
}

TEST(LanguageModel, StartsFromTheWeightsOfProteinLm) {
  ModelConfig config = small_model({"favor-relu", "learned"});
  config.width = 64;
  at::manual_seed(1);
  LanguageModel model(config, AttentionConfig{}, 500);
  const auto weights = model->named_parameters();
  EXPECT_NEAR(weights["embedding.weight"].std().item<double>(), 1, 0.02);
  EXPECT_LT(weights["output.bias"].abs().max().item<double>(), 1e-5);
  EXPECT_GT(weights["output.bias"].abs().max().item<double>(), 0);
  const double bound = std::sqrt(6.0 / (64 + 32));
  const double largest = weights["blocks_0.up.weight"].abs().max().item<double>();
  EXPECT_LE(largest, bound);
  EXPECT_GT(largest, 0.99 * bound);
  EXPECT_NEAR(weights["positions"][3][0].item<double>(), std::sin(3.0), 1e-6);
}

TEST(LanguageModel, StartsNearTheUniformLossWhenTied) {
  LanguageModel model = make_model({"favor-relu", "rotary", "pre", true});
  const SequenceBatch batch = rows(random_tokens({4, 64}));
  const double loss =
      torch::nn::functional::cross_entropy(model(batch).flatten(0, 1), random_tokens({256})).item<double>();
  EXPECT_LT(loss, std::log(29.0) + 1.5);
}

TEST(LanguageModel, RedrawChangesSoftmaxFeaturesReproducibly) {
  const at::NoGradGuard no_grad;
  LanguageModel model = make_model({"favor-softmax"});
  const SequenceBatch batch = rows(random_tokens({1, 30}));
  const at::Tensor first = model(batch);
  model->redraw(7);
  EXPECT_EQ(model->redraw_index(), 7);
  const at::Tensor second = model(batch);
  EXPECT_FALSE(at::allclose(first, second, 1e-3, 1e-3));
  LanguageModel twin = make_model({"favor-softmax"});
  twin->redraw(7);
  EXPECT_TRUE(at::equal(twin(batch), second));
  model->redraw(0);
  EXPECT_TRUE(at::equal(model(batch), first));
}

template <class F>
std::string usage_message(F&& call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(LanguageModel, RefusesWhatItCannotRead) {
  using ::testing::HasSubstr;
  LanguageModel model = make_model({"favor-relu", "learned"});
  EXPECT_NO_THROW(model(rows(random_tokens({1, 200}))));
  EXPECT_THAT(usage_message([&] {
                model(rows(random_tokens({1, 201})));
              }),
              HasSubstr("a sequence of 201 tokens is longer than the learned positions"));
  EXPECT_THAT(usage_message([&] {
                model(rows(at::full({1, 3}, 29, at::kLong)));
              }),
              HasSubstr("token 29 is not in"));
  EXPECT_THAT(usage_message([&] {
                model(rows(at::full({1, 3}, -1, at::kLong)));
              }),
              HasSubstr("token -1 is not in"));
  EXPECT_THAT(usage_message([&] { make_model({"favor-relu"}, "masked")->begin(1); }),
              HasSubstr("one token at a time"));
  SequenceBatch batch = rows(random_tokens({2, 3}));
  batch.positions = at::arange(3);
  EXPECT_THAT(usage_message([&] { model(batch); }), HasSubstr("same shape"));
}

TEST(LanguageModel, RunsOnNoTokens) {
  for (const char* kind : {"favor-relu", "favor-softmax", "exact", "identity"}) {
    LanguageModel model = make_model({kind});
    EXPECT_EQ(model(rows(at::empty({2, 0}, at::kLong))).sizes(), (at::IntArrayRef{2, 0, kVocabulary}))
        << kind;
  }
}

TEST(Presets, ConstructWithTheSizesTheySay) {
  const std::map<std::string, int64_t> counts = {
      {"tiny", 103325}, {"small", 798749}, {"base", 18932765}, {"trembl-36", 76181533}};
  ASSERT_EQ(presets().size(), counts.size());
  for (const Preset& preset : presets()) {
    LanguageModel model(preset.model, preset.attention, kVocabulary);
    EXPECT_EQ(model->parameter_count(), counts.at(preset.name)) << preset.name;
    EXPECT_NO_THROW(validate(preset.data));
  }
  const Preset& paper = preset("trembl-36");
  EXPECT_EQ(paper.model.layers, 36);
  EXPECT_EQ(std::get<int64_t>(paper.attention.options.at("features")), 256);
}

TEST(Presets, TheDeepOneOfThePaperTakesAStep) {
  const Preset& paper = preset("trembl-36");
  torch::manual_seed(1);
  LanguageModel model(paper.model, paper.attention, kVocabulary);
  const at::Tensor tokens = at::randint(0, 20, {2, 8}, at::kLong);
  const auto loss = [&] {
    return at::cross_entropy_loss(model(rows(tokens)).flatten(0, 1), tokens.flatten());
  };
  model->eval();
  const double before = loss().item<double>();
  loss().backward();
  {
    const at::NoGradGuard no_grad;
    for (const at::Tensor& parameter : model->parameters()) parameter.sub_(parameter.grad(), 1e-3);
  }
  EXPECT_LT(loss().item<double>(), before);
}

TEST(Presets, NameTheNearest) {
  EXPECT_THAT(usage_message([] { preset("smal"); }), ::testing::HasSubstr("did you mean 'small'?"));
}

}  // namespace
}  // namespace performer
