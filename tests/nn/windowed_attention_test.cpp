// SPDX-License-Identifier: Apache-2.0
// The kind favor-windowed against plain loops over queries and keys, and what windows must forget and keep.
// What every kind promises (streaming equals one pass, the past does not see the future, packed equals alone,
// gradients) is in kinds_test.cpp.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <string>
#include <vector>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "performer/nn/attention/window_sums.h"
#include "tests/errors.h"

namespace performer::nn {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kHeads = 2, kHeadSize = 4;

struct Setting {
  std::string map = "softmax";
  int64_t chunk = 1, window = 0;
  double decay = 1;
};

void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.map << ", chunks of " << setting.chunk << ", window " << setting.window << ", decay "
       << setting.decay;
}

AttentionConfig config_of(const Setting& setting) {
  AttentionConfig config;
  config.kind = "favor-windowed";
  config.set("map", setting.map).set("features", 10);
  config.set("chunk", setting.chunk).set("window", setting.window).set("decay", setting.decay);
  return config;
}

std::shared_ptr<Attention> make_windowed(const Setting& setting, at::ScalarType type = at::kDouble) {
  auto attention = make_attention(config_of(setting), {kHeads, kHeadSize, true, 0});
  attention->to(type);
  attention->eval();
  return attention;
}

ops::AttentionInputs random_inputs(int64_t batch, int64_t tokens, double deviation = 1) {
  ops::AttentionInputs inputs;
  const auto draw = [&] { return at::randn({batch, tokens, kHeads, kHeadSize}, at::kDouble); };
  inputs.query = draw() * deviation;
  inputs.key = draw() * deviation;
  inputs.value = draw();
  inputs.causal = true;
  return inputs;
}

// Features [B, T, H, M] of queries or keys.
at::Tensor features(const Attention& attention, const Setting& setting, const at::Tensor& x, bool query) {
  ops::FeatureMapOptions map;
  map.map = setting.map == "softmax" ? "favor+" : setting.map;
  map.features = 10;
  ops::MapWeights weights;
  if (setting.map == "softmax") weights.projection = attention.named_buffers()["projection"].to(at::kFloat);
  const ops::LogFeatures found = ops::log_features(x, query, map, weights);
  return found.log_magnitude.exp() * found.sign;
}

// The definition: every pair of a query and a key that it sees.
at::Tensor by_loops(const Attention& attention, const Setting& setting, const ops::AttentionInputs& in) {
  const at::Tensor q = features(attention, setting, in.query, true),
                   k = features(attention, setting, in.key, false);
  at::Tensor out = at::zeros_like(in.value);
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t i = 0; i < q.size(1); ++i) {
        if (in.query_mask && !(*in.query_mask)[b][i].item<bool>()) continue;
        double total = 0;
        at::Tensor sum = at::zeros({kHeadSize}, at::kDouble);
        for (int64_t j = 0; j <= i; ++j) {
          const int64_t distance = i / setting.chunk - j / setting.chunk;
          if (setting.window > 0 && distance >= setting.window) continue;
          if (in.key_mask && !(*in.key_mask)[b][j].item<bool>()) continue;
          const double weight = at::dot(q[b][i][h], k[b][j][h]).item<double>() *
                                std::pow(setting.decay, static_cast<double>(distance));
          total += weight;
          sum += weight * in.value[b][j][h];
        }
        if (total > 0) out[b][i][h].copy_(sum / total);
      }
    }
  }
  return out;
}

class WindowedAttention : public ::testing::TestWithParam<Setting> {
 protected:
  void SetUp() override { torch::manual_seed(4); }
};

TEST_P(WindowedAttention, FollowsTheDefinition) {
  const auto attention = make_windowed(GetParam());
  const at::NoGradGuard no_grad;
  for (const int64_t tokens : {1, 5, 14}) {
    ops::AttentionInputs in = random_inputs(2, tokens);
    EXPECT_TRUE(attention->forward(in).allclose(by_loops(*attention, GetParam(), in), 1e-6, 1e-8)) << tokens;
    in.key_mask = at::rand({2, tokens}) < 0.7;
    in.query_mask = at::rand({2, tokens}) < 0.7;
    EXPECT_TRUE(attention->forward(in).allclose(by_loops(*attention, GetParam(), in), 1e-6, 1e-8))
        << tokens << " with masks";
  }
}

const Setting kSettings[] = {{"softmax", 1, 0, 1},   {"softmax", 1, 3, 1},   {"softmax", 3, 1, 1},
                             {"softmax", 3, 2, 1},   {"softmax", 2, 5, 0.6}, {"softmax", 4, 0, 0.7},
                             {"softmax", 20, 2, 1},  {"relu", 3, 2, 1},      {"relu", 1, 0, 0.8},
                             {"elu+1", 2, 3, 0.5},   {"elu+1", 3, 0, 1},     {"softmax", 2, 3, 0},
                             {"softmax", 1, 40, 0.9}};
