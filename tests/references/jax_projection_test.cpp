// SPDX-License-Identifier: Apache-2.0
// Projections of google-research's code: what they are made of, and how they are drawn.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "performer/base/error.h"
#include "performer/references/jax/attention.h"
#include "performer/references/jax/random.h"

namespace performer::references::jax {
namespace {

// Known answers of the Random123 distribution for threefry2x32x20.
TEST(JaxRandom, ThreefryKnownAnswers) {
  EXPECT_EQ(threefry2x32({0, 0}, {0, 0}), (JaxKey{0x6b200159, 0x99ba4efe}));
  EXPECT_EQ(threefry2x32({0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (JaxKey{0x1cb996fc, 0xbb002be7}));
  EXPECT_EQ(threefry2x32({0x13198a2e, 0x03707344}, {0x243f6a88, 0x85a308d3}),
            (JaxKey{0xc4923a9c, 0x483df7a0}));
}

TEST(JaxRandom, NormalIsStandardAndDependsOnKeyAndIndexAlone) {
  // The value that JAX's own documentation prints for random.normal(random.key(42)).
  EXPECT_NEAR(jax_normal(jax_key(42), {}).item<float>(), -0.028304616F, 1e-7);
  const auto [first, second] = jax_split(jax_key(-7));
  EXPECT_NE(first, second);
  const at::Tensor values = jax_normal(first, {200, 100});
  EXPECT_NEAR(values.mean().item<double>(), 0, 0.03);
  EXPECT_NEAR(values.std().item<double>(), 1, 0.03);
  EXPECT_TRUE(values.isfinite().all().item<bool>());
  EXPECT_TRUE(jax_normal(first, {3, 7}).flatten().equal(values.flatten().narrow(0, 0, 21)));
  EXPECT_FALSE(jax_normal(second, {3, 7}).flatten().equal(values.flatten().narrow(0, 0, 21)));
}

// How many elements were added before a large element at 0 and its negative at `other` met: ones that meet a
// large sum on the way are lost.
int64_t added_with_first(at::IntArrayRef sizes, int64_t other) {
  at::Tensor x = at::ones(sizes).flatten();
  x[0] = std::ldexp(1.0F, 40);
  x[other] = -std::ldexp(1.0F, 40);
  return x.numel() - static_cast<int64_t>(jax_sum(x.view(sizes)));
}

// The orders were read off JAX 0.10.2 by the same means.
TEST(JaxRandom, SumAddsInTheReferencesOrder) {
  EXPECT_EQ(jax_sum(at::empty({0})), 0);
  EXPECT_EQ(jax_sum(at::scalar_tensor(2.5F, at::kFloat)), 2.5F);
  EXPECT_EQ(jax_sum(at::arange(2 * 7 * 3 * 40, at::kFloat).view({2, 7, 3, 40})), 1680 * 1679 / 2);
  for (const int64_t other : {1, 9, 100, 167}) EXPECT_EQ(added_with_first({1, 7, 3, 8}, other), other + 1);
  // Two rows of 8: the second is added up by itself.
  EXPECT_EQ(added_with_first({1, 7, 2, 8}, 7), 8);
  EXPECT_EQ(added_with_first({1, 7, 2, 8}, 8), 16);
  EXPECT_EQ(added_with_first({1, 7, 2, 8}, 15), 16);
  EXPECT_EQ(added_with_first({1, 7, 2, 8}, 16), 17);
  // Four rows: 0 with 2, then 1 and 3.
  EXPECT_EQ(added_with_first({1, 3, 4, 4}, 8), 8);
  EXPECT_EQ(added_with_first({1, 3, 4, 4}, 4), 16);
  // Eight rows of 8 in four lanes, of 2 in eight.
  EXPECT_EQ(added_with_first({1, 8, 1, 8}, 32), 9);
  EXPECT_EQ(added_with_first({1, 8, 1, 8}, 16), 32);
  EXPECT_EQ(added_with_first({1, 3, 8, 2}, 8), 4);
  // 37 = 19 + 18 and 100 = 18 + 32 + 32 + 18, padded to windows of 32.
  EXPECT_EQ(added_with_first({37}, 18), 19);
  EXPECT_EQ(added_with_first({37}, 19), 37);
  EXPECT_EQ(added_with_first({100}, 17), 18);
  EXPECT_EQ(added_with_first({100}, 18), 50);
  EXPECT_EQ(added_with_first({100}, 99), 100);
  EXPECT_EQ(added_with_first({1, 40, 3, 8}, 479), 480);
  EXPECT_EQ(added_with_first({1, 40, 3, 8}, 480), 960);
}

TEST(JaxProjection, RowsAreOrthogonalInBlocksWithTheLengthsAskedFor) {
  const DrawName name{.seed = 3, .layer = 1};
  const GaussianDraw draw = draw_gaussians(20, 8, name);
  EXPECT_EQ(draw.blocks.sizes(), (at::IntArrayRef{3, 8, 8}));
  for (const int64_t scaling : {0, 1}) {
    const at::Tensor w = orthogonal_projection(draw, 20, scaling);
    const at::Tensor lengths =
        scaling == 1 ? at::full({20}, std::sqrt(8.0), at::kDouble) : draw.row_norms.norm(2, {1});
    EXPECT_TRUE(w.norm(2, {1}).allclose(lengths, 1e-12, 1e-12));
    const at::Tensor unit = w / w.norm(2, {1}, true);
    for (int64_t begin : {0, 8, 16}) {
      const at::Tensor rows = unit.narrow(0, begin, std::min<int64_t>(8, 20 - begin));
      EXPECT_TRUE(at::matmul(rows, rows.t()).allclose(at::eye(rows.size(0), at::kDouble), 0, 1e-12)) << begin;
    }
  }
}

// LAPACK's reflections map the first column x onto -sign(x_1) |x| e_1, so the first entry of Q is never
// positive and has the mean -0.29 at size 8; of a Haar matrix it is symmetric around 0.
TEST(JaxProjection, SignsAreTheReferencesOwn) {
  double sum = 0;
  constexpr int kDraws = 60;
  for (int64_t i = 0; i < kDraws; ++i) {
    const at::Tensor w = draw_projection({.rows = 8, .columns = 8, .scaling = 1}, {.seed = 5, .redraw = i});
    const double first = w[0][0].item<double>() / std::sqrt(8.0);
    EXPECT_LE(first, 0);
    sum += first;
  }
  EXPECT_NEAR(sum / kDraws, -0.29, 0.1);
}

TEST(JaxProjection, DrawsAreNamed) {
  const ProjectionOptions options{.rows = 12, .columns = 8};
  const auto draw = [&](DrawName name) { return draw_projection(options, name); };
  const DrawName name{.seed = 1, .layer = 2, .head = 3, .redraw = 4};
  EXPECT_TRUE(draw(name).equal(draw(name)));
  EXPECT_EQ(draw(name).scalar_type(), at::kFloat);
  EXPECT_FALSE(draw(name).equal(draw({.seed = 2, .layer = 2, .head = 3, .redraw = 4})));
  EXPECT_FALSE(draw(name).equal(draw({.seed = 1, .layer = 1, .head = 3, .redraw = 4})));
  EXPECT_FALSE(draw(name).equal(draw({.seed = 1, .layer = 2, .head = 2, .redraw = 4})));
  EXPECT_FALSE(draw(name).equal(draw({.seed = 1, .layer = 2, .head = 3, .redraw = 5})));
  const at::Tensor iid = draw_projection({.rows = 400, .columns = 16, .orthogonal = false}, name);
  EXPECT_NEAR(iid.std().item<double>(), 1, 0.03);
  EXPECT_GT(at::matmul(iid[0], iid[1]).abs().item<double>(), 1e-3);  // not orthogonal
}

TEST(JaxProjection, RefusesWhatTheReferenceRefuses) {
  const GaussianDraw draw = draw_gaussians(16, 8, {});
  EXPECT_THROW(orthogonal_projection(draw, 16, 2), UsageError);
  EXPECT_THROW(orthogonal_projection(draw, 17, 1), c10::ValueError);
  EXPECT_THROW(orthogonal_projection({draw.blocks, {}}, 16, 0), UsageError);
  EXPECT_THROW(draw_projection({.rows = 0, .columns = 8}, {}), UsageError);
}

TEST(JaxProjection, SeedSaturates) {
  const auto seed_of_sum = [](double sum) { return redraw_seed(at::tensor({sum / 2, sum / 2}, at::kFloat)); };
  EXPECT_EQ(seed_of_sum(0), 0);
  EXPECT_EQ(seed_of_sum(1e-6), 10);
  EXPECT_EQ(seed_of_sum(0.25 + 1.0 / 1024), 2509766);    // 2509765.625, rounded up
  EXPECT_EQ(seed_of_sum(-0.25 - 1.0 / 1024), -2509765);  // up is towards zero
  EXPECT_EQ(seed_of_sum(215), std::numeric_limits<int32_t>::max());
  EXPECT_EQ(seed_of_sum(1e9), std::numeric_limits<int32_t>::max());
  EXPECT_EQ(seed_of_sum(-215), std::numeric_limits<int32_t>::min());
  EXPECT_EQ(seed_of_sum(std::nan("")), 0);
}

TEST(JaxProjection, RedrawsFollowTheQueries) {
  SoftmaxAttentionOptions options;
  options.head_size = 8;
  options.features = 12;
  const FastAttention attention = make_fast_softmax_attention(options);
  const at::Tensor q = at::full({1, 4, 1, 8}, 0.01);
  EXPECT_EQ(attention.projection_for(q).sizes(), (at::IntArrayRef{12, 8}));
  EXPECT_TRUE(attention.projection_for(q).equal(attention.projection_for(q.clone())));
  EXPECT_FALSE(attention.projection_for(q).equal(attention.projection_for(q * 2)));
  // Every large sum of one sign draws the same matrix.
  EXPECT_TRUE(attention.projection_for(q * 1e4).equal(attention.projection_for(q * 2e4)));
  EXPECT_FALSE(attention.projection_for(q * 1e4).equal(attention.projection_for(q * -1e4)));
  options.redraw = false;
  const FastAttention fixed = make_fast_softmax_attention(options);
  EXPECT_TRUE(fixed.projection_for(q).equal(fixed.projection_for(q * 2)));
  EXPECT_TRUE(fixed.projection_for(q).equal(draw_jax_projection({.rows = 12, .columns = 8}, 0)));
}

}  // namespace
}  // namespace performer::references::jax
