// SPDX-License-Identifier: Apache-2.0
// What local-attention 1.11.2 does otherwise than nn::local_attention, one by one.
#include "performer/references/performer_pytorch/local_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <vector>

#include "tests/references/differences.h"

namespace performer::references::performer_pytorch {
namespace {

struct Sequence {
  at::Tensor query, key, value;  // [B, T, H, D or E], float64
};

Sequence random_sequence(int64_t tokens, int64_t batch = 2, int64_t heads = 2, int64_t size = 6) {
  at::manual_seed(tokens);
  const auto normal = [&](int64_t last) { return at::randn({batch, tokens, heads, last}, at::kDouble); };
  return {normal(size), normal(size), normal(4)};
}

at::Tensor attend(const Sequence& x, const nn::LocalAttentionOptions& options,
                  const std::optional<at::Tensor>& mask = {}) {
  return performer_pytorch::local_attention(x.query, x.key, x.value, mask,
                                            nn::local_rotary_rates(x.query.size(3)), options);
}

// Channel i of x turned with channel i + D / 2 by position * 10000^(-2i / D).
at::Tensor turned(const at::Tensor& x) {
  const int64_t half = x.size(3) / 2;
  at::Tensor y = at::empty_like(x);
  for (int64_t t = 0; t < x.size(1); ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(t) * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
      const at::Tensor first = x.select(1, t).select(-1, i), second = x.select(1, t).select(-1, i + half);
      y.select(1, t).select(-1, i).copy_(first * std::cos(angle) - second * std::sin(angle));
      y.select(1, t).select(-1, i + half).copy_(first * std::sin(angle) + second * std::cos(angle));
    }
  }
  return y;
}

TEST(LocalAttention, AgreesWithOursWhenCausalWithoutMask) {
  for (const int64_t tokens : {1, 4, 7, 13}) {
    const Sequence x = random_sequence(tokens);
    nn::LocalAttentionOptions options;
    options.window = 4;
    options.causal = true;
    const at::Tensor ours =
        nn::local_attention(x.query, x.key, x.value, {}, nn::local_rotary_rates(6), options);
    EXPECT_LT(gap(attend(x, options), ours), 1e-6) << tokens;
  }
}

TEST(LocalAttention, WindowWithoutKeysAveragesFillAndFuture) {
  const Sequence x = random_sequence(6, 1, 1);
  nn::LocalAttentionOptions options;
  options.window = 3;
  options.causal = true;
  const at::Tensor none = at::zeros({1, 6}, at::kBool);
  const at::Tensor y = attend(x, options, none);
  // Group of the first window: three times -1, then its own tokens; of the second: all six tokens.
  const at::Tensor first = (x.value[0].narrow(0, 0, 3).sum(0) - 3) / 6, second = x.value[0].mean(0);
  for (int64_t t = 0; t < 6; ++t) EXPECT_LT(gap(y[0][t], t < 3 ? first : second), 1e-14) << t;
}

TEST(LocalAttention, PaddingKeysTakePartUnlessMaskedOrCausal) {
  const Sequence x = random_sequence(2, 1, 1);
  nn::LocalAttentionOptions options;
  options.window = 4;
  const Sequence flat = {at::zeros_like(x.query), x.key, x.value};  // all scores 0
  const at::Tensor sum = x.value[0].sum(0), y = attend(flat, options);
  for (int64_t t = 0; t < 2; ++t) EXPECT_LT(gap(y[0][t], sum / 4), 1e-14);
  const at::Tensor masked = attend(flat, options, at::ones({1, 2}, at::kBool));
  for (int64_t t = 0; t < 2; ++t) EXPECT_LT(gap(masked[0][t], sum / 2), 1e-14);
}

// Both directions: queries are turned as if they stood one window later.
TEST(LocalAttention, QueriesAreTurnedLate) {
  const Sequence x = random_sequence(3, 1, 1);
  nn::LocalAttentionOptions options;
  options.window = 3;
  const at::Tensor zeros = at::zeros({1, 3, 1, 6}, at::kDouble);
  const Sequence late = {turned(at::cat({zeros, x.query}, 1)).narrow(1, 3, 3), turned(x.key), x.value};
  const at::Tensor scores = at::einsum("bihd,bjhd->bhij", {late.query, late.key}) / std::sqrt(6.0);
  const at::Tensor expected = at::einsum("bhij,bjhe->bihe", {scores.softmax(-1), late.value});
  EXPECT_LT(gap(attend(x, options), expected), 1e-6);
}

TEST(LocalAttention, GradientsAreThoseOfTheFunction) {
  for (const bool causal : {false, true}) {
    const Sequence start = random_sequence(11, 1);
    nn::LocalAttentionOptions options;
    options.window = 3;
    options.causal = causal;
    at::Tensor mask = at::ones({1, 11}, at::kBool);
    mask.narrow(1, 3, 6).fill_(false);  // some windows have no key at all
    const at::Tensor weights = at::randn(start.value.sizes(), at::kDouble);
    const auto loss = [&](const Sequence& x) { return (attend(x, options, mask) * weights).sum(); };
    Sequence x = {start.query.clone().requires_grad_(true), start.key.clone().requires_grad_(true),
                  start.value.clone().requires_grad_(true)};
    const auto gradients = torch::autograd::grad({loss(x)}, {x.query, x.key, x.value});
    const Sequence way = random_sequence(11, 1);  // any direction; other numbers than the start
    const std::vector<at::Tensor> at_start = {start.query, start.key, start.value};
    const std::vector<at::Tensor> direction = {way.key.sin(), way.query.cos(), way.value.sin()};
    for (size_t i = 0; i < 3; ++i) {
      const auto moved = [&](double step) {
        std::vector<at::Tensor> all = at_start;
        all[i] = all[i] + direction[i] * step;
        return loss({all[0], all[1], all[2]}).item<double>();
      };
      const double expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
      EXPECT_NEAR((gradients[i] * direction[i]).sum().item<double>(), expected, 1e-7)
          << i << " causal " << causal;
    }
  }
}

}  // namespace
}  // namespace performer::references::performer_pytorch
