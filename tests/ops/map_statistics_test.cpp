// SPDX-License-Identifier: Apache-2.0
// Second moments of queries and keys, and the optimality of what is made of them.
#include "performer/ops/map_statistics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/ops/feature_maps_cases.h"

namespace performer::ops::map_statistics_test {
namespace {

using at::Tensor;
using maps_test::gap;
using maps_test::random_inputs;

FeatureMapOptions named(const char* map, int64_t features = 8) {
  FeatureMapOptions options;
  options.map = map;
  options.features = features;
  return options;
}

// Log of the second moment of one GERF estimate, relative to the kernel: d ln((1 + r)/2) - (d/2) ln r + r phi
// with r = 1/(1 - 8A).
double log_moment(double a, double d, double phi) {
  const double r = 1 / (1 - 8 * a);
  return d * std::log((1 + r) / 2) - d / 2 * std::log(r) + r * phi;
}

TEST(MapStatistics, AreMomentsOfScaledValidTokens) {
  AttentionInputs in = random_inputs(2, 6, 5, 3, 4, 2, 1, at::kDouble);
  in.key_mask = at::ones({2, 5}, at::kBool);
  (*in.key_mask)[1][3] = false;
  (*in.key_mask)[1][4] = false;
  in.key[1][3].fill_(1e9);
  in.key[1][4].fill_(std::nan(""));
  in.query_mask = at::ones({2, 6}, at::kBool);
  (*in.query_mask)[0][0] = false;
  const MapStatistics s = measure_statistics(in, named("oprf"));
  const double scale = std::pow(4.0, -0.25);
  EXPECT_EQ(s.query_mean.sizes(), at::IntArrayRef({2, 3, 4}));
  EXPECT_EQ(s.key_moment.sizes(), at::IntArrayRef({2, 3, 4, 4}));
  for (int64_t h = 0; h < 3; ++h) {
    const Tensor k = in.key[1].slice(0, 0, 3).select(1, h) * scale,
                 q = in.query[0].slice(0, 1, 6).select(1, h) * scale;
    EXPECT_LT(gap(s.key_mean[1][h], k.mean(0)), 1e-14);
    EXPECT_LT(gap(s.key_moment[1][h], at::matmul(k.t(), k) / 3), 1e-14);
    EXPECT_LT(gap(s.query_mean[0][h], q.mean(0)), 1e-14);
    EXPECT_LT(gap(s.query_moment[0][h], at::matmul(q.t(), q) / 5), 1e-14);
  }
  EXPECT_FALSE(
      measure_statistics(random_inputs(1, 3, 3, 1, 2, 1), named("sderf")).query_mean.requires_grad());
}

TEST(MapStatistics, HaveNoGradientAndEmptySequencesAreZero) {
  AttentionInputs in = random_inputs(1, 7, 7, 2, 4, 2);
  in.query.requires_grad_(true);
  in.cu_query = at::tensor(std::vector<int64_t>{0, 4, 4, 7}, at::kLong);
  const MapStatistics s = measure_statistics(in, named("aderf"));
  EXPECT_FALSE(s.query_moment.requires_grad());
  EXPECT_EQ(s.query_moment[1].abs().max().item<float>(), 0);
  AttentionInputs last{in.query.slice(1, 4, 7), in.key.slice(1, 4, 7), in.value.slice(1, 4, 7)};
  EXPECT_LT(gap(s.key_moment[2], measure_statistics(last, named("aderf")).key_moment[0]), 1e-6);
}

TEST(MapStatistics, PoolingWeighsSequences) {
  const AttentionInputs in = random_inputs(3, 5, 5, 2, 4, 2);
  const MapStatistics s = measure_statistics(in, named("oprf"));
  EXPECT_LT(gap(pool_statistics(s).query_moment, s.query_moment.mean(0)), 1e-6);
  const MapStatistics heavy = pool_statistics(s, at::tensor(std::vector<int64_t>{1, 0, 3}, at::kLong));
  EXPECT_LT(gap(heavy.key_mean, s.key_mean[0] / 4 + s.key_mean[2] * 0.75), 1e-6);
  EXPECT_THROW(pool_statistics(heavy), c10::ValueError);
  EXPECT_THROW(pool_statistics(s, at::ones({2})), c10::ValueError);
}

TEST(MapStatistics, AMinimisesTheSecondMoment) {
  for (const double phi : {1e-6, 0.1, 1.0, 4.0, 16.0, 1e4}) {
    for (const double d : {1.0, 8.0, 64.0}) {
      const double a = optimal_a(at::full({}, phi / d, at::kDouble)).item<double>();
      EXPECT_LE(a, 0);
      EXPECT_NEAR(a, maps_test::plain_a(phi, d), 1e-9 * std::max(1.0, std::abs(a)) + 1e-10)
          << phi << " " << d;
      const double best = log_moment(a, d, phi);
      EXPECT_LE(best, phi + 1e-12);  // never worse than FAVOR+, which is A = 0
      for (const double factor : {0.9, 1.1}) EXPECT_LT(best, log_moment(a * factor, d, phi) + 1e-12) << phi;
    }
  }
  // Values of the literature at unit variance, E|x + y|^2 = 2 sqrt(d): d = 8 and 64.
  EXPECT_NEAR(log_moment(maps_test::plain_a(2 * std::sqrt(8.0), 8), 8, 2 * std::sqrt(8.0)), 3.0, 0.1);
  EXPECT_NEAR(log_moment(maps_test::plain_a(16, 64), 64, 16), 11.6, 0.1);
}

MapStatistics skewed() {
  return maps_test::frozen_statistics(2, 5);
}

TEST(DenseExponential, AderfBalancesBothSidesAndIsOptimal) {
  const MapStatistics s = skewed();
  const DenseExponential dense = dense_exponential("aderf", at::randn({2, 6, 5}), s);
  const Tensor a = dense.query_matrix, b = dense.key_matrix;
  EXPECT_LT(gap(at::matmul(a.transpose(-1, -2), b), at::eye(5, at::kDouble).expand({2, 5, 5})), 1e-10);
  const auto turned = [](const Tensor& m, const Tensor& by) {
    return at::matmul(by, at::matmul(m, by.transpose(-1, -2)));
  };
  const Tensor q = turned(s.query_moment, a), k = turned(s.key_moment, b);
  EXPECT_LT(gap(q, k), 1e-2 * k.abs().max().item<double>());  // up to the floor of 1e-4
  EXPECT_LT(gap(q, at::diag_embed(q.diagonal(0, -2, -1))), 1e-2 * q.abs().max().item<double>());
  // No other matrix near it gives a smaller E|S q + S^-T k|^2.
  const auto total = [&](const Tensor& by) {
    const Tensor other = at::linalg_inv(by).transpose(-1, -2);
    return (turned(s.query_moment, by).diagonal(0, -2, -1).sum() +
            turned(s.key_moment, other).diagonal(0, -2, -1).sum())
        .item<double>();
  };
  const double best = total(a), plain = total(at::eye(5, at::kDouble).expand({2, 5, 5}).contiguous());
  EXPECT_LT(best, 0.9 * plain);
  at::manual_seed(1);
  for (int n = 0; n < 20; ++n)
    EXPECT_GT(total(at::matmul(a, at::eye(5, at::kDouble) + 0.1 * at::randn({2, 5, 5}, at::kDouble))), best);
}

TEST(DenseExponential, SaderfBalancesEveryCoordinate) {
  const MapStatistics s = skewed();
  const DenseExponential dense = dense_exponential("saderf", at::randn({2, 6, 5}), s);
  const auto diagonal = [](const Tensor& m) { return m.diagonal(0, -2, -1); };
  EXPECT_LT(gap(dense.query_factor * dense.key_factor, at::ones({2, 5}, at::kDouble)), 1e-12);
  EXPECT_LT(gap(dense.query_factor, (diagonal(s.key_moment) / diagonal(s.query_moment)).pow(0.25)), 1e-3);
  EXPECT_GT(gap(dense.query_factor, at::ones({2, 5})), 0.2);
}

// E log of the second moment over data falls from FAVOR+ to OPRF, and from OPRF to each that is tuned
// further.
TEST(DenseExponential, EveryRefinementLowersTheExpectedLogMoment) {
  const MapStatistics s = skewed();
  const double d = 5;
  const auto trace = [](const Tensor& m) { return m.diagonal(0, -2, -1).sum(-1); };
  const Tensor cross = (s.query_mean * s.key_mean).sum(-1);
  for (int64_t h = 0; h < 2; ++h) {
    const double phi = (trace(s.query_moment) + trace(s.key_moment) + 2 * cross)[h].item<double>();
    const double oprf = log_moment(maps_test::plain_a(phi, d), d, phi);
    EXPECT_LT(oprf, phi);
    const Tensor outer = at::outer(s.query_mean[h], s.key_mean[h]);
    const Tensor values =
        std::get<0>(at::linalg_eigh(s.query_moment[h] + s.key_moment[h] + outer + outer.t()));
    double sderf = 0;
    for (int64_t i = 0; i < 5; ++i) {
      const double value = values[i].item<double>();
      sderf += log_moment(maps_test::plain_a(value, 1), 1, value);
    }
    EXPECT_LT(sderf, oprf);
    const DenseExponential aderf = dense_exponential("aderf", at::ones({2, 1, 5}), s);
    const auto phi_of = [&](const Tensor& q, const Tensor& k) {
      return (trace(at::matmul(q, at::matmul(s.query_moment[h], q.t()))) +
              trace(at::matmul(k, at::matmul(s.key_moment[h], k.t()))) + 2 * cross[h])
          .item<double>();
    };
    const double phi_aderf = phi_of(aderf.query_matrix[h], aderf.key_matrix[h]);
    const DenseExponential saderf = dense_exponential("saderf", at::ones({2, 1, 5}), s);
    const double phi_saderf = phi_of(at::diag(saderf.query_factor[h]), at::diag(saderf.key_factor[h]));
    EXPECT_LT(phi_saderf, phi);
    EXPECT_LT(phi_aderf, phi_saderf);
    // And that is what the features use: their offset is A |w|^2 = 5 A for rows of ones.
    EXPECT_NEAR(aderf.offset[h][0].item<double>(), 5 * maps_test::plain_a(phi_aderf, d), 1e-5);
    EXPECT_NEAR(saderf.offset[h][0].item<double>(), 5 * maps_test::plain_a(phi_saderf, d), 1e-5);
  }
}

TEST(DenseExponential, SurvivesDegenerateMoments) {
  for (const char* map : {"oprf", "sderf", "aderf", "saderf"}) {
    for (const double query : {0.0, 1e-12, 1.0, 1e6}) {
      for (const double key : {0.0, 1.0, 1e6}) {
        // One token: moments of rank one.
        AttentionInputs in{at::full({1, 1, 2, 4}, query), at::full({1, 1, 2, 4}, key),
                           at::ones({1, 1, 2, 1})};
        in.key[0][0][1][2] = -key;
        const DenseExponential dense =
            dense_exponential(map, at::randn({2, 6, 4}), measure_statistics(in, named(map)));
        for (const Tensor& part : {dense.projection, dense.offset, dense.log_constant, dense.query_matrix,
                                   dense.key_matrix, dense.query_factor, dense.key_factor}) {
          if (!part.defined()) continue;
          EXPECT_TRUE(part.isfinite().all().item<bool>()) << map << query << " " << key;
        }
        const auto options = named(map);
        const Tensor out = std::get<0>(mapped_attention(in, options, maps_test::weights_for(options, 2, 4)));
        EXPECT_LT(gap(out, in.value), 1e-5) << map << query << " " << key;
      }
    }
  }
}

}  // namespace
}  // namespace performer::ops::map_statistics_test
