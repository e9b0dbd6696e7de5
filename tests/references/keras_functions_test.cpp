// SPDX-License-Identifier: Apache-2.0
// KernelAttention's functions where no recording is needed: values worked out by hand, and the calls that the
// reference refuses.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <map>

#include "performer/base/error.h"
#include "performer/references/keras/attention.h"
#include "performer/references/keras/features.h"
#include "performer/references/keras/projection.h"

namespace performer::references::keras {
namespace {

using at::Tensor;

std::vector<double> numbers(const Tensor& x) {
  const Tensor flat = x.to(at::kDouble).flatten().contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

void expect_numbers(const Tensor& x, const std::vector<double>& expected) {
  const std::vector<double> found = numbers(x);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-12) << i;
}

TEST(KerasWindowSums, OfOnes) {
  const Tensor ones = at::ones({1, 5, 1, 1, 1}, at::kDouble);
  expect_numbers(rectangular_window_sum(ones, 3), {1, 2, 3, 3, 3});
  const Tensor weights = at::tensor({0.01, 0.1, 1.0}, at::kDouble);
  expect_numbers(weighted_window_sum(ones, 3, weights), {1, 1.1, 1.11, 1.11, 1.11});
  expect_numbers(rectangular_window_sum(ones, 9), {1, 2, 3, 4, 5});
  expect_numbers(weighted_window_sum(ones, 9, at::ones({9}, at::kDouble)), {1, 2, 3, 4, 5});
}

struct Heads {
  Tensor query, key, value;
};

Heads make_heads(int64_t tokens) {
  torch::manual_seed(3);
  const auto make = [&](int64_t size) { return at::randn({2, tokens, 2, size}, at::kDouble); };
  return {make(4), make(4), make(3)};
}

TEST(KerasAttention, LengthScaleIsOneAt512Keys) {
  const Heads h = make_heads(512);
  AttentionOptions with;
  with.feature_transform = "elu";
  with.scale = 0.5;
  const Tensor mask = at::ones({2, 512}, at::kDouble);
  const Tensor plain = compute_attention(h.query, h.key, h.value, with, std::nullopt, mask);
  with.scale_by_length = true;
  const Tensor scaled = compute_attention(h.query, h.key, h.value, with, std::nullopt, mask);
  EXPECT_TRUE(at::allclose(plain, scaled, 1e-12, 1e-14));
  mask.slice(1, 100).fill_(0);
  const Tensor shorter = compute_attention(h.query, h.key, h.value, with, std::nullopt, mask);
  with.scale_by_length = false;
  with.scale = 0.5 * std::log(100.0) / std::log(512.0);
  EXPECT_TRUE(
      at::allclose(shorter, compute_attention(h.query, h.key, h.value, with, std::nullopt, mask), 1e-12));
}

TEST(KerasAttention, StreamsLikeItsBatchFormWithinTheWindow) {
  const Heads h = make_heads(12);
  for (const char* name : {"relu", "elu", "square", "identity"}) {
    for (const int64_t chunk : {1, 4}) {
      AttentionOptions with;
      with.feature_transform = name;
      with.window = Window{chunk, 12 / chunk, 0.9, "none"};
      const Tensor batch = compute_attention(h.query, h.key, h.value, with, std::nullopt, std::nullopt);
      Cache cache;
      for (int64_t begin = 0; begin < 12; begin += chunk) {
        const auto part = [&](const Tensor& x) { return x.narrow(1, begin, chunk); };
        const Tensor out = compute_attention(part(h.query), part(h.key), part(h.value), with, std::nullopt,
                                             std::nullopt, &cache);
        EXPECT_TRUE(at::allclose(out, part(batch), 1e-9, 1e-9)) << name << " " << begin;
      }
    }
  }
}

TEST(KerasAttention, RefusesWhatTheReferenceRefuses) {
  const Heads h = make_heads(6);
  Cache cache;
  const auto call = [&](const AttentionOptions& with, const std::optional<Tensor>& mask = std::nullopt,
                        Cache* state = nullptr) {
    return compute_attention(h.query, h.key, h.value, with, std::nullopt, mask, state);
  };
  AttentionOptions with;
  EXPECT_NO_THROW(call(with));
  EXPECT_THROW(call(with, at::ones({2, 6}, at::kBool)), UsageError);
  EXPECT_THROW(call(with, at::ones({2, 6}, at::kInt)), UsageError);
  EXPECT_THROW(call(with, at::ones({2, 5}, at::kDouble)), UsageError);
  with.feature_transform = "leakyrelu";
  EXPECT_THROW(call(with), UsageError);
  with = {};
  with.scale_by_length = true;
  EXPECT_THROW(call(with), UsageError);
  with = {};
  with.window = Window{4, 2, std::nullopt, "none"};
  EXPECT_THROW(call(with), UsageError);
  with.window->padding = "both";
  EXPECT_THROW(call(with), UsageError);
  with.window->padding = "right";
  EXPECT_NO_THROW(call(with));
  with.window->window_length = 0;
  EXPECT_THROW(call(with), UsageError);
  with.window->window_length = 2;
  EXPECT_THROW(call(with, std::nullopt, &cache), UsageError);  // no decay
  with.window->decay = 1.5;
  EXPECT_THROW(call(with, std::nullopt, &cache), UsageError);
  EXPECT_NO_THROW(call(with));  // but in batch form
  EXPECT_FALSE(cache.kv.defined());
  with.window->decay = 1;
  EXPECT_NO_THROW(call(with, std::nullopt, &cache));
  with.is_short_seq = true;
  EXPECT_THROW(call(with), UsageError);
}

// Only the numbers of chunks have to agree, and the output has the length of the values.
TEST(KerasAttention, PaddedWindowsTakeQueriesOfAnotherLength) {
  const Heads h = make_heads(7);
  const Window window{4, 2, std::nullopt, "right"};
  const Tensor query = h.query.narrow(1, 0, 5).abs(), key = h.key.abs();
  const Tensor out = causal_windowed_attention(query, key, h.value, window);
  ASSERT_EQ(out.size(1), 7);
  EXPECT_EQ(out.slice(1, 5).abs().max().item<double>(), 0);
  EXPECT_THROW(causal_windowed_attention(query.narrow(1, 0, 4), key, h.value, window), UsageError);
}

TEST(KerasProjection, RedrawsDirectionsOnly) {
  const Tensor first = redrawn_projection(20, 8, 3, 0), second = redrawn_projection(20, 8, 3, 1);
  EXPECT_TRUE(at::equal(first, redrawn_projection(20, 8, 3, 0)));
  EXPECT_GT((first - second).abs().max().item<double>(), 0.5);
  EXPECT_TRUE(at::allclose(first.square().sum(-1).sqrt(), second.square().sum(-1).sqrt(), 1e-5));
  EXPECT_TRUE(at::allclose(first.square().sum(-1).sqrt(), redrawn_norms(20, 8), 1e-5));
  const Tensor unit = first.narrow(0, 0, 8) / redrawn_norms(20, 8).narrow(0, 0, 8).unsqueeze(-1);
  EXPECT_TRUE(at::allclose(at::matmul(unit, unit.t()), at::eye(8), 0, 1e-5));
  EXPECT_THROW(redrawn_projection(0, 8, 3, 0), UsageError);
  EXPECT_THROW(projection_from_seed(4, 0, {0, 1}), UsageError);
}

// Values of TensorFlow. An angle computed in float32 would miss the last ones by 1e-6.
TEST(KerasProjection, NormalsAreThoseOfTheStatelessGenerator) {
  const Tensor normals = stateless_normal(8, 8, {7, 8}).flatten();
  const std::map<int64_t, double> expected = {
      {0, 2.4693768}, {1, -0.514987946}, {2, 1.24089539}, {52, -2.00864482}, {53, 1.65502357}};
  for (const auto& [index, value] : expected) {
    EXPECT_NEAR(normals[index].item<double>(), value, 3e-7) << index;
  }
}

// Gradients of relu are a product with 0 or 1 in the reference: NaN stays NaN where the input is negative.
TEST(KerasTransform, ReluPassesGradientsThatAreNan) {
  const Tensor x = at::tensor({-1.0, 2.0}, at::kDouble).view({1, 1, 1, 2}).requires_grad_(true);
  const Tensor out = transform("relu", x, x, true, std::nullopt);
  EXPECT_TRUE(at::allclose(out, at::tensor({1e-3, 2.001}, at::kDouble)));
  (out.sum() * NAN).backward();
  EXPECT_TRUE(x.grad().isnan().all().item<bool>());
}

// Tokens 0 and 2 are equal but for rounding and hold the maximum, so each has half of its gradient: what
// comes back to the three is exp(u - max) less the halves of the sum.
TEST(KerasTransform, EqualTokensShareTheMaximum) {
  const Tensor x = at::tensor({1.0, 0.5, 1.0 + 1e-15}, at::kDouble).view({1, 3, 1, 1}).requires_grad_(true);
  transform("expmod", x, x, true, std::nullopt).sum().backward();
  const double factor = std::exp(-0.5), low = std::exp(-0.5), sum = 2 + low;
  EXPECT_NEAR(x.grad()[0][0][0][0].item<double>(), factor * (1 - sum / 2), 1e-12);
  EXPECT_NEAR(x.grad()[0][1][0][0].item<double>(), factor * low, 1e-12);
  EXPECT_NEAR(x.grad()[0][2][0][0].item<double>(), factor * (1 - sum / 2), 1e-12);
}

TEST(KerasTransform, NothingIsNoError) {
  const Tensor none = at::zeros({2, 0, 2, 4}, at::kDouble), other = at::ones({2, 3, 2, 4}, at::kDouble);
  const Tensor w = at::ones({5, 4}, at::kDouble);
  for (const std::string& name : transform_names()) {
    EXPECT_EQ(transform(name, none, other, true, w).sizes(), (std::vector<int64_t>{2, 0, 2, 5})) << name;
  }
}

}  // namespace
}  // namespace performer::references::keras
