// SPDX-License-Identifier: Apache-2.0
#include "performer/train/adam.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "performer/base/error.h"

namespace performer::train {
namespace {

at::Tensor random_tensor(at::IntArrayRef shape, uint64_t seed, at::ScalarType type = at::kFloat) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::TensorOptions(type));
}

NamedParameter parameter(const std::string& name, const at::Tensor& value, bool decays = true) {
  return {name, value.clone().requires_grad_(true), decays};
}

// The update of the header, written with whole tensors in double.
struct PlainAdam {
  AdamOptions options;
  double weight_decay;
  at::Tensor p, m, v;
  int t = 0;
  void step(const at::Tensor& g, double rate) {
    ++t;
    m = options.beta1 * m + (1 - options.beta1) * g;
    v = options.beta2 * v + (1 - options.beta2) * g * g;
    const at::Tensor mean = m / (1 - std::pow(options.beta1, t)),
                     square = v / (1 - std::pow(options.beta2, t));
    p = p - rate * mean / (square.sqrt() + options.epsilon) - rate * weight_decay * p;
  }
};

void compare_with_plain(at::ScalarType type, double tolerance) {
  const AdamOptions options;
  // 67 elements: more than a vector of any width and no multiple of one.
  auto decaying = parameter("w", random_tensor({67}, 1, type)),
       exempt = parameter("b", random_tensor({5, 3}, 2, type), false);
  PlainAdam plain_w{options, 0.1, decaying.value.detach().to(at::kDouble).clone(),
                    at::zeros({67}, at::kDouble), at::zeros({67}, at::kDouble)};
  PlainAdam plain_b{options, 0.0, exempt.value.detach().to(at::kDouble).clone(),
                    at::zeros({5, 3}, at::kDouble), at::zeros({5, 3}, at::kDouble)};
  Adam adam({decaying, exempt}, options);
  for (int step = 0; step < 20; ++step) {
    const at::Tensor gw = random_tensor({67}, 10 + step, type), gb = random_tensor({5, 3}, 50 + step, type);
    decaying.value.mutable_grad() = gw.clone();
    exempt.value.mutable_grad() = gb.clone();
    const double rate = 1e-2 / (1 + step);
    adam.step(rate);
    plain_w.step(gw.to(at::kDouble), rate);
    plain_b.step(gb.to(at::kDouble), rate);
  }
  EXPECT_LT((decaying.value.to(at::kDouble) - plain_w.p).abs().max().item<double>(), tolerance);
  EXPECT_LT((exempt.value.to(at::kDouble) - plain_b.p).abs().max().item<double>(), tolerance);
}

TEST(Adam, IsThePlainFormula) {
  compare_with_plain(at::kDouble, 1e-12);
  compare_with_plain(at::kFloat, 2e-6);
}

TEST(Adam, FirstStepByHand) {
  // The first step moves by rate * sign(g), and by rate * decay * p towards zero.
  auto w = parameter("w", at::tensor({2.0, -4.0}, at::kDouble));
  Adam adam({w}, {.weight_decay = 0.5});
  w.value.mutable_grad() = at::tensor({3.0, -1e-3}, at::kDouble);
  adam.step(0.1);
  EXPECT_NEAR(w.value[0].item<double>(), 2 - 0.1 - 0.1 * 0.5 * 2, 1e-9);
  EXPECT_NEAR(w.value[1].item<double>(), -4 + 0.1 + 0.1 * 0.5 * 4, 1e-6);
}

TEST(Adam, ParametersWithoutGradientStay) {
  auto used = parameter("used", at::ones({3})), idle = parameter("idle", at::ones({3}));
  Adam adam({used, idle}, {});
  used.value.mutable_grad() = at::ones({3});
  adam.step(0.1);
  EXPECT_TRUE(at::equal(idle.value, at::ones({3})));
  EXPECT_FALSE(at::equal(used.value, at::ones({3})));
  adam.zero_gradients();
  EXPECT_TRUE(adam.gradients().empty());
}

