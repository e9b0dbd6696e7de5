// SPDX-License-Identifier: Apache-2.0
// Windowed attention against dense softmax attention under a mask.
#include "performer/nn/local_attention.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <vector>

#include "performer/base/error.h"

namespace performer::nn {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

struct Sequence {
  at::Tensor query, key, value;  // [B, T, H, D or E], float64
};

Sequence random_sequence(int64_t tokens, int64_t batch = 2, int64_t heads = 2, int64_t size = 6) {
  at::manual_seed(tokens);
  const auto normal = [&](int64_t last) { return at::randn({batch, tokens, heads, last}, at::kDouble); };
  return {normal(size), normal(size), normal(4)};
}

at::Tensor attend(const Sequence& x, const LocalAttentionOptions& options,
                  const std::optional<at::Tensor>& mask = {}) {
  return local_attention(x.query, x.key, x.value, mask, local_rotary_rates(x.query.size(3)), options);
}

Sequence part(const Sequence& x, int64_t first, int64_t count) {
  return {x.query.narrow(1, first, count), x.key.narrow(1, first, count), x.value.narrow(1, first, count)};
}

double gap(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return a.numel() == 0 ? 0 : (a - b).abs().max().item<double>();
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

// The whole T x T matrix, entry by entry.
at::Tensor dense(const Sequence& x, const LocalAttentionOptions& options, const at::Tensor& kept) {
  const at::Tensor q = turned(x.query), k = turned(x.key);
  const int64_t tokens = q.size(1);
  const int64_t forward = options.look_forward >= 0 ? options.look_forward : options.causal ? 0 : 1;
  at::Tensor out = at::zeros_like(x.value);
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < q.size(2); ++h) {
      for (int64_t i = 0; i < tokens; ++i) {
        if (!kept[b][i].item<bool>()) continue;
        double sum = 0;
        at::Tensor row = at::zeros({x.value.size(3)}, at::kDouble);
        for (int64_t j = 0; j < tokens; ++j) {
          const int64_t step = j / options.window - i / options.window;
          if (step < -options.look_backward || step > forward || (options.causal && j > i)) continue;
          if (!kept[b][j].item<bool>()) continue;
          const double score = at::dot(q[b][i][h], k[b][j][h]).item<double>();
          const double weight = std::exp(score / std::sqrt(static_cast<double>(q.size(3))));
          sum += weight;
          row += x.value[b][j][h] * weight;
        }
        if (sum > 0) out[b][i][h].copy_(row / sum);
      }
    }
  }
  return out;
}

at::Tensor some_mask(const Sequence& x) {
  at::Tensor mask = at::ones({x.query.size(0), x.query.size(1)}, at::kBool);
  for (int64_t t = 0; t < mask.size(1); ++t) {
    if (t % 3 == 1 || t >= 9) mask[0][t] = false;  // holes, then padding of more than two windows
  }
  return mask;
}

TEST(LocalAttention, FollowsTheDenseFormula) {
  for (const int64_t tokens : {1, 4, 5, 17}) {
    const Sequence x = random_sequence(tokens);
    for (const bool causal : {false, true}) {
      for (const int64_t window : {1, 4, 30}) {
        LocalAttentionOptions options;
        options.window = window;
        options.causal = causal;
        const at::Tensor all = at::ones({2, tokens}, at::kBool), some = some_mask(x);
        EXPECT_LT(gap(attend(x, options), dense(x, options, all)), 1e-6) << tokens << " " << window;
        EXPECT_LT(gap(attend(x, options, some), dense(x, options, some)), 1e-6) << tokens << " " << window;
      }
    }
  }
}

TEST(LocalAttention, LooksAsFarAsTold) {
  const Sequence x = random_sequence(17);
  const at::Tensor all = at::ones({2, 17}, at::kBool);
  for (const auto& [back, forward] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 0}, {2, 0}, {0, 2}, {3, 1}}) {
    LocalAttentionOptions options;
    options.window = 3;
    options.look_backward = back;
    options.look_forward = forward;
    EXPECT_LT(gap(attend(x, options), dense(x, options, all)), 1e-6) << back << " " << forward;
  }
}

