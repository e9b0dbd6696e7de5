// SPDX-License-Identifier: Apache-2.0
// What trigonometric attention adds to the tests of every map: its guard, magnitudes, states and edges.
#include "performer/ops/trigonometric.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/ops/feature_maps_cases.h"

namespace performer::ops::trigonometric_test {
namespace {

using at::Tensor;
using maps_test::gap;
using maps_test::random_inputs;

Tensor frequencies(int64_t heads, int64_t m, int64_t d) {
  FeatureMapOptions options;
  options.map = "trigonometric";
  options.features = 2 * m;
  return draw_map_projection(options, heads, d, 1, 0, 0);
}

Tensor attend(const AttentionInputs& in, const Tensor& projection) {
  return std::get<0>(trigonometric_attention(in, projection, 1));
}

// One frequency, one dimension: the denominator is sum_j w_j cos(q - k_j), by hand.
TEST(Trigonometric, TheFloorActsWhereSignedWeightsCancel) {
  const Tensor one = at::ones({1, 1, 1});
  const auto row = [](std::vector<double> x) { return at::tensor(x, at::kDouble).view({1, -1, 1, 1}); };
  const double pi = 3.14159265358979323846, k = pi / 2;
  // Keys 0 and pi/2 with weights 1 and exp(pi^2/8); query pi/2 + atan(exp(pi^2/8)^-1 ...) where they cancel.
  const double w = std::exp(k * k / 2), zero = std::atan2(-1.0, w);  // cos(z) + w sin(z) = 0
  AttentionInputs in{row({zero, zero + 1e-7, zero - 1e-7, 0.3}), row({0, k}), row({2, 5})};
  const Tensor out = attend(in, one);
  const double floor = kTrigonometricFloor * (1 + w);
  const auto expected = [&](double q) {
    const double a = std::cos(q), b = w * std::cos(q - k), sum = a + b;
    const double safe = std::abs(sum) < floor ? std::copysign(floor, sum) : sum;
    return (2 * a + 5 * b) / safe;
  };
  // At the root itself rounding decides the sign.
  EXPECT_NEAR(std::abs(out[0][0][0][0].item<double>()), std::abs(expected(zero)), 1e-6);
  EXPECT_NEAR(out[0][1][0][0].item<double>(), expected(zero + 1e-7), 1e-5);
  EXPECT_NEAR(out[0][2][0][0].item<double>(), expected(zero - 1e-7), 1e-5);
  EXPECT_LT(out[0][1][0][0].item<double>() * out[0][2][0][0].item<double>(), 0);  // the sign is kept
  EXPECT_NEAR(out[0][3][0][0].item<double>(), expected(0.3), 1e-12);              // elsewhere nothing changes
}

TEST(Trigonometric, OutputsStayWithinTheFloorsBound) {
  for (const bool causal : {false, true}) {
    for (const double deviation : {1.0, 3.0, 1000.0}) {
      AttentionInputs in = random_inputs(2, 130, 130, 2, 16, 4, deviation, at::kFloat, causal);
      const Tensor out = attend(in, frequencies(2, 8, 16));
      EXPECT_TRUE(out.isfinite().all().item<bool>());
      EXPECT_LE(out.abs().max().item<double>(), in.value.abs().max().item<double>() / kTrigonometricFloor);
    }
  }
}

// exp(|k|^2/2) overflows float32 from |k| = 13.3 on; ratios of them must survive.
TEST(Trigonometric, LongKeysNeitherOverflowNorDrownEarlierRows) {
  const Tensor projection = frequencies(1, 64, 4);
  AttentionInputs in = random_inputs(1, 100, 100, 1, 4, 3, 0.3, at::kDouble, true);
  in.key.slice(1, 50, 100).add_(20);  // |k|^2/2 = 800
  const Tensor exact = attend(in, projection);
  AttentionInputs single = in;
  for (Tensor* x : {&single.query, &single.key, &single.value}) *x = x->to(at::kFloat);
  const Tensor out = attend(single, projection);
  EXPECT_TRUE(out.isfinite().all().item<bool>());
  EXPECT_LT(gap(out.slice(1, 0, 50), exact.slice(1, 0, 50)), 1e-4);
  EXPECT_GT(gap(exact.slice(1, 0, 50), at::zeros({1})), 0.1);
}

TEST(Trigonometric, ChunksChangeOnlyRounding) {
  const Tensor projection = frequencies(2, 16, 4);
  AttentionInputs in = random_inputs(2, 70, 70, 2, 4, 3, 0.5, at::kDouble, true);
  const Tensor expected = attend(in, projection);
  for (const int64_t chunk : {1, 7, 64, 256}) {
    in.chunk = chunk;
    EXPECT_LT(gap(attend(in, projection), expected), 1e-11) << chunk;
  }
}

TEST(Trigonometric, RowsThatSeeNothingAreZeroAndHaveNoGradient) {
  const Tensor projection = frequencies(2, 8, 4);
  for (const bool causal : {false, true}) {
    AttentionInputs in = random_inputs(1, 10, 10, 2, 4, 3, 0.5, at::kDouble, causal);
    in.key_mask = at::ones({1, 10}, at::kBool);
    in.key_mask->slice(1, 0, causal ? 4 : 10).fill_(false);
    for (Tensor* x : {&in.query, &in.key, &in.value}) x->requires_grad_(true);
    const Tensor out = attend(in, projection);
    EXPECT_EQ(out.slice(1, 0, causal ? 4 : 10).abs().max().item<double>(), 0);
    for (const Tensor& gradient : torch::autograd::grad({out.sum()}, {in.query, in.key, in.value})) {
      EXPECT_TRUE(gradient.isfinite().all().item<bool>());
      EXPECT_EQ(gradient.slice(1, 0, causal ? 4 : 10).abs().max().item<double>(), 0);
    }
  }
  EXPECT_EQ(attend(random_inputs(2, 0, 0, 2, 4, 3), projection).numel(), 0);
  EXPECT_EQ(attend(random_inputs(1, 3, 0, 2, 4, 3), projection).abs().max().item<float>(), 0);
}

// The kernels of the CPU, in float32, against the composition in float64.
TEST(Trigonometric, KernelsAndCompositionAgree) {
  const Tensor projection = frequencies(2, 48, 8);
  for (const bool causal : {false, true}) {
    for (const bool packed : {false, true}) {
      AttentionInputs in = random_inputs(packed ? 1 : 2, 140, 140, 2, 8, 5, 0.4, at::kDouble, causal);
      in.key_mask = at::rand({in.query.size(0), 140}).gt(0.3);
      in.query_mask = at::rand({in.query.size(0), 140}).gt(0.1);
      if (packed) in.cu_query = at::tensor(std::vector<int64_t>{0, 3, 3, 140}, at::kLong);
      in.return_state = true;
      State before;
      {
        AttentionInputs earlier = random_inputs(packed ? 3 : 2, 9, 9, 2, 8, 5, 0.4, at::kDouble, causal);
        earlier.return_state = true;
        before = std::get<1>(trigonometric_attention(earlier, projection, 1));
      }
      const auto results = [&](at::ScalarType type, const char* backend) {
        AttentionInputs call = in;
        for (Tensor* x : {&call.query, &call.key, &call.value})
          *x = x->to(type).detach().clone().requires_grad_(true);
        call.initial = State{before.kv.to(type).clone().requires_grad_(true),
                             before.key_sum.to(type).clone().requires_grad_(true), before.log_scale.to(type)};
        call.backend = backend;
        const auto [out, state] = trigonometric_attention(call, projection, 1);
        const Tensor loss = (out * at::arange(5, out.options())).sum() +
                            (state.kv * state.log_scale.unsqueeze(-1).exp()).sum() +
                            (state.key_sum * state.log_scale.exp()).sum();
        std::vector<Tensor> all = torch::autograd::grad(
            {loss}, {call.query, call.key, call.value, call.initial->kv, call.initial->key_sum});
        for (const Tensor& x : {out, state.kv, state.key_sum, state.log_scale}) all.push_back(x.detach());
        return all;
      };
      const auto exact = results(at::kDouble, "composed"), reference = results(at::kDouble, "cpu"),
                 kernels = results(at::kFloat, "");
      for (size_t i = 0; i < exact.size(); ++i) {
        const double size = std::max(1.0, exact[i].abs().max().item<double>());
        EXPECT_LT(gap(reference[i], exact[i]), 1e-9 * size) << i << (causal ? " causal" : "");
        EXPECT_LT(gap(kernels[i].to(at::kDouble), exact[i]), 1e-4 * size) << i << (causal ? " causal" : "");
      }
    }
  }
}

TEST(Trigonometric, GradientsReachTheInitialState) {
  const Tensor projection = frequencies(1, 3, 2);
  const AttentionInputs in = random_inputs(1, 5, 5, 1, 2, 2, 0.5, at::kDouble, true);
  AttentionInputs before = random_inputs(1, 4, 4, 1, 2, 2, 0.5, at::kDouble, true);
  before.return_state = true;
  State state = std::get<1>(trigonometric_attention(before, projection, 1));
  const auto loss = [&](const Tensor& kv, const Tensor& key_sum) {
    AttentionInputs call = in;
    call.initial = State{kv, key_sum, state.log_scale};
    return attend(call, projection).square().sum();
  };
  const Tensor kv = state.kv.clone().requires_grad_(true), sum = state.key_sum.clone().requires_grad_(true);
  const auto gradients = torch::autograd::grad({loss(kv, sum)}, {kv, sum});
  at::NoGradGuard no_grad;
  for (int64_t n = 0; n < 2; ++n) {
    const Tensor& leaf = n == 0 ? kv : sum;
    for (int64_t i = 0; i < leaf.numel(); ++i) {
      const auto moved = [&](double step) {
        Tensor copy = leaf.clone();
        copy.view(-1)[i] += step;
        return (n == 0 ? loss(copy, sum) : loss(kv, copy)).item<double>();
      };
      const double slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
      EXPECT_NEAR(gradients[n].view(-1)[i].item<double>(), slope, 1e-6 * std::max(1.0, std::abs(slope)));
    }
  }
}

TEST(Trigonometric, StepsUpdateTheStateInPlace) {
  const Tensor projection = frequencies(2, 4, 4);
  const AttentionInputs in = random_inputs(1, 3, 3, 2, 4, 3, 0.5, at::kFloat, true);
  State state;
  trigonometric_step(in.query.select(1, 0), in.key.select(1, 0), in.value.select(1, 0), state, projection, 1);
  EXPECT_EQ(state.kv.sizes(), at::IntArrayRef({1, 2, 9, 3}));
  const Tensor same = state.kv;
  const Tensor before = same.clone();
  trigonometric_step(in.query.select(1, 1), in.key.select(1, 1), in.value.select(1, 1), state, projection, 1);
  EXPECT_TRUE(same.is_same(state.kv));
  EXPECT_GT(gap(same, before), 0);
}

TEST(Trigonometric, ErrorsNameTheArgument) {
  const Tensor projection = frequencies(2, 4, 4);
  const auto message = [&](AttentionInputs in, const Tensor& w) -> std::string {
    try {
      trigonometric_attention(in, w, 1);
    } catch (const c10::ValueError& error) {
      return error.what_without_backtrace();
    }
    return "no error";
  };
  using ::testing::HasSubstr;
  AttentionInputs in = random_inputs(1, 5, 4, 2, 4, 3);
  EXPECT_EQ(message(in, projection), "no error");
  in.causal = true;
  EXPECT_THAT(message(in, projection), HasSubstr("5 queries and 4 keys"));
  in.causal = false;
  EXPECT_THAT(message(in, projection.narrow(2, 0, 3)), HasSubstr("frequencies, 4"));
  in.key_mask = at::ones({1, 5}, at::kBool);
  EXPECT_THAT(message(in, projection), HasSubstr("key_mask [1, 4]"));
  in.key_mask.reset();
  in.cu_query = at::tensor(std::vector<int64_t>{0, 4}, at::kLong);
  EXPECT_THAT(message(in, projection), HasSubstr("cu_query must rise from 0 to the 5"));
  in.cu_query.reset();
  in.initial = State{at::zeros({1, 2, 8, 3}), at::zeros({1, 2, 8}), at::zeros({1, 2, 8})};
  EXPECT_THAT(message(in, projection), HasSubstr("[1, 2, 9, 3]"));
}

}  // namespace
}  // namespace performer::ops::trigonometric_test
