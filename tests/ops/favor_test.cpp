// SPDX-License-Identifier: Apache-2.0
#include "performer/ops/favor.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>

#include "performer/ops/projection.h"

namespace performer::ops {
namespace {

using at::Tensor;

struct Inputs {
  Tensor query, key, value;
};

Inputs random_inputs(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t d, int64_t e,
                     double deviation = 1, at::ScalarType type = at::kFloat) {
  at::manual_seed(batch + 10 * queries + 100 * keys);
  const auto options = at::TensorOptions(type);
  return {at::randn({batch, queries, heads, d}, options) * deviation,
          at::randn({batch, keys, heads, d}, options) * deviation,
          at::randn({batch, keys, heads, e}, options)};
}

FeatureMap softmax_map(int64_t heads, int64_t d, int64_t features) {
  FeatureMap map;
  map.scale = std::pow(static_cast<double>(d), -0.25);
  map.projection = draw_projection("orthogonal", "chi", heads, features, d, 1, 2, 3);
  return map;
}

FeatureMap relu_map() {
  FeatureMap map;
  map.family = "relu";
  map.epsilon = 1e-3;
  return map;
}

Tensor attend(const Inputs& in, const FeatureMap& map, bool causal, std::optional<Tensor> cu = {}) {
  AttentionInputs call{in.query, in.key, in.value};
  call.causal = causal;
  call.cu_query = std::move(cu);
  return std::get<0>(favor_attention(call, map));
}

double gap(const Tensor& a, const Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

TEST(FavorAttention, Float32AgreesWithFloat64) {
  for (const auto& map : {softmax_map(3, 16, 48), relu_map()}) {
    for (const bool causal : {false, true}) {
      const Inputs in = random_inputs(2, 70, 70, 3, 16, 24);
      const Inputs twice{in.query.to(at::kDouble), in.key.to(at::kDouble), in.value.to(at::kDouble)};
      const Tensor out = attend(in, map, causal), exact = attend(twice, map, causal);
      EXPECT_EQ(out.scalar_type(), at::kFloat);
      EXPECT_EQ(out.sizes(), at::IntArrayRef({2, 70, 3, 24}));
      EXPECT_LT(gap(out, exact), 1e-5);
    }
  }
}

// Numerical gradients in double of every differentiable input, the initial state included.
TEST(FavorAttention, GradcheckInDouble) {
  for (const auto& map : {softmax_map(2, 3, 5), relu_map()}) {
    for (const bool causal : {false, true}) {
      const bool stateful = causal;
      const int64_t features = map.projection.has_value() ? 5 : 3;
      Inputs in = random_inputs(2, 4, 4, 2, 3, 2, 0.8, at::kDouble);
      std::vector<Tensor> leaves{in.query, in.key, in.value, at::randn({2, 2, features, 2}, at::kDouble),
                                 at::rand({2, 2, features}, at::kDouble) + 1};
      const Tensor log_scale = map.family == "exponential" ? at::randn({2, 2, features}, at::kDouble)
                                                           : at::zeros({2, 2, features}, at::kDouble);
      const Tensor weight = at::randn({2, 4, 2, 2}, at::kDouble),
                   state_weight = at::randn({2, 2, features, 2}, at::kDouble);
      const auto loss = [&](const std::vector<Tensor>& x) {
        AttentionInputs call{x[0], x[1], x[2]};
        call.causal = causal;
        if (stateful) call.initial = State{x[3], x[4], log_scale}, call.return_state = true;
        auto [out, final] = favor_attention(call, map);
        Tensor total = (out * weight).sum();
        // The true sums, so that the representation's scale plays no part.
        if (stateful)
          total = total + (final.kv * state_weight * final.log_scale.exp().unsqueeze(-1)).sum() +
                  (final.key_sum * final.log_scale.exp()).sum();
        return total;
      };
      for (Tensor& leaf : leaves) leaf.requires_grad_(true);
      const size_t used = stateful ? 5 : 3;
      const auto gradients = torch::autograd::grad(
          {loss(leaves)}, {leaves.begin(), leaves.begin() + static_cast<int64_t>(used)});
      for (size_t n = 0; n < used; ++n) {
        for (int64_t i = 0; i < leaves[n].numel(); ++i) {
          const auto moved = [&](double step) {
            at::NoGradGuard no_grad;
            std::vector<Tensor> copy = leaves;
            copy[n] = leaves[n].detach().clone();
            copy[n].view(-1)[i] += step;
            return loss(copy).item<double>();
          };
          const double slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
          EXPECT_NEAR(gradients[n].reshape(-1)[i].item<double>(), slope,
                      1e-6 * std::max(1.0, std::abs(slope)))
              << "input " << n << " causal " << causal;
        }
      }
    }
  }
}

TEST(FavorAttention, StridedViewsNeedNoCopy) {
  // [B, H, T, D] storage seen as [B, T, H, D], and a slice of a fused projection.
  const Inputs in = random_inputs(2, 20, 20, 3, 8, 8);
  const Tensor fused = at::cat({in.query.flatten(2), in.key.flatten(2), in.value.flatten(2)}, 2);
  const auto part = [&](int64_t i) { return fused.narrow(2, i * 24, 24).unflatten(2, {3, 8}); };
  const Inputs sliced{part(0), part(1), part(2)};
  const Inputs transposed{in.query.transpose(1, 2).contiguous().transpose(1, 2),
                          in.key.transpose(1, 2).contiguous().transpose(1, 2), in.value};
  const FeatureMap map = softmax_map(3, 8, 16);
  EXPECT_EQ(gap(attend(in, map, true), attend(sliced, map, true)), 0);
  EXPECT_EQ(gap(attend(in, map, true), attend(transposed, map, true)), 0);
}

TEST(FavorAttention, PackedEqualsOneAtATime) {
  const std::vector<int64_t> bounds{0, 3, 3, 40, 41, 90};
  const Tensor cu = at::tensor(bounds, at::kLong);
  for (const auto& map : {softmax_map(2, 8, 16), relu_map()}) {
    for (const bool causal : {false, true}) {
      Inputs in = random_inputs(1, 90, 90, 2, 8, 8);
      for (Tensor* t : {&in.query, &in.key, &in.value}) t->requires_grad_(true);
      const Tensor packed = attend(in, map, causal, cu);
      std::vector<Tensor> parts;
      for (size_t n = 0; n + 1 < bounds.size(); ++n) {
        const auto cut = [&](const Tensor& t) { return t.slice(1, bounds[n], bounds[n + 1]); };
        parts.push_back(attend({cut(in.query), cut(in.key), cut(in.value)}, map, causal));
      }
      const Tensor apart = at::cat(parts, 1);
      EXPECT_LT(gap(packed, apart), 1e-6);
      const Tensor weight = at::randn_like(apart);
      const std::vector<Tensor> inputs{in.query, in.key, in.value};
      const auto g1 = torch::autograd::grad({(packed * weight).sum()}, inputs),
                 g2 = torch::autograd::grad({(apart * weight).sum()}, inputs);
      for (size_t i = 0; i < 3; ++i) EXPECT_LT(gap(g1[i], g2[i]), 1e-5);
    }
  }
}

TEST(FavorAttention, MaskedKeysDoNotExistAndMaskedQueriesAreZero) {
  const Inputs in = random_inputs(1, 12, 12, 2, 8, 8);
  const FeatureMap map = softmax_map(2, 8, 16);
  AttentionInputs call{in.query, in.key, in.value};
  Tensor mask = at::ones({1, 12}, at::kBool);
  mask.slice(1, 9, 12).fill_(false);
  call.key_mask = call.query_mask = mask;
  Inputs huge = in;
  huge.key = in.key.clone();
  huge.key.slice(1, 9, 12).fill_(1e4);  // must not even move a maximum
  call.key = huge.key;
  const Tensor masked = std::get<0>(favor_attention(call, map));
  const auto cut = [](const Tensor& t) { return t.slice(1, 0, 9); };
  EXPECT_LT(gap(masked.slice(1, 0, 9), attend({cut(in.query), cut(in.key), cut(in.value)}, map, false)),
            1e-6);
  EXPECT_EQ(masked.slice(1, 9, 12).abs().max().item<float>(), 0);
}

TEST(FavorAttention, StepsEqualTheFullPass) {
  for (const auto& map : {softmax_map(2, 8, 16), relu_map()}) {
    const Inputs in = random_inputs(3, 20, 20, 2, 8, 6);
    const Tensor full = attend(in, map, true);
    State state = empty_state(3, 2, map.projection.has_value() ? 16 : 8, 6, map.family, in.query.options());
    for (int64_t t = 0; t < 20; ++t) {
      const Tensor out =
          favor_step(in.query.select(1, t), in.key.select(1, t), in.value.select(1, t), state, map);
      EXPECT_LT(gap(out, full.select(1, t)), 2e-5) << t;
    }
  }
}

TEST(FavorAttention, MetaGivesShapesAndTypes) {
  const Inputs in = random_inputs(2, 5, 5, 3, 8, 4);
  const auto meta = [](const Tensor& t) { return t.to(at::kMeta); };
  AttentionInputs call{meta(in.query), meta(in.key), meta(in.value).to(at::kBFloat16)};
  call.causal = call.return_state = true;
  FeatureMap map = softmax_map(3, 8, 16);
  map.projection = meta(*map.projection);
  const auto [out, state] = favor_attention(call, map);
  EXPECT_TRUE(out.is_meta());
  EXPECT_EQ(out.sizes(), at::IntArrayRef({2, 5, 3, 4}));
  EXPECT_EQ(out.scalar_type(), at::kBFloat16);
  EXPECT_EQ(state.kv.sizes(), at::IntArrayRef({2, 3, 16, 4}));
  EXPECT_EQ(state.log_scale.sizes(), at::IntArrayRef({2, 3, 16}));
}

// The approximation itself: the error to exact softmax attention falls like 1/sqrt(features).
TEST(FavorAttention, ConvergesToExactSoftmaxAsFeaturesGrow) {
  const Inputs in = random_inputs(1, 64, 64, 1, 16, 16, 0.5);
  const auto heads_first = [](const Tensor& t) { return t.transpose(1, 2); };
  for (const bool causal : {false, true}) {
    const Tensor exact = at::scaled_dot_product_attention(heads_first(in.query), heads_first(in.key),
                                                          heads_first(in.value), {}, 0.0, causal)
                             .transpose(1, 2);
    std::vector<double> errors;
    for (const int64_t features : {16, 256, 4096}) {
      double error = 0;
      for (int64_t draw = 0; draw < 4; ++draw) {
        FeatureMap map = softmax_map(1, 16, 1);
        map.projection = draw_projection("orthogonal", "chi", 1, features, 16, 9, 0, draw);
        error += (attend(in, map, causal) - exact).pow(2).mean().sqrt().item<double>() / 4;
      }
      errors.push_back(error);
    }
    // Sixteen times the features: a quarter of the error; a factor of 2 leaves room for chance.
    EXPECT_LT(errors[1], errors[0] / 2);
    EXPECT_LT(errors[2], errors[1] / 2);
    EXPECT_LT(errors[2], 0.03);
  }
}

TEST(FavorAttention, EdgeLengths) {
  const FeatureMap map = softmax_map(2, 8, 16);
  EXPECT_EQ(attend(random_inputs(2, 0, 0, 2, 8, 4), map, true).numel(), 0);
  const Inputs none = random_inputs(1, 3, 0, 2, 8, 4);
  EXPECT_EQ(attend(none, map, false).abs().max().item<float>(), 0);
  const Inputs one = random_inputs(1, 1, 1, 2, 8, 4);
  EXPECT_LT(gap(attend(one, map, true), one.value), 1e-6);
}

TEST(FavorAttention, ErrorsNameTheArgument) {
  const Inputs in = random_inputs(2, 5, 5, 3, 8, 4);
  const FeatureMap map = softmax_map(3, 8, 16);
  const auto expect = [](const std::string& got, std::initializer_list<const char*> parts) {
    for (const char* part : parts) EXPECT_THAT(got, ::testing::HasSubstr(part));
  };
  expect(message_of([&] {
           attend({in.query.select(0, 0), in.key, in.value}, map, false);
         }),
         {"query", "[5, 3, 8]"});
  expect(message_of([&] {
           attend({in.query, in.key.narrow(3, 0, 4), in.value}, map, false);
         }),
         {"key must agree", "[2, 5, 3, 4]"});
  expect(message_of([&] {
           attend({in.query, in.key, in.value.narrow(1, 0, 4)}, map, false);
         }),
         {"value must agree", "[2, 4, 3, 4]"});
  expect(message_of([&] {
           attend({in.query.narrow(1, 0, 4), in.key, in.value}, map, true);
         }),
         {"causal", "4 queries and 5 keys"});
  expect(message_of([&] {
           attend({in.query.to(at::kDouble), in.key, in.value}, map, false);
         }),
         {"float64", "Double", "Float"});
  expect(message_of([&] {
           attend({in.query.to(at::kInt), in.key, in.value}, map, false);
         }),
         {"query must be float32", "Int"});
  FeatureMap wrong = map;
  wrong.projection = map.projection->narrow(2, 0, 7);
  expect(message_of([&] { attend(in, wrong, false); }), {"projection rows have 7", "head size is 8"});
  wrong.projection = map.projection->narrow(0, 0, 2);
  expect(message_of([&] { attend(in, wrong, false); }), {"projection has 2 heads", "expected 1 or 3"});
  AttentionInputs call{in.query.narrow(0, 0, 1), in.key.narrow(0, 0, 1), in.value.narrow(0, 0, 1)};
  call.cu_query = at::tensor(std::vector<int64_t>{0, 3}, at::kLong);
  expect(message_of([&] { favor_attention(call, map); }), {"cu_query", "0 to the 5", "to 3"});
  call.cu_query = at::tensor(std::vector<int64_t>{0, 4, 2, 5}, at::kLong);
  expect(message_of([&] { favor_attention(call, map); }), {"cu_query decreases at segment 1"});
  AttentionInputs masked{in.query, in.key, in.value};
  masked.key_mask = at::ones({2, 4}, at::kBool);
  expect(message_of([&] { favor_attention(masked, map); }), {"key_mask", "[2, 5]", "[2, 4]"});
  FeatureMap learned = map;
  learned.projection = map.projection->clone().requires_grad_(true);
  expect(message_of([&] { attend(in, learned, false); }), {"projection", "no gradient"});
}

TEST(FavorAttention, SecondDerivativesAreRefused) {
  Inputs in = random_inputs(1, 4, 4, 1, 4, 4);
  in.query.requires_grad_(true);
  const Tensor loss = attend(in, relu_map(), true).pow(2).sum();
  EXPECT_THAT(message_of([&] { torch::autograd::grad({loss}, {in.query}, {}, true, true); }),
              ::testing::HasSubstr("second derivatives"));
}

TEST(Projection, HeadsAndLayersDiffer) {
  const Tensor p = draw_projection("iid", "chi", 2, 4, 3, 0, 0, 0);
  EXPECT_EQ(p.sizes(), at::IntArrayRef({2, 4, 3}));
  EXPECT_GT(gap(p[0], p[1]), 0.1);
  EXPECT_GT(gap(p, draw_projection("iid", "chi", 2, 4, 3, 0, 1, 0)), 0.1);
  EXPECT_EQ(gap(p, draw_projection("iid", "chi", 2, 4, 3, 0, 0, 0)), 0);
}

}  // namespace
}  // namespace performer::ops
