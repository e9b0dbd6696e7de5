// SPDX-License-Identifier: Apache-2.0
// performer-pytorch's arithmetic against its formulas in plain loops, and its peculiarities one by one.
#include "performer/references/performer_pytorch/fast_attention.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/ops/composed.h"
#include "tests/references/differences.h"

namespace performer::references::performer_pytorch {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

at::Tensor normal(at::IntArrayRef shape, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble);
}

double at4(const at::Tensor& x, int64_t b, int64_t t, int64_t h, int64_t d) {
  return x[b][t][h][d].item<double>();
}

TEST(PerformerPytorchProjection, RowsAreOrthogonalInBlocksAndAsLongAsTheGaussianRows) {
  const RandomMatrixDraws draws = random_matrix_draws(21, 8, 3, 1, 0);
  const at::Tensor w = gaussian_orthogonal_random_matrix(draws, 21, 8);
  ASSERT_EQ(w.sizes(), at::IntArrayRef({21, 8}));
  EXPECT_LT(gap(w.norm(2, 1), draws.rows.norm(2, 1)), 1e-5);
  for (int64_t block = 0; block < 3; ++block) {
    const at::Tensor rows = w.narrow(0, 8 * block, std::min<int64_t>(8, 21 - 8 * block));
    const at::Tensor unit = rows / rows.norm(2, 1, true);
    EXPECT_LT(gap(at::matmul(unit, unit.t()), at::eye(unit.size(0))), 1e-5) << block;
  }
  const at::Tensor regular = gaussian_orthogonal_random_matrix(draws, 21, 8, 1);
  EXPECT_LT(gap(regular.norm(2, 1), at::full({21}, std::sqrt(8.0))), 1e-5);
}

// LAPACK's QR makes the first entry of Q negative whatever the block; a Haar matrix would have either sign.
TEST(PerformerPytorchProjection, SignsAreLeftAlone) {
  for (int64_t redraw = 0; redraw < 20; ++redraw) {
    const at::Tensor w = gaussian_orthogonal_random_matrix(random_matrix_draws(8, 8, 1, 0, redraw), 8, 8);
    EXPECT_LT(w[0][0].item<float>(), 0) << redraw;
  }
}

TEST(PerformerPytorchProjection, DrawsAreNamed) {
  const at::Tensor one = random_matrix_draws(8, 4, 1, 2, 3).blocks;
  EXPECT_TRUE(at::equal(one, random_matrix_draws(8, 4, 1, 2, 3).blocks));
  EXPECT_FALSE(at::equal(one, random_matrix_draws(8, 4, 0, 2, 3).blocks));
  EXPECT_FALSE(at::equal(one, random_matrix_draws(8, 4, 1, 0, 3).blocks));
  EXPECT_FALSE(at::equal(one, random_matrix_draws(8, 4, 1, 2, 0).blocks));
  const at::Tensor many = random_matrix_draws(300, 64, 1, 2, 3).rows;  // 19200 values
  EXPECT_NEAR(many.mean().item<float>(), 0, 0.03);                     // 4 standard errors
  EXPECT_NEAR(many.square().mean().item<float>(), 1, 0.04);
}

TEST(PerformerPytorchProjection, RefusesWhatTheReferenceRefuses) {
  const RandomMatrixDraws draws = random_matrix_draws(8, 4, 0, 0, 0);
  EXPECT_THAT([&] { gaussian_orthogonal_random_matrix(draws, 8, 4, 2); },
              ThrowsMessage<UsageError>(HasSubstr("found 2")));
  EXPECT_THAT([&] { gaussian_orthogonal_random_matrix(draws, 0, 4); },
              ThrowsMessage<UsageError>(HasSubstr("at least 1 row")));
  EXPECT_THAT([&] { gaussian_orthogonal_random_matrix(draws, 9, 4); },
              ThrowsMessage<c10::ValueError>(HasSubstr("9 orthogonal rows")));
  EXPECT_THAT(
      [&] {
        gaussian_orthogonal_random_matrix({draws.blocks, {}}, 8, 4);
      },
      ThrowsMessage<UsageError>(HasSubstr("8 Gaussian rows")));
  EXPECT_EQ(default_features(1), 0);
  EXPECT_EQ(default_features(64), 266);
}