TEST(LocalAttention, NoTokensGiveNoRows) {
  const Sequence x = random_sequence(0);
  EXPECT_EQ(attend(x, {}).sizes(), x.value.sizes());
}

TEST(LocalAttention, PrefixDoesNotChangeWhenTheSequenceGoesOn) {
  const Sequence x = random_sequence(22);
  LocalAttentionOptions options;
  options.window = 5;
  options.causal = true;
  const at::Tensor whole = attend(x, options);
  for (const int64_t length : {1, 4, 5, 6, 14, 21}) {
    EXPECT_LT(gap(attend(part(x, 0, length), options), whole.narrow(1, 0, length)), 1e-13) << length;
  }
}

TEST(LocalAttention, MaskedTailIsAsIfTheSequenceEnded) {
  const Sequence x = random_sequence(16);
  at::Tensor mask = at::ones({2, 16}, at::kBool);
  mask.narrow(1, 9, 7).fill_(false);
  LocalAttentionOptions options;
  options.window = 4;
  const at::Tensor y = attend(x, options, mask);
  EXPECT_LT(gap(y.narrow(1, 0, 9), attend(part(x, 0, 9), options)), 1e-13);
  EXPECT_EQ(y.narrow(1, 9, 7).abs().max().item<double>(), 0);
}

TEST(LocalAttention, ScoresDependOnDistanceAlone) {
  const Sequence x = random_sequence(12);
  const at::Tensor shift = at::zeros({2, 4, 2, 6}, at::kDouble);
  const Sequence moved = {at::cat({shift, x.query}, 1), at::cat({shift, x.key}, 1),
                          at::cat({shift.narrow(3, 0, 4), x.value}, 1)};
  at::Tensor mask = at::ones({2, 16}, at::kBool);
  mask.narrow(1, 0, 4).fill_(false);
  LocalAttentionOptions options;
  options.window = 4;
  EXPECT_LT(gap(attend(moved, options, mask).narrow(1, 4, 12), attend(x, options)), 1e-12);
}

TEST(LocalAttention, GradientsAreThoseOfTheFunction) {
  for (const bool causal : {false, true}) {
    const Sequence start = random_sequence(11, 1);
    LocalAttentionOptions options;
    options.window = 3;
    options.causal = causal;
    at::Tensor mask = at::ones({1, 11}, at::kBool);
    mask.narrow(1, 3, 6).fill_(false);
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

TEST(LocalAttention, DropoutThinsTheWeights) {
  const Sequence x = random_sequence(16);
  LocalAttentionOptions options;
  options.window = 4;
  const at::Tensor plain = attend(x, options);
  options.dropout = 0.5;
  at::manual_seed(1);
  const at::Tensor once = attend(x, options);
  EXPECT_GT(gap(once, plain), 0.1);
  at::Tensor mean = at::zeros_like(plain);
  for (int i = 0; i < 100; ++i) mean += attend(x, options) / 100;
  EXPECT_LT((mean - plain).abs().mean().item<double>(), 0.08);  // the noise of 100 draws is 0.03
}

TEST(LocalAttention, RefusesWhatCannotBe) {
  const Sequence x = random_sequence(4);
  LocalAttentionOptions options;
  options.window = 0;
  EXPECT_THAT([&] { attend(x, options); }, ThrowsMessage<UsageError>(HasSubstr("found 0")));
  options = {};
  options.causal = true;
  options.look_forward = 1;
  EXPECT_THAT([&] { attend(x, options); }, ThrowsMessage<UsageError>(HasSubstr("when causal")));
  EXPECT_THAT([&] { attend(x, {}, at::ones({2, 4})); }, ThrowsMessage<UsageError>(HasSubstr("must be bool")));
  EXPECT_THAT(
      [&] {
        attend({x.query, x.key.narrow(1, 0, 3), x.value}, {});
      },
      ThrowsMessage<UsageError>(HasSubstr("as many keys")));
  EXPECT_THAT([&] { local_rotary_rates(5); }, ThrowsMessage<UsageError>(HasSubstr("even")));
}

}  // namespace
}  // namespace performer::nn
