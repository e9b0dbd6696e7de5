// SPDX-License-Identifier: Apache-2.0
// darkformer-pytorch's attention against its kernel in double without any shift.
#include "performer/references/darkformer/attention.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "performer/base/error.h"

namespace performer::references::darkformer {
namespace {

using at::Tensor;

Tensor normal(at::IntArrayRef sizes, int64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(static_cast<uint64_t>(seed)), at::kDouble);
}

struct Inputs {
  Tensor q = normal({2, 7, 3, 4}, 1), k = normal({2, 7, 3, 4}, 2), v = normal({2, 7, 3, 6}, 3);
  Tensor key_mask = at::tensor({0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1}).to(at::kBool).view({2, 7});
  Tensor query_mask = at::tensor({1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0}).to(at::kBool).view({2, 7});
  FeatureMap map{draw_projection(10, 2, 4, 0, 0).to(at::kDouble), normal({3, 2, 4}, 5), normal({3, 10}, 6)};
};

// phi = exp(W M x' - |M x'|^2/2 + log weight) + epsilon, nothing shifted.
Tensor features(const Tensor& x, const FeatureMap& map, double epsilon) {
  const Tensor y = at::einsum("bthd,hrd->bthr", {x / std::sqrt(2.0), map.geometry});
  return at::exp(at::matmul(y, map.projection.t()) - y.square().sum(-1, true) / 2 + map.log_weights) +
         epsilon;
}

Tensor expected_output(const Inputs& in, bool causal, double epsilon, bool masks) {
  Tensor weights =
      at::einsum("bihm,bjhm->bhij", {features(in.q, in.map, epsilon), features(in.k, in.map, epsilon)});
  if (causal) weights = weights.tril();
  if (masks) weights = weights * in.key_mask.unsqueeze(1).unsqueeze(1);
  const Tensor sums = weights.sum(-1, true);
  weights = at::where(sums > 0, weights / sums, at::zeros_like(weights));
  Tensor out = at::einsum("bhij,bjhe->bihe", {weights, in.v});
  if (masks) out = out * in.query_mask.unsqueeze(-1).unsqueeze(-1);
  return out;
}

TEST(Darkformer, ShiftsCancel) {
  const Inputs in;
  for (const bool causal : {false, true}) {
    for (const double epsilon : {0.0, 0.05}) {
      for (const bool masks : {false, true}) {
        for (const int64_t chunk : {1, 3, 256}) {
          AttentionOptions options{.epsilon = epsilon, .causal = causal, .chunk = chunk};
          if (masks) options.key_mask = in.key_mask, options.query_mask = in.query_mask;
          EXPECT_TRUE(attention(in.q, in.k, in.v, in.map, options)
                          .allclose(expected_output(in, causal, epsilon, masks), 1e-9, 1e-11))
              << causal << " " << epsilon << " " << masks << " " << chunk;
        }
      }
    }
  }
}

TEST(Darkformer, FutureKeysDoNotReachThePast) {
  const Inputs in;
  Tensor later = in.k.clone();
  later.select(1, 6).mul_(6);
  for (const double epsilon : {0.0, 0.05}) {
    const auto first = [&](const Tensor& k) {
      return attention(in.q, k, in.v, in.map, {.epsilon = epsilon, .causal = true}).narrow(1, 0, 6);
    };
    EXPECT_TRUE(first(in.k).allclose(first(later), 1e-11, 1e-13));
  }
}

TEST(Darkformer, StateContinuesASequence) {
  const Inputs in;
  const AttentionOptions options{.epsilon = 0.05, .causal = true};
  const Tensor expected = attention(in.q, in.k, in.v, in.map, options);
  State state;
  std::vector<Tensor> parts;
  for (int64_t token = 0; token < 7; ++token) {
    const auto cut = [&](const Tensor& x) { return x.narrow(1, token, 1); };
    parts.push_back(attention(cut(in.q), cut(in.k), cut(in.v), in.map, options, &state));
  }
  EXPECT_TRUE(at::cat(parts, 1).allclose(expected, 1e-10, 1e-12));
  EXPECT_THROW(attention(in.q, in.k, in.v, in.map, {}, &state), UsageError);
}

TEST(Darkformer, LargeInputsStayFiniteInFloat) {
  const Inputs in;
  FeatureMap map = in.map;
  map.projection = map.projection.to(at::kFloat);
  for (const bool causal : {false, true}) {
    const Tensor q = (in.q * 40).to(at::kFloat).set_requires_grad(true);
    const Tensor out = attention(q, (in.k * 40).to(at::kFloat), in.v.to(at::kFloat), map,
                                 {.causal = causal, .key_mask = in.key_mask});
    out.sum().backward();
    EXPECT_TRUE(out.isfinite().all().item<bool>());
    EXPECT_TRUE(q.grad().isfinite().all().item<bool>());
  }
}

TEST(Darkformer, RowsWithoutKeysAreZeroWithZeroGradient) {
  const Inputs in;
  for (const bool causal : {false, true}) {
    const Tensor q = in.q.clone().set_requires_grad(true), k = in.k.clone().set_requires_grad(true);
    const Tensor out =
        attention(q, k, in.v, in.map, {.causal = causal, .key_mask = at::zeros({2, 7}, at::kBool)});
    out.sum().backward();
    EXPECT_TRUE(out.eq(0).all().item<bool>());
    EXPECT_TRUE(q.grad().eq(0).all().item<bool>());
    EXPECT_TRUE(k.grad().eq(0).all().item<bool>());
  }
}

TEST(Darkformer, GeometryHasTheGradientOfTheKernel) {
  const Inputs in;
  FeatureMap map = in.map;
  map.geometry = map.geometry.clone().set_requires_grad(true);
  const Tensor ct = normal({2, 7, 3, 6}, 9), direction = normal({3, 2, 4}, 10);
  (attention(in.q, in.k, in.v, map, {.causal = true}) * ct).sum().backward();
  const auto value = [&](double by) {
    FeatureMap moved = in.map;
    moved.geometry = moved.geometry + by * direction;
    return (attention(in.q, in.k, in.v, moved, {.causal = true}) * ct).sum().item<double>();
  };
  const double expected = (value(1e-6) - value(-1e-6)) / 2e-6;
  EXPECT_NEAR((map.geometry.grad() * direction).sum().item<double>(), expected,
              1e-5 * std::max(1.0, std::abs(expected)));
}

// The weights of the proposal are half the log ratio of two Gaussian densities at its rows.
TEST(Darkformer, ProposalIsWeightedByItsDensity) {
  const Tensor base = normal({10, 3}, 1), root = normal({2, 3, 3}, 2) / 6;
  const Tensor covariance = at::matmul(root, root.transpose(-1, -2));
  const FeatureMap map = variance_optimal_proposal(base, covariance);
  const Tensor identity = at::eye(3, at::kDouble);
  const Tensor proposal = at::matmul(identity + 2 * covariance, at::linalg_inv(identity - 2 * covariance));
  const Tensor quadratic =
      at::einsum("hmr,hrs,hms->hm", {map.projection, at::linalg_inv(proposal), map.projection});
  const Tensor log_ratio =
      at::linalg_det(proposal).log().unsqueeze(-1) / 2 + quadratic / 2 - map.projection.square().sum(-1) / 2;
  EXPECT_TRUE(map.log_weights.allclose(log_ratio / 2, 1e-9, 1e-11));
  EXPECT_TRUE(
      quadratic.allclose(base.square().sum(-1).expand({2, 10}), 1e-9, 1e-11));  // rows are N(0, proposal)
  EXPECT_THAT(
      [&] {
        variance_optimal_proposal(base, identity.expand({2, 3, 3}) / 2);
      },
      ::testing::ThrowsMessage<UsageError>(::testing::HasSubstr("below 1/2")));
}

TEST(Darkformer, WhiteningGivesInputsTheCovarianceAskedFor) {
  const Tensor root = normal({2, 4, 4}, 3);
  const Tensor covariance = at::matmul(root, root.transpose(-1, -2));
  const Tensor geometry = whitening_geometry(covariance, 0);
  const Tensor whitened = at::matmul(at::matmul(geometry, covariance), geometry.transpose(-1, -2));
  EXPECT_TRUE(whitened.allclose(at::eye(4, at::kDouble).expand({2, 4, 4}) / 2, 1e-8, 1e-8));  // (4^(-1/4))^2
  const Tensor shrunk = whitening_geometry(covariance, 0.5, 1, 3.0);
  const Tensor mean = covariance.diagonal(0, -2, -1).mean(-1);
  EXPECT_TRUE(shrunk[1].allclose(at::eye(4, at::kDouble) * 3 / (1.5 * mean[1]).sqrt(), 1e-9, 1e-9));
  EXPECT_THROW(whitening_geometry(at::zeros({1, 4, 4}, at::kDouble), 0), UsageError);
  EXPECT_THROW(whitening_geometry(covariance, -1), UsageError);
}

TEST(Darkformer, DefaultsAndErrors) {
  EXPECT_EQ(default_features(64), 266);
  EXPECT_EQ(default_features(1), 1);
  const Inputs in;
  EXPECT_THROW(attention(in.q, in.k.narrow(1, 0, 5), in.v.narrow(1, 0, 5), in.map, {.causal = true}),
               UsageError);
  EXPECT_THROW(attention(in.q, in.k, in.v, in.map, {.key_mask = in.key_mask.to(at::kFloat)}), UsageError);
  EXPECT_THROW(attention(in.q, in.k, in.v, {}, {}), UsageError);
  EXPECT_THROW(attention(in.q, in.k, in.v, {in.map.projection, normal({2, 2, 4}, 1), {}}, {}), UsageError);
}

}  // namespace
}  // namespace performer::references::darkformer