TEST(PerformerPytorchFeatures, SoftmaxFollowsTheFormula) {
  const at::Tensor x = normal({2, 3, 2, 4}, 1), w = normal({5, 4}, 2);
  for (const bool is_query : {true, false}) {
    const at::Tensor phi = softmax_kernel(x, w, is_query, true, 1e-2);
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t h = 0; h < 2; ++h) {
        std::vector<std::vector<double>> u(3, std::vector<double>(5, 0));
        double largest = -HUGE_VAL;
        for (int64_t t = 0; t < 3; ++t) {
          for (int64_t f = 0; f < 5; ++f) {
            for (int64_t d = 0; d < 4; ++d) {
              u[t][f] += w[f][d].item<double>() * at4(x, b, t, h, d) / std::sqrt(2.0);
            }
            largest = std::max(largest, u[t][f]);
          }
        }
        for (int64_t t = 0; t < 3; ++t) {
          double square = 0;
          for (int64_t d = 0; d < 4; ++d) square += at4(x, b, t, h, d) * at4(x, b, t, h, d) / 2;
          const double shift = is_query ? *std::max_element(u[t].begin(), u[t].end()) : largest;
          for (int64_t f = 0; f < 5; ++f) {
            const double expected = (std::exp(u[t][f] - square / 2 - shift) + 1e-2) / std::sqrt(5.0);
            EXPECT_NEAR(at4(phi, b, t, h, f), expected, 1e-12);
          }
        }
      }
    }
  }
}

// The features hardly depend on a common factor exp(-shift), but their gradient would.
TEST(PerformerPytorchFeatures, NoGradientFlowsThroughTheShift) {
  const at::Tensor x = normal({1, 1, 1, 4}, 3).requires_grad_(true), w = normal({5, 4}, 4);
  const at::Tensor phi = softmax_kernel(x, w, true, false, 0);
  phi.sum().backward();
  const at::Tensor values = phi.detach()[0][0][0];
  const at::Tensor expected = at::matmul(values, w) - x.detach()[0][0][0] * values.sum();
  EXPECT_LT(gap(x.grad()[0][0][0], expected), 1e-12);
}

TEST(PerformerPytorchFeatures, GeneralizedTakesAnyFunction) {
  const at::Tensor x = normal({1, 3, 2, 4}, 5), w = normal({6, 4}, 6);
  for (const std::string& name : ops::activation_names()) {
    const at::Tensor u = at::matmul(x / std::sqrt(2.0), w.t());
    EXPECT_LT(gap(generalized_kernel(x, w, name, 0.5), ops::activation(name, u) + 0.5), 1e-12) << name;
  }
  EXPECT_LT(gap(generalized_kernel(x, std::nullopt, "relu", 1e-3, false), at::relu(x) + 1e-3), 1e-15);
  EXPECT_THAT([&] { generalized_kernel(x, w, "swoosh"); },
              ThrowsMessage<c10::ValueError>(HasSubstr("swoosh")));
}

TEST(PerformerPytorchLinearAttention, CausalEpsilonStandsOnEveryFeatureOfTheKeySum) {
  const at::Tensor q = normal({1, 4, 1, 3}, 7).abs(), k = normal({1, 4, 1, 3}, 8).abs() * 1e-3,
                   v = normal({1, 4, 1, 2}, 9);
  const at::Tensor out = causal_linear_attention(q, k, v, 0.25);
  for (int64_t i = 0; i < 4; ++i) {
    double denominator = 0;
    std::vector<double> numerator(2, 0);
    for (int64_t f = 0; f < 3; ++f) {
      double sum = 0;
      for (int64_t j = 0; j <= i; ++j) {
        sum += at4(k, 0, j, 0, f);
        for (int64_t e = 0; e < 2; ++e) {
          numerator[e] += at4(q, 0, i, 0, f) * at4(k, 0, j, 0, f) * at4(v, 0, j, 0, e);
        }
      }
      denominator += at4(q, 0, i, 0, f) * (sum + 0.25);
    }
    for (int64_t e = 0; e < 2; ++e) EXPECT_NEAR(at4(out, 0, i, 0, e), numerator[e] / denominator, 1e-14);
  }
}

TEST(PerformerPytorchLinearAttention, UnequalLengthsAreCutUpToTheNumberOfChunks) {
  const at::Tensor q = normal({1, 5, 1, 3}, 1).abs(), k = normal({1, 7, 1, 3}, 2).abs(),
                   v = normal({1, 7, 1, 2}, 3);
  const at::Tensor out = causal_linear_attention(q, k, v);
  ASSERT_EQ(out.size(1), 5);
  EXPECT_LT(gap(out, causal_linear_attention(q, k.narrow(1, 0, 5), v.narrow(1, 0, 5))), 1e-15);
  EXPECT_EQ(causal_linear_attention(k, q, v.narrow(1, 0, 5)).size(1), 5);
}

