// SPDX-License-Identifier: Apache-2.0
// Random feature maps as estimators: log_features over thousands of independent draws (the heads of one
// projection), held to the papers' formulas within five standard errors.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "tests/ops/feature_maps_cases.h"

namespace performer::ops::maps_statistics_test {
namespace {

using at::Tensor;

constexpr int64_t kSize = 8;

// Two vectors after scaling, and inputs that become them.
struct Pair {
  Tensor x, y;                 // [D] double
  double kernel, plus, minus;  // exp(x y), |x + y|^2, |x - y|^2
};

Pair pair_of(double sum_square, double tilt = 0.3, int64_t size = kSize) {
  Tensor i = at::arange(size, at::kDouble);
  Tensor x = (i + 1).sin() + 0.2, y = (2.5 * i).cos() + tilt;
  const double factor = std::sqrt(sum_square / (x + y).square().sum().item<double>());
  x = x * factor, y = y * factor;
  return {x, y, x.dot(y).exp().item<double>(), sum_square, (x - y).square().sum().item<double>()};
}

Pair pair_at(Tensor x, Tensor y) {
  return {x, y, x.dot(y).exp().item<double>(), (x + y).square().sum().item<double>(),
          (x - y).square().sum().item<double>()};
}

MapStatistics moments_of_pair(const Pair& pair, int64_t heads) {
  const auto all = [&](const Tensor& t) { return t.expand({heads, -1}); };
  const auto outer = [&](const Tensor& t) { return at::outer(t, t).expand({heads, -1, -1}); };
  return {all(pair.x), all(pair.y), outer(pair.x), outer(pair.y)};
}

// Estimates of the kernel by `draws` independent projections.
Tensor estimates(const FeatureMapOptions& options, const Pair& pair, int64_t draws,
                 const MapWeights& learned = {}, const MapStatistics& statistics = {}) {
  const int64_t size = pair.x.size(0);
  MapWeights weights = learned;
  weights.projection = draw_map_projection(options, draws, size, 41, 0, 0);
  const double scale =
      feature_map_traits(options.map).exponential ? std::pow(static_cast<double>(size), 0.25) : 1.0;
  const auto input = [&](const Tensor& t) {
    return (t * scale).view({1, 1, 1, size}).expand({1, 1, draws, size});
  };
  const LogFeatures q = log_features(input(pair.x), true, options, weights, statistics);
  const LogFeatures k = log_features(input(pair.y), false, options, weights, statistics);
  return ((q.log_magnitude + k.log_magnitude).exp() * q.sign * k.sign).sum(-1).flatten();
}

struct Moment {
  double mean, error;
};
Moment moment(const Tensor& values) {
  return {values.mean().item<double>(),
          values.std().item<double>() / std::sqrt(static_cast<double>(values.numel()))};
}
Moment squared_error(const Tensor& estimates, double kernel) {
  return moment((estimates - kernel).square());
}
void expect_within(const Moment& got, double expected, const std::string& what) {
  EXPECT_NEAR(got.mean, expected, 5 * got.error) << what << ": " << got.mean << " +- " << got.error;
  EXPECT_LT(got.error, 0.1 * std::abs(expected)) << what << ": too few draws to say anything";
}

FeatureMapOptions named(const std::string& map, int64_t features = 16,
                        const std::string& projection = "auto") {
  FeatureMapOptions options;
  options.map = map;
  options.features = features;
  options.projection = projection;
  return options;
}

TEST(Estimator, EverySoftmaxMapIsUnbiased) {
  const Pair pair = pair_of(2);
  const int64_t draws = 8000;
  // Moments that do not fit the pair: unbiased all the same.
  const MapStatistics statistics = [&] {
    const MapStatistics one = maps_test::frozen_statistics(1, kSize);
    const auto all = [&](const Tensor& t) {
      auto sizes = t.sizes().vec();
      sizes[0] = draws;
      return t.expand(sizes);
    };
    return MapStatistics{all(one.query_mean), all(one.key_mean), all(one.query_moment), all(one.key_moment)};
  }();
  for (const char* map : {"favor+", "hyperbolic", "trigonometric", "oprf", "sderf", "aderf", "saderf"}) {
    const bool tuned = feature_map_traits(map).statistics;
    const Tensor got = estimates(named(map), pair, draws, {}, tuned ? statistics : MapStatistics{});
    expect_within(moment(got), pair.kernel, map);
  }
  for (const char* projection : {"iid", "simplex"})
    expect_within(moment(estimates(named("favor+", 16, projection), pair, draws)), pair.kernel, projection);
}

TEST(Estimator, GeometryEstimatesTheLearnedKernel) {
  const Pair pair = pair_of(1.5);
  at::manual_seed(3);
  const int64_t draws = 8000;
  MapWeights learned;
  const Tensor matrix = at::eye(kSize, at::kDouble) + 0.2 * at::randn({kSize, kSize}, at::kDouble);
  learned.matrix = matrix.expand({draws, kSize, kSize});
  const double kernel = at::matmul(matrix, pair.x).dot(at::matmul(matrix, pair.y)).exp().item<double>();
  EXPECT_GT(std::abs(kernel / pair.kernel - 1), 0.1);
  expect_within(moment(estimates(named("geometry"), pair, draws, learned)), kernel, "geometry");
}

TEST(Estimator, ExpmodIsUnbiasedWhereItsNormIsRight) {
  Pair pair = pair_of(2);
  const double root = std::sqrt(std::sqrt(static_cast<double>(kSize)));  // |x|^2 = sqrt(D)
  pair = pair_at(pair.x / pair.x.norm() * root, pair.y / pair.y.norm() * root);
  const Moment got = moment(estimates(named("expmod", 64), pair, 20000));
  EXPECT_NEAR(got.mean, pair.kernel, 5 * got.error);
  EXPECT_LT(got.error, 0.1 * pair.kernel);
}

// Lemma 2 of Performers (2009.14794), with m independent rows: trigonometric, positive, hyperbolic.
TEST(Estimator, MeanSquareErrorsAreThoseOfLemmaTwo) {
  const int64_t draws = 20000;
  for (const double sum_square : {0.5, 1.5}) {
    const Pair pair = pair_of(sum_square);
    const double m = 16, k2 = pair.kernel * pair.kernel, z = std::exp(pair.plus);
    const double positive = z * k2 * (1 - 1 / z) / m;
    const auto error = [&](const char* map, int64_t features) {
      return squared_error(estimates(named(map, features, "iid"), pair, draws), pair.kernel);
    };
    expect_within(error("favor+", 16), positive, "positive");
    expect_within(error("trigonometric", 32), z / k2 * std::pow(1 - std::exp(-pair.minus), 2) / (2 * m),
                  "trigonometric");
    expect_within(error("hyperbolic", 32), (1 - 1 / z) / 2 * positive, "hyperbolic");
  }
}

// Theorem 2 there: orthogonal rows, m <= d, gain at least this over independent ones.
TEST(Estimator, OrthogonalRowsGainWhatTheoremTwoPromises) {
  for (const int64_t m : {2, 8}) {
    const Pair pair = pair_of(1.0);
    const double count = static_cast<double>(m), z = std::exp(pair.plus), k2 = pair.kernel * pair.kernel;
    const double iid = z * k2 * (1 - 1 / z) / count;
    const double norms = (pair.x.square().sum() + pair.y.square().sum()).item<double>();
    const double gain =
        2 * (count - 1) / (count * (kSize + 2)) * std::pow(pair.kernel - std::exp(-norms / 2), 2);
    const Moment got = squared_error(estimates(named("favor+", m, "orthogonal"), pair, 30000), pair.kernel);
    EXPECT_LT(got.mean, iid - gain + 5 * got.error);
    if (m == 8) {
      EXPECT_LT(got.mean, iid - 3 * got.error);
      const Moment simplex =
          squared_error(estimates(named("favor+", m, "simplex"), pair, 30000), pair.kernel);
      EXPECT_LT(simplex.mean, got.mean + 5 * std::hypot(simplex.error, got.error));
    }
  }
}

// Theorem 1 there: the regularised kernel lies below the softmax kernel. Exactly it is the Bessel-type series
// exp(-(|x|^2 + |y|^2)/2) sum_k (d |z|^2)^k / (2k)! times the moment of a uniform direction's coordinate.
TEST(Estimator, RegularisedKernelIsBelowSoftmaxAndAsTheSeries) {
  const Pair pair = pair_of(2);
  const double d = kSize, norms = (pair.x.square().sum() + pair.y.square().sum()).item<double>();
  double series = 0, term = 1;
  for (int k = 0; k < 60; ++k) {
    series += term;
    // E[s^(2k+2)] / E[s^(2k)] of a coordinate s of a uniform direction is (2k + 1) / (d + 2k).
    term *= d * pair.plus * (2 * k + 1) / ((2 * k + 1) * (2 * k + 2) * (d + 2 * k));
  }
  const double regularised = series * std::exp(-norms / 2);
  FeatureMapOptions options = named("favor+");
  options.row_norm = "sqrt-d";
  const Moment got = moment(estimates(options, pair, 20000));
  expect_within(got, regularised, "smreg");
  EXPECT_LT(regularised, pair.kernel);
  EXPECT_LT(got.mean, pair.kernel - 5 * got.error);
}

// Chefs' random tables (2205.15317): the log of the relative second moment of one feature.
TEST(Estimator, OprfSecondMomentIsItsFormula) {
  const int64_t draws = 60000;
  for (const double sum_square : {1.0, 3.0}) {
    const Pair pair = pair_of(sum_square);
    const double d = kSize, a = maps_test::plain_a(pair.plus, d), r = 1 / (1 - 8 * a);
    const double expected = d * std::log((1 + r) / 2) - d / 2 * std::log(r) + r * pair.plus;
    const Tensor got = estimates(named("oprf", 1, "iid"), pair, draws, {}, moments_of_pair(pair, draws));
    const Moment second = moment(got.square() / (pair.kernel * pair.kernel));
    EXPECT_NEAR(std::log(second.mean), expected, 5 * second.error / second.mean) << sum_square;
    EXPECT_LT(second.error / second.mean, 0.1);
    EXPECT_LT(std::log(second.mean), pair.plus - 5 * second.error / second.mean);  // FAVOR+'s is |x + y|^2
  }
}

// For one pair E[(x + y)(x + y)^T] has rank one: sderf tunes that direction alone and beats oprf, whose
// second moment spreads over all.
TEST(Estimator, SderfHasLessVarianceThanOprfAndFavor) {
  const int64_t draws = 30000;
  const Pair pair = pair_of(1.5);
  const MapStatistics statistics = moments_of_pair(pair, draws);
  const auto error = [&](const char* map) {
    const bool tuned = feature_map_traits(map).statistics;
    return squared_error(
        estimates(named(map, 4, "iid"), pair, draws, {}, tuned ? statistics : MapStatistics{}), pair.kernel);
  };
  const Moment favor = error("favor+"), oprf = error("oprf"), sderf = error("sderf");
  EXPECT_LT(oprf.mean, favor.mean - 3 * std::hypot(oprf.error, favor.error));
  EXPECT_LT(sderf.mean, oprf.mean - 3 * std::hypot(sderf.error, oprf.error));
  // Its own formula: one dimension with Lambda = |x + y|^2.
  const double a = maps_test::plain_a(pair.plus, 1), r = 1 / (1 - 8 * a);
  const double relative = (1 + r) / 2 / std::sqrt(r) * std::exp(r * pair.plus);
  expect_within(sderf, (relative - 1) * pair.kernel * pair.kernel / 4, "sderf");
}

// Queries large where keys are small and the other way round: balancing pays.
TEST(Estimator, AderfAndSaderfBalanceUnequalSides) {
  const int64_t draws = 20000;
  const Tensor stretch = at::tensor(std::vector<double>{2, 2, 2, 2, 0.2, 0.2, 0.2, 0.2}, at::kDouble);
  const Pair plain = pair_of(0.7);
  const Pair pair = pair_at(plain.x * stretch, plain.y / stretch);
  const auto diagonal = [&](const Tensor& t) { return at::diag(t.square()).expand({draws, kSize, kSize}); };
  const Tensor zero = at::zeros({draws, kSize}, at::kDouble);
  const MapStatistics statistics{zero, zero, diagonal(pair.x), diagonal(pair.y)};
  const auto error = [&](const char* map) {
    return squared_error(estimates(named(map, 4, "iid"), pair, draws, {}, statistics), pair.kernel);
  };
  const Moment oprf = error("oprf"), saderf = error("saderf"), aderf = error("aderf");
  EXPECT_LT(saderf.mean, oprf.mean - 3 * std::hypot(oprf.error, saderf.error));
  EXPECT_LT(aderf.mean, oprf.mean - 3 * std::hypot(oprf.error, aderf.error));
}

// E[relu(w x) relu(w y)] = |x||y| (sin t + (pi - t) cos t) / (2 pi), the arc-cosine kernel of degree 1.
TEST(Estimator, ReluFeaturesEstimateTheArcCosineKernel) {
  const Pair pair = pair_of(4, -0.5);
  const double xx = pair.x.norm().item<double>(), yy = pair.y.norm().item<double>();
  const double t = std::acos(pair.x.dot(pair.y).item<double>() / (xx * yy)), pi = std::numbers::pi;
  FeatureMapOptions options = named("relu", 32, "orthogonal");
  options.epsilon = 0;
  expect_within(moment(estimates(options, pair, 20000)),
                xx * yy * (std::sin(t) + (pi - t) * std::cos(t)) / (2 * pi), "relu");
}

// Features without randomness are the kernel itself, and signs are theirs.
TEST(LogFeatures, AreTheFeaturesOfTheMapsWithoutRandomness) {
  for (const char* map : {"tanh", "leaky-relu", "hedgehog", "t2r", "exp", "elu+1"}) {
    FeatureMapOptions options = named(map, 6);
    const MapWeights weights = maps_test::weights_for(options, 2, 4, at::kDouble);
    const Tensor x = at::randn({2, 3, 2, 4}, at::kDouble);
    const LogFeatures got = log_features(x, true, options, weights);
    options.epsilon = 0;
    for (int64_t h = 0; h < 2; ++h) {
      const auto plain = maps_test::plain_map(options, weights, {}, h, 2, 4);
      const Tensor phi = (got.log_magnitude.exp() * got.sign).select(2, h);
      for (int64_t b = 0; b < 2; ++b)
        EXPECT_LT(maps_test::gap(phi[b], plain(x[b].select(1, h), true)), 1e-12) << map;
    }
  }
}

// With every constant the features reproduce attention itself.
TEST(LogFeatures, ReproduceAttentionOfEveryMap) {
  for (const FeatureMapOptions& options : maps_test::all_cases()) {
    const AttentionInputs in = maps_test::random_inputs(2, 5, 6, 2, 4, 3, 0.6, at::kDouble);
    const MapWeights weights = maps_test::weights_for(options, 2, 4, at::kDouble);
    const MapStatistics statistics =
        maps_test::needs_statistics(options) ? measure_statistics(in, options) : MapStatistics{};
    const auto values = [](const LogFeatures& f) { return f.log_magnitude.exp() * f.sign; };
    const Tensor q = values(log_features(in.query, true, options, weights, statistics)),
                 k = values(log_features(in.key, false, options, weights, statistics));
    const AttentionSums sums = attention_sums(q, k, in.value, false);
    const Tensor out = std::get<0>(mapped_attention(in, options, weights, statistics));
    const Tensor expected = (sums.numerator / sums.denominator).masked_fill(sums.denominator == 0, 0);
    EXPECT_LT(maps_test::gap(expected, out), 1e-9) << maps_test::text(options);
  }
}

}  // namespace
}  // namespace performer::ops::maps_statistics_test
