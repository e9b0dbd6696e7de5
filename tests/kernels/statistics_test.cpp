// SPDX-License-Identifier: Apache-2.0
// What projections are for: estimates of the softmax kernel by positive features, over many fixed seeds, with
// confidence bounds of five standard errors.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "performer/kernels/projection.h"

namespace performer::kernels::statistics_test {
namespace {

struct Estimate {
  double mean, error, mean_square, mean_square_error;  // of estimate / kernel - 1
};

// Positive features of m rows for two vectors with |x + y|^2 = `sum_square` along no axis, `draws` times.
Estimate relative_errors(ProjectionKind kind, int64_t m, int64_t d, uint32_t draws, double sum_square = 2) {
  std::vector<double> x(d), y(d);
  double zz = 0, xy = 0, xx = 0, yy = 0;
  for (int64_t i = 0; i < d; ++i) {
    x[i] = std::sin(1.0 + static_cast<double>(i));
    y[i] = std::cos(2.5 * static_cast<double>(i)) + 0.3;
    zz += (x[i] + y[i]) * (x[i] + y[i]);
  }
  for (int64_t i = 0; i < d; ++i) {
    x[i] *= std::sqrt(sum_square / zz), y[i] *= std::sqrt(sum_square / zz);
    xy += x[i] * y[i], xx += x[i] * x[i], yy += y[i] * y[i];
  }
  const double kernel = std::exp(xy);
  double sums[4] = {};
  for (uint32_t n = 0; n < draws; ++n) {
    const auto w = draw_projection(kind, RowNorm::chi, m, d, {.seed = 77, .redraw = n});
    double estimate = 0;
    for (int64_t f = 0; f < m; ++f) {
      double u = -(xx + yy) / 2;
      for (int64_t i = 0; i < d; ++i) u += w[f * d + i] * (x[i] + y[i]);
      estimate += std::exp(u) / static_cast<double>(m);
    }
    double power = 1;
    for (double& sum : sums) sum += (power *= estimate / kernel - 1) / draws;
  }
  return {sums[0], std::sqrt((sums[1] - sums[0] * sums[0]) / draws), sums[1],
          std::sqrt((sums[3] - sums[1] * sums[1]) / draws)};
}

TEST(KernelEstimate, ExactKindsAreUnbiased) {
  for (const auto kind : {ProjectionKind::orthogonal, ProjectionKind::iid, ProjectionKind::simplex}) {
    for (const int64_t d : {4, 8}) {
      const Estimate got = relative_errors(kind, 16, d, 10000);
      EXPECT_NEAR(got.mean, 0, 5 * got.error) << static_cast<int>(kind) << " " << d;
    }
  }
}

// Their documented bias, and that they are as good as Haar rows in spread.
TEST(KernelEstimate, GivensAndHadamardAreNearlyUnbiased) {
  for (const auto kind : {ProjectionKind::givens, ProjectionKind::hadamard}) {
    for (const int64_t d : {8, 12, 16}) {
      const Estimate got = relative_errors(kind, d, d, 10000);
      const Estimate haar = relative_errors(ProjectionKind::orthogonal, d, d, 10000);
      EXPECT_NEAR(got.mean, 0, 5 * got.error + 0.01) << static_cast<int>(kind) << " " << d;
      EXPECT_NEAR(got.mean_square, haar.mean_square, 5 * (got.mean_square_error + haar.mean_square_error));
    }
  }
}

// Couplings lower the variance: simplex <= orthogonal <= iid, each visibly at m = d.
TEST(KernelEstimate, CouplingsOrderTheVariance) {
  const Estimate iid = relative_errors(ProjectionKind::iid, 4, 4, 40000, 0.7);
  const Estimate orthogonal = relative_errors(ProjectionKind::orthogonal, 4, 4, 40000, 0.7);
  const Estimate simplex = relative_errors(ProjectionKind::simplex, 4, 4, 40000, 0.7);
  const auto below = [](const Estimate& a, const Estimate& b) {
    return b.mean_square - a.mean_square > 2 * std::hypot(a.mean_square_error, b.mean_square_error);
  };
  EXPECT_TRUE(below(orthogonal, iid)) << orthogonal.mean_square << " " << iid.mean_square;
  EXPECT_TRUE(below(simplex, orthogonal)) << simplex.mean_square << " " << orthogonal.mean_square;
}

}  // namespace
}  // namespace performer::kernels::statistics_test
