// SPDX-License-Identifier: Apache-2.0
// What google-research's TensorFlow version does differently from its JAX version.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "performer/base/error.h"
#include "performer/references/tensorflow/attention.h"

namespace performer::references::tensorflow {
namespace {

using at::Tensor;

Tensor normal(at::IntArrayRef sizes, int64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(static_cast<uint64_t>(seed)), at::kDouble);
}

TEST(TensorflowGivens, EqualIndicesScaleTheRow) {
  const Tensor uniforms = at::tensor({0.25, 0.75}, at::kDouble);
  const Tensor once =
      givens_product(3, {uniforms.narrow(0, 0, 1), at::tensor({2, 0}, at::kLong).view({1, 2})});
  const double c = std::sqrt(0.5);
  EXPECT_TRUE(
      once.allclose(at::tensor({c, 0.0, c, 0.0, 1.0, 0.0, -c, 0.0, c}, at::kDouble).view({3, 3}), 0, 1e-15));
  const Tensor twice = givens_product(3, {uniforms, at::tensor({2, 0, 1, 1}, at::kLong).view({2, 2})});
  Tensor expected = once.clone();
  expected[1] *=
      std::cos(0.75 * std::numbers::pi) - std::sin(0.75 * std::numbers::pi);  // -1.41: longer than it was
  EXPECT_TRUE(twice.allclose(expected, 0, 1e-14));
  EXPECT_THROW(givens_product(2, {uniforms.narrow(0, 0, 1), at::tensor({2, 0}, at::kLong).view({1, 2})}),
               UsageError);
  EXPECT_THROW(givens_product(3, {uniforms, at::tensor({2, 0}, at::kLong).view({1, 2})}), UsageError);
}

TEST(TensorflowGivens, BlocksOfAProjectionAreOneMatrix) {
  const GivensDraw draw = draw_givens(8, {.seed = 1});
  EXPECT_EQ(draw.uniforms.size(0), 24);  // 8 ceil(ln 8)
  EXPECT_TRUE(draw.pairs.ge(0).logical_and(draw.pairs.lt(8)).all().item<bool>());
  const Tensor w = draw_projection({.rows = 20, .columns = 8, .scaling = 1, .givens = true}, {.seed = 1});
  EXPECT_TRUE(w.narrow(0, 0, 8).equal(w.narrow(0, 8, 8)));
  EXPECT_TRUE(w.narrow(0, 16, 4).equal(w.narrow(0, 0, 4)));
  EXPECT_TRUE(
      w.narrow(0, 0, 8).to(at::kDouble).allclose(givens_product(8, draw) * std::sqrt(8.0), 1e-5, 1e-6));
  const Tensor chi = draw_projection({.rows = 20, .columns = 8, .givens = true}, {.seed = 1});
  EXPECT_FALSE(chi.narrow(0, 0, 8).allclose(chi.narrow(0, 8, 8), 1e-3));
  EXPECT_FALSE(chi.equal(draw_projection({.rows = 20, .columns = 8, .givens = true}, {.seed = 2})));
  EXPECT_TRUE(draw_projection({.rows = 20, .columns = 8}, {.seed = 1})
                  .equal(references::jax::draw_projection({.rows = 20, .columns = 8}, {.seed = 1})));
  EXPECT_THROW(draw_projection({.rows = 20, .columns = 8, .scaling = 3, .givens = true}, {}), UsageError);
}

TEST(TensorflowSeed, IsOfTheAbsoluteSum) {
  EXPECT_EQ(redraw_seed(at::tensor({0.125F, -0.25F})), 12500000);
  EXPECT_EQ(redraw_seed(at::tensor({0.125F})), 12500000);
  EXPECT_EQ(redraw_seed(at::tensor({-30.0F})), std::numeric_limits<int32_t>::max());
}

TEST(TensorflowFeatures, ReluHasTheRatioInside) {
  const Tensor x = normal({1, 4, 2, 8}, 1), w = normal({12, 8}, 2);
  const Tensor expected = (at::matmul(x, w.t()) / std::sqrt(12.0)).clamp_min(0) + 0.5;
  EXPECT_TRUE(relu_features(x, w, 0.5).allclose(expected, 1e-12, 1e-14));
  EXPECT_THROW(softmax_features(x, true, {}), UsageError);
  EXPECT_THROW(softmax_features(x[0], true, w), UsageError);
}

TEST(TensorflowAttention, CausalWalksOverTheQueries) {
  const Tensor q = normal({1, 3, 2, 8}, 1), k = normal({1, 5, 2, 8}, 2), v = normal({1, 5, 2, 4}, 3);
  const FavorOptions options{.kernel = "relu", .causal = true};
  const Tensor out = favor_attention(q, k, v, {}, options).output;
  EXPECT_TRUE(out.equal(favor_attention(q, k.narrow(1, 0, 3), v.narrow(1, 0, 3), {}, options).output));
  // One query against a cache: the first key's value.
  const Tensor step = favor_attention(q.narrow(1, 0, 1), k, v, {}, options).output;
  EXPECT_TRUE(step.allclose(v.narrow(1, 0, 1), 1e-12, 1e-14));
  EXPECT_THAT([&] { favor_attention(q, k.narrow(1, 0, 2), v.narrow(1, 0, 2), {}, options); },
              ::testing::ThrowsMessage<UsageError>(::testing::HasSubstr("found 2 and 3")));
  EXPECT_THROW(favor_attention(q, k, v, {}, {.kernel = "elu"}), UsageError);
}

TEST(TensorflowAttention, DenominatorHasNoGuard) {
  const Tensor q = normal({1, 3, 2, 8}, 1), v = normal({1, 3, 2, 4}, 3);
  const auto [out, denominator] = favor_attention(q, -q.abs(), v, {}, {.kernel = "relu", .epsilon = 0.0});
  EXPECT_TRUE(denominator.eq(0).all().item<bool>());
  EXPECT_TRUE(out.isnan().all().item<bool>());
}

}  // namespace
}  // namespace performer::references::tensorflow