INSTANTIATE_TEST_SUITE_P(Settings, WindowedAttention, ::testing::ValuesIn(kSettings));

TEST(WindowedAttentionKind, ForgetsWhatLeftTheWindow) {
  torch::manual_seed(5);
  const auto attention = make_windowed({"softmax", 3, 2, 1});
  const at::NoGradGuard no_grad;
  ops::AttentionInputs in = random_inputs(1, 12);
  const at::Tensor before = attention->forward(in);
  in.key = in.key.clone();
  in.value = in.value.clone();
  in.key.narrow(1, 0, 3).mul_(30);  // the first chunk, which tokens from the third chunk on do not see
  in.value.narrow(1, 0, 3).fill_(1e8);
  const at::Tensor after = attention->forward(in);
  EXPECT_TRUE(at::equal(before.narrow(1, 6, 6), after.narrow(1, 6, 6)));
  EXPECT_FALSE(before.select(1, 5).allclose(after.select(1, 5), 0.1, 0.1));
}

// A key that alone is seen keeps all the weight, however far it fades.
TEST(WindowedAttentionKind, DecayDoesNotUnderflow) {
  torch::manual_seed(6);
  const auto attention = make_windowed({"softmax", 1, 0, 0.5}, at::kFloat);
  const at::NoGradGuard no_grad;
  ops::AttentionInputs in = random_inputs(1, 3000);
  for (at::Tensor* x : {&in.query, &in.key, &in.value}) *x = x->to(at::kFloat);
  in.key_mask = at::zeros({1, 3000}, at::kBool);
  (*in.key_mask)[0][0] = true;
  const at::Tensor out = attention->forward(in);
  EXPECT_TRUE(out.allclose(in.value.narrow(1, 0, 1).expand_as(out), 1e-4, 1e-5));
}

TEST(WindowedAttentionKind, IsFiniteForLargeInputs) {
  torch::manual_seed(7);
  for (const Setting& setting : kSettings) {
    const auto attention = make_windowed(setting);
    ops::AttentionInputs in = random_inputs(1, 13, 100);
    in.query.set_requires_grad(true);
    in.key.set_requires_grad(true);
    const at::Tensor out = attention->forward(in);
    out.sum().backward();
    EXPECT_TRUE(out.isfinite().all().item<bool>()) << ::testing::PrintToString(setting);
    EXPECT_TRUE(in.query.grad().isfinite().all().item<bool>()) << ::testing::PrintToString(setting);
    EXPECT_TRUE(in.key.grad().isfinite().all().item<bool>()) << ::testing::PrintToString(setting);
  }
}

TEST(WindowedAttentionKind, StatesStayFew) {
  ops::FeatureMapOptions options;
  options.map = "relu";
  const ops::PreparedMap map = ops::prepare_feature_map(options, {}, {}, kHeads, kHeadSize);
  const at::NoGradGuard no_grad;
  const at::Tensor token = at::ones({1, kHeads, kHeadSize});
  for (const int64_t window : {0, 1, 2, 5}) {
    WindowState state;
    for (int i = 0; i < 40; ++i) windowed_step(token, token, token, map, {2, window, 0.9}, state);
    EXPECT_EQ(std::ssize(state.earlier), window > 1 ? window - 1 : 0) << window;
    EXPECT_EQ(state.own.defined(), window > 1) << window;
  }
}

TEST(WindowedAttentionKind, RefusesImpossibleOptions) {
  const auto message = [](Setting setting) {
    return test::error_of<UsageError>([&] {
      make_attention(config_of(setting), {kHeads, kHeadSize, true, 0});
    });
  };
  EXPECT_THAT(message({"softmax", 0, 0, 1}), HasSubstr("attention.chunk must be between 1"));
  EXPECT_THAT(message({"softmax", 1, -1, 1}), HasSubstr("attention.window must be between 0"));
  EXPECT_THAT(message({"softmax", 1, 0, 1.5}), HasSubstr("attention.decay must be from 0 to 1, not 1.5"));
  EXPECT_THAT(message({"tanh", 1, 0, 1}), HasSubstr("attention.map"));
  AttentionConfig config = config_of({});
  config.set("projection", "none");
  EXPECT_THAT(test::error_of<UsageError>([&] {
                make_attention(config, {kHeads, kHeadSize, true, 0});
              }),
              HasSubstr("attention.kind = favor-windowed"));
  EXPECT_THAT(test::error_of<UsageError>([] {
                make_attention(config_of({}), {kHeads, kHeadSize, false, 0});
              }),
              HasSubstr("has no bidirectional form"));
}

}  // namespace
}  // namespace performer::nn