TEST(Adam, StateContinuesBitExactly) {
  auto a = parameter("w", random_tensor({33}, 1)), b = parameter("w", random_tensor({33}, 1));
  Adam whole({a}, {}), first({b}, {});
  const auto step = [](Adam& adam, NamedParameter& p, int i) {
    p.value.mutable_grad() = random_tensor({33}, 100 + static_cast<uint64_t>(i));
    adam.step(1e-2);
  };
  for (int i = 0; i < 6; ++i) step(whole, a, i);
  for (int i = 0; i < 3; ++i) step(first, b, i);
  Adam second({b}, {});
  second.set_state(first.state(), "test");
  for (int i = 3; i < 6; ++i) step(second, b, i);
  EXPECT_TRUE(at::equal(a.value, b.value));
}

TEST(Adam, StateOfAnotherModelIsRefused) {
  Adam adam({parameter("w", at::zeros({3}))}, {});
  const auto refusal = [&](const Adam& other) -> std::string {
    try {
      adam.set_state(other.state(), "file");
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(refusal(Adam({parameter("x", at::zeros({3}))}, {})),
              ::testing::HasSubstr("file: the optimizer state 'w.m' is missing"));
  EXPECT_THAT(refusal(Adam({parameter("w", at::zeros({4}))}, {})),
              ::testing::HasSubstr("has shape 4, expected 3"));
  EXPECT_THAT(refusal(Adam({parameter("w", at::zeros({3})), parameter("x", at::zeros({3}))}, {})),
              ::testing::HasSubstr("5 entries, expected 3"));
}

TEST(GlobalNorm, IsRobust) {
  EXPECT_NEAR(global_norm({at::full({2}, 3.0f), at::full({2}, 4.0f)}), std::sqrt(50), 1e-6);
  EXPECT_NEAR(global_norm({at::full({4}, 1e30f)}), 2e30, 1e24) << "squares overflow in float32";
  EXPECT_NEAR(global_norm({at::full({4}, 1e-30f)}), 2e-30, 1e-36) << "squares vanish in float32";
  EXPECT_EQ(global_norm({}), 0);
  EXPECT_TRUE(std::isnan(global_norm({at::ones({2}), at::full({1}, std::nanf(""))})));
  EXPECT_TRUE(std::isinf(global_norm({at::full({1}, std::numeric_limits<float>::infinity())})));
}

TEST(ClippingScale, ActsOnlyFromTheLimitOn) {
  EXPECT_EQ(clipping_scale(5, 6), 1);
  EXPECT_EQ(clipping_scale(5, 0), 1) << "0: no clipping";
  EXPECT_DOUBLE_EQ(clipping_scale(5, 1), 0.2);
  EXPECT_EQ(clipping_scale(std::numeric_limits<double>::infinity(), 1), 1) << "nothing would be left";
}

TEST(Adam, ScalesGradientsInTheSamePass) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const double tolerance = type == at::kDouble ? 1e-14 : 1e-6;
    auto a = parameter("w", random_tensor({37, 3}, 1, type)),
         b = parameter("w", random_tensor({37, 3}, 1, type));
    Adam scaled({a}, {}), plain({b}, {});
    for (int step = 0; step < 3; ++step) {
      const at::Tensor gradient = random_tensor({37, 3}, 10 + static_cast<uint64_t>(step), type);
      a.value.mutable_grad() = gradient.clone();
      b.value.mutable_grad() = gradient * 0.3;
      scaled.step(1e-2, 0.3);
      plain.step(1e-2);
      EXPECT_TRUE(at::allclose(a.value.grad(), b.value.grad(), tolerance, tolerance));
    }
    EXPECT_TRUE(at::allclose(a.value, b.value, 10 * tolerance, 10 * tolerance));
  }
}

TEST(Adam, ParametersHaveRatesOfTheirOwn) {
  const at::Tensor start = random_tensor({5, 3}, 1), gradient = random_tensor({5, 3}, 2);
  NamedParameter fast = parameter("fast", start), slow = parameter("slow", start, false),
                 alone = parameter("a", start);
  slow.rate = 0.25;
  Adam both({fast, slow}, {}), one({alone}, {.weight_decay = 0});
  fast.value.mutable_grad() = gradient.clone();
  slow.value.mutable_grad() = gradient.clone();
  alone.value.mutable_grad() = gradient.clone();
  both.step(1e-2);
  one.step(0.25e-2);
  EXPECT_TRUE(at::allclose(slow.value, alone.value, 1e-6, 1e-7));
  EXPECT_GT((fast.value - start).abs().mean().item<double>(),
            3 * (slow.value - start).abs().mean().item<double>());
}

}  // namespace
}  // namespace performer::train