// Six pieces: queries 1, 1, 1, 1, 1, keys 2, 2, 2, 1. Each query meets the keys of its partner one by one.
TEST(PerformerPytorchLinearAttention, LongerUnequalLengthsPairUpPieceByPiece) {
  const at::Tensor q = normal({1, 5, 1, 3}, 1).abs(), k = normal({1, 7, 1, 3}, 2).abs(),
                   v = normal({1, 7, 1, 2}, 3);
  const at::Tensor queries = at::tensor({0, 0, 1, 1, 2, 2, 3}, at::kLong);
  EXPECT_LT(gap(causal_linear_attention(q, k, v, 0.1, 6),
                causal_linear_attention(q.index_select(1, queries), k, v, 0.1)),
            1e-15);
  // Keys 1, 1, 1, 1, 1, queries 2, 2, 2, 1: both queries of a piece see its key.
  const at::Tensor out = causal_linear_attention(k, q, v.narrow(1, 0, 5), 0.1, 6);
  ASSERT_EQ(out.size(1), 7);
  for (int64_t row = 0; row < 7; ++row) {
    const int64_t seen = row / 2 + 1;
    const at::Tensor alone = causal_linear_attention(k.narrow(1, row, 1).expand({-1, seen, -1, -1}),
                                                     q.narrow(1, 0, seen), v.narrow(1, 0, seen), 0.1);
    EXPECT_LT(gap(out.select(1, row), alone.select(1, seen - 1)), 1e-14) << row;
  }
  EXPECT_THAT([&] { causal_linear_attention(q, k, v, 1e-6, 2); },
              ThrowsMessage<UsageError>(HasSubstr("5 queries and 7")));
}

TEST(PerformerPytorchFastAttention, MaximumOfKeysCountsThoseThatAreCutAway) {
  const at::Tensor q = normal({1, 4, 1, 6}, 1), v = normal({1, 6, 1, 2}, 3), w = normal({8, 6}, 4);
  at::Tensor k = normal({1, 6, 1, 6}, 2);
  FastAttentionOptions options;
  options.causal = true;
  const at::Tensor out = fast_attention(q, k, v, w, options);
  k = k.clone();
  k.narrow(1, 5, 1).mul_(8);  // beyond the last query, but it moves the shift and with it epsilon's weight
  EXPECT_GT(gap(fast_attention(q, k, v, w, options), out), 1e-3);
}

// gelu has features of both signs: denominators close to 0 would multiply the rounding of float features.
TEST(PerformerPytorchFastAttention, FloatInputsLoseNothingButTheLastRounding) {
  const at::Tensor q = normal({2, 9, 2, 8}, 1).to(at::kFloat), k = normal({2, 9, 2, 8}, 2).to(at::kFloat),
                   v = normal({2, 9, 2, 3}, 3).to(at::kFloat), w = normal({5, 8}, 4).to(at::kFloat);
  FastAttentionOptions options;
  options.generalized = true;
  options.kernel = "gelu";
  for (const bool causal : {false, true}) {
    options.causal = causal;
    const at::Tensor precise =
        fast_attention(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), w, options);
    const at::Tensor error = (fast_attention(q, k, v, w, options).to(at::kDouble) - precise).abs();
    EXPECT_TRUE(error.le(precise.abs() * 6e-8 + 1e-12).all().item<bool>()) << causal;
  }
  options.kernel = "exp";  // e^100 is no float
  options.causal = false;
  EXPECT_TRUE(fast_attention(q, k * 0 + 200, v, w.abs(), options).isnan().any().item<bool>());
}

TEST(PerformerPytorchFastAttention, WithoutProjectionQueriesAndKeysAreSoftmaxed) {
  const at::Tensor q = normal({1, 3, 2, 4}, 1), k = normal({1, 5, 2, 4}, 2), v = normal({1, 5, 2, 3}, 3);
  FastAttentionOptions options;
  options.no_projection = true;
  const at::Tensor weights = at::einsum("bihf,bjhf->bhij", {q.softmax(-1), k.softmax(1)});
  EXPECT_LT(gap(fast_attention(q, k, v, {}, options), at::einsum("bhij,bjhe->bihe", {weights, v})), 1e-12);
  options = {};
  EXPECT_THAT([&] { fast_attention(q, k, v, {}, options); }, ThrowsMessage<UsageError>(HasSubstr("none")));
}

TEST(PerformerPytorchRotary, TurnsNeighbouringPairs) {
  const at::Tensor x = normal({1, 2, 3, 4}, 1), angles = normal({2, 2}, 2);
  const at::Tensor y = rotate_pairs(x, at::cat({angles.sin(), angles.cos()}, 1).unsqueeze(0));
  for (int64_t t = 0; t < 2; ++t) {
    for (int64_t h = 0; h < 3; ++h) {
      for (int64_t i = 0; i < 2; ++i) {
        const double a = angles[t][i].item<double>(), first = at4(x, 0, t, h, 2 * i),
                     second = at4(x, 0, t, h, 2 * i + 1);
        EXPECT_NEAR(at4(y, 0, t, h, 2 * i), first * std::cos(a) - second * std::sin(a), 1e-14);
        EXPECT_NEAR(at4(y, 0, t, h, 2 * i + 1), first * std::sin(a) + second * std::cos(a), 1e-14);
      }
    }
  }
  EXPECT_THAT([&] { rotate_pairs(x, angles); }, ThrowsMessage<UsageError>(HasSubstr("must be [2, 4]")));
  EXPECT_THAT(
      [&] {
        rotate_pairs(normal({1, 2, 1, 3}, 1), normal({2, 3}, 1));
      },
      ThrowsMessage<UsageError>(HasSubstr("even head size")));
}

}  // namespace
}  // namespace performer::references::performer_pytorch
