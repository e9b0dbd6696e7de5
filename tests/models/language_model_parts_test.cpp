// SPDX-License-Identifier: Apache-2.0
// Reversible blocks, token shift, axial positions, local heads and begin_kernel in whole language models, and
// the encoder-decoder.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/utils.h>

#include "performer/base/error.h"
#include "performer/models/encoder_decoder.h"
#include "tests/errors.h"
#include "tests/models/make.h"

namespace performer {
namespace {

using ::testing::HasSubstr;

struct Parts {
  const char* name;
  void (*set)(ModelConfig&, AttentionConfig&);
};

class ModelParts : public ::testing::TestWithParam<Parts> {
 protected:
  static LanguageModel make(const std::string& objective, double dropout = 0) {
    torch::manual_seed(3);
    ModelConfig model = small_model();
    model.objective = objective;
    model.dropout = dropout;
    AttentionConfig attention = small_attention();
    GetParam().set(model, attention);
    LanguageModel made(model, attention, kVocabulary);
    made->to(at::kDouble);
    made->eval();
    return made;
  }
};

TEST_P(ModelParts, StepsEqualTheFullForward) {
  const at::NoGradGuard no_grad;
  LanguageModel model = make("causal");
  const at::Tensor tokens = random_tokens({2, 33});
  const at::Tensor full = model(rows(tokens));
  DecodeState state = model->begin(2);
  for (int64_t t = 0; t < 33; ++t) {
    if (t == 5 || t == 20) state = state.select(at::tensor({0, 1}, at::kLong));
    const at::Tensor logits = model->step(tokens.select(1, t), state);
    ASSERT_TRUE(at::allclose(logits, full.select(1, t), 1e-5, 1e-6)) << "token " << t;
  }
}

TEST_P(ModelParts, PackedEqualsPaddedEqualsOneAtATime) {
  const at::NoGradGuard no_grad;
  for (const char* objective : {"causal", "masked"}) {
    LanguageModel model = make(objective);
    std::vector<at::Tensor> sequences;
    for (const int64_t length : {1, 12, 40, 7}) sequences.push_back(random_tokens({length}));
    const at::Tensor side_by_side = model(packed(sequences)), filled = model(padded(sequences, 3));
    int64_t at = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const int64_t length = sequences[i].size(0);
      const at::Tensor alone = model(rows(sequences[i].unsqueeze(0)))[0];
      EXPECT_TRUE(at::allclose(side_by_side[0].narrow(0, at, length), alone, 1e-5, 1e-6)) << objective << i;
      EXPECT_TRUE(at::allclose(filled[i].narrow(0, 0, length), alone, 1e-5, 1e-6)) << objective << i;
      at += length;
    }
  }
}

TEST_P(ModelParts, APrefixDoesNotSeeWhatFollows) {
  const at::NoGradGuard no_grad;
  LanguageModel model = make("causal");
  const at::Tensor tokens = random_tokens({1, 40});
  const at::Tensor full = model(rows(tokens));
  for (const int64_t length : {1, 16, 17, 39}) {
    EXPECT_TRUE(at::allclose(model(rows(tokens.narrow(1, 0, length))), full.narrow(1, 0, length), 1e-6, 1e-8))
        << length;
  }
}

TEST_P(ModelParts, EveryParameterLearns) {
  LanguageModel model = make("causal");
  const at::Tensor tokens = random_tokens({2, 30});
  torch::nn::functional::cross_entropy(model(rows(tokens)).flatten(0, 1), tokens.flatten()).backward();
  for (const auto& item : model->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_GT(item.value().grad().abs().max().item<double>(), 0) << item.key();
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, ModelParts,
    ::testing::Values(Parts{"reversible", [](auto& m, auto&) { m.reversible = true; }},
                      Parts{"token_shift", [](auto& m, auto&) { m.token_shift = true; }},
                      Parts{"axial", [](auto& m, auto&) { m.positions = "axial", m.max_length = 100; }},
                      Parts{"axial_of_images",
                            [](auto& m, auto&) {
                              m.positions = "axial", m.max_length = 44, m.axial_axes = "5x3";
                            }},
                      Parts{"local_heads", [](auto&, auto& a) { a.local_heads = 1, a.local_window = 8; }},
                      Parts{"begin_kernel", [](auto&, auto& a) { a.begin_kernel = 9; }},
                      Parts{"reformer",
                            [](auto& m, auto& a) {
                              m.reversible = true;
                              a = {.kind = "lsh"};
                              a.set("chunk", 4).set("buckets", 4).set("rounds", 2);
                            }},
                      Parts{"sparse",
                            [](auto&, auto& a) {
                              a = {.kind = "sparse"};
                              a.set("stride", 5);
                            }},
                      Parts{"global",
                            [](auto&, auto& a) {
                              a = {.kind = "global"};
                              a.set("window", 4).set("global_tokens", 2).set("random_blocks", 1);
                            }},
                      Parts{"all_together",
                            [](auto& m, auto& a) {
                              m.reversible = m.token_shift = true;
                              m.positions = "axial", m.max_length = 100;
                              a.local_heads = 1, a.local_window = 8, a.begin_kernel = 9;
                            }}),
    [](const auto& info) { return info.param.name; });

TEST(Reversible, GradientsAreThoseOfOrdinaryAutograd) {
  torch::manual_seed(3);
  ModelConfig config = small_model();
  config.reversible = true;
  config.dropout = 0.2;
  LanguageModel model(config, small_attention(), kVocabulary);
  model->to(at::kDouble);
  model->train();
  const SequenceBatch batch = rows(random_tokens({2, 30}));
  const auto gradients = [&] {
    torch::manual_seed(8);  // the same dropout
    model->zero_grad();
    torch::nn::functional::cross_entropy(model(batch).flatten(0, 1), batch.tokens.flatten()).backward();
    std::map<std::string, at::Tensor> found;
    for (const auto& item : model->named_parameters()) found[item.key()] = item.value().grad().clone();
    return found;
  };
  const auto reconstructed = gradients();
  // The same function, written out: two streams, y1 = x1 + f(x2), y2 = x2 + g(y1).
  std::map<std::string, at::Tensor> plain;
  {
    torch::manual_seed(8);
    model->zero_grad();
    const Representations seen = model->represent(batch);  // one layer at a time
    torch::nn::functional::cross_entropy(seen.logits.flatten(0, 1), batch.tokens.flatten()).backward();
    for (const auto& item : model->named_parameters()) plain[item.key()] = item.value().grad().clone();
  }
  for (const auto& [name, gradient] : plain) {
    EXPECT_TRUE(at::allclose(reconstructed.at(name), gradient, 1e-8, 1e-12)) << name;
  }
}

// Of all parameters in one random direction, against differences.
void expect_derivative(LanguageModel& model, const std::string& what) {
  const SequenceBatch batch = rows(random_tokens({2, 30}));
  const auto loss = [&] {
    return torch::nn::functional::cross_entropy(model(batch).flatten(0, 1), batch.tokens.flatten());
  };
  model->zero_grad();
  loss().backward();
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> way;
  double found = 0;
  for (const at::Tensor& parameter : model->parameters()) {
    way.push_back(at::randn_like(parameter));
    found += (parameter.grad() * way.back()).sum().item<double>();
  }
  const auto move = [&](double distance) {
    for (size_t i = 0; i < way.size(); ++i) model->parameters()[i].add_(way[i], distance);
  };
  const double h = 1e-6;
  move(h);
  const double above = loss().item<double>();
  move(-2 * h);
  const double expected = (above - loss().item<double>()) / (2 * h);
  EXPECT_NEAR(found, expected, 1e-6 * std::max(1.0, std::abs(expected))) << what;
}

// Reversible layers and recomputed ones are told which tensors they read: also those of another layer.
TEST(Reformer, AndLayersThatShareWeightsHaveTheirGradients) {
  torch::manual_seed(9);
  for (const bool reversible : {true, false}) {
    for (const bool recomputed : {false, true}) {
      ModelConfig config = small_model();
      config.layers = 3, config.dropout = 0, config.reversible = reversible;
      AttentionConfig lsh{.kind = "lsh"}, linformer{.kind = "linformer"};
      lsh.set("chunk", 4).set("buckets", 4).set("rounds", 2);
      linformer.set("length", 30).set("rank", 6).set("sharing", "layers");
      for (const AttentionConfig& attention : {lsh, linformer}) {
        config.objective = attention.kind == "lsh" ? "causal" : "masked";
        LanguageModel model(config, attention, kVocabulary);
        model->to(at::kDouble);
        model->set_checkpoint_activations(recomputed);
        int64_t projections = 0;
        for (const auto& item : model->named_parameters())
          projections += item.key().ends_with(".both") ? 1 : 0;
        EXPECT_EQ(projections, attention.kind == "lsh" ? 0 : 1) << "one for the whole model";
        expect_derivative(
            model, attention.kind + (reversible ? ", reversible" : "") + (recomputed ? ", recomputed" : ""));
      }
    }
  }
}

EncoderDecoderConfig pair_config(const std::string& kind) {
  EncoderDecoderConfig config;
  config.encoder = config.decoder = small_model();
  config.encoder_attention = config.decoder_attention = small_attention({kind});
  config.source_vocabulary = 11;
  config.target_vocabulary = kVocabulary;
  return config;
}

class EncoderDecoders : public ::testing::TestWithParam<std::string> {};

TEST_P(EncoderDecoders, StepsEqualTheFullForward) {
  const at::NoGradGuard no_grad;
  torch::manual_seed(6);
  EncoderDecoder model(pair_config(GetParam()));
  model->eval();
  SequenceBatch source = rows(at::randint(0, 11, {2, 14}, at::kLong));
  source.key_mask = at::ones({2, 14}, at::kBool);
  source.key_mask->select(0, 1).narrow(0, 9, 5).fill_(false);
  const at::Tensor tokens = random_tokens({2, 12});
  const at::Tensor full = model(source, rows(tokens));
  DecodeState state = model->begin(source);
  for (int64_t t = 0; t < 12; ++t) {
    if (t == 4) state = state.select(at::tensor({0, 1}, at::kLong));
    EXPECT_TRUE(at::allclose(model->step(tokens.select(1, t), state), full.select(1, t), 1e-4, 1e-4)) << t;
  }
}

TEST_P(EncoderDecoders, ReadTheSourceAndNothingThatIsMasked) {
  const at::NoGradGuard no_grad;
  torch::manual_seed(6);
  EncoderDecoder model(pair_config(GetParam()));
  model->eval();
  const at::Tensor first = at::randint(0, 11, {1, 8}, at::kLong),
                   second = at::randint(0, 11, {1, 5}, at::kLong);
  const at::Tensor one = random_tokens({1, 6}), two = random_tokens({1, 9});
  const at::Tensor alone = model(rows(first), rows(one)), other = model(rows(second), rows(two));
  const at::Tensor together = model(packed({first[0], second[0]}), packed({one[0], two[0]}));
  EXPECT_TRUE(at::allclose(together.narrow(1, 0, 6), alone, 1e-4, 1e-4));
  EXPECT_TRUE(at::allclose(together.narrow(1, 6, 9), other, 1e-4, 1e-4));
  EXPECT_FALSE(at::allclose(model(rows(second), rows(one)), alone, 1e-3, 1e-3)) << "the source has no effect";
  const at::Tensor longer = at::cat({first, at::randint(0, 11, {1, 3}, at::kLong)}, 1);
  SequenceBatch masked = rows(longer);
  masked.key_mask = at::ones({1, 11}, at::kBool);
  masked.key_mask->narrow(1, 8, 3).fill_(false);
  EXPECT_TRUE(at::allclose(model(masked, rows(one)), alone, 1e-4, 1e-4));
}

INSTANTIATE_TEST_SUITE_P(Kinds, EncoderDecoders, ::testing::Values("favor-softmax", "favor-relu", "exact"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(EncoderDecoder, LearnsToCopy) {
  torch::manual_seed(2);
  EncoderDecoderConfig config = pair_config("favor-relu");
  config.source_vocabulary = config.target_vocabulary = 6;
  config.encoder.dropout = config.decoder.dropout = 0;
  EncoderDecoder model(config);
  model->train();
  const auto loss_of = [&](const at::Tensor& tokens) {  // the target is shifted behind token 0
    const at::Tensor inputs = at::cat({at::zeros({tokens.size(0), 1}, at::kLong), tokens.narrow(1, 0, 3)}, 1);
    return torch::nn::functional::cross_entropy(model(rows(tokens), rows(inputs)).flatten(0, 1),
                                                tokens.flatten());
  };
  double last = 0;
  for (int step = 0; step < 150; ++step) {
    const at::Tensor loss = loss_of(at::randint(1, 6, {32, 4}, at::kLong));
    model->zero_grad();
    loss.backward();
    const at::NoGradGuard no_grad;
    for (at::Tensor& parameter : model->parameters()) {
      if (parameter.grad().defined()) parameter.sub_(parameter.grad(), 0.3);
    }
    last = loss.item<double>();
  }
  EXPECT_LT(last, 1.0) << "chance is ln 5 = 1.61";
}

TEST(EncoderDecoder, RefusesPartsThatDoNotFit) {
  EncoderDecoderConfig wide = pair_config("exact");
  wide.encoder.width *= 2;
  EXPECT_THAT(test::error_of<UsageError>([&] { EncoderDecoder model(wide); }), HasSubstr("the same width"));
  EXPECT_THAT(test::error_of<UsageError>([&] { EncoderDecoder model(pair_config("identity")); }),
              HasSubstr("attention.kind = identity has no cross-attention"));
  EncoderDecoder model(pair_config("exact"));
  EXPECT_THAT(test::error_of<UsageError>([&] {
                model->decoder()->forward(rows(random_tokens({1, 3})));
              }),
              HasSubstr("needs a context"));
}

}  // namespace
}  // namespace performer
