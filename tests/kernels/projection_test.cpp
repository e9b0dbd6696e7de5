// SPDX-License-Identifier: Apache-2.0
#include "performer/kernels/projection.h"

#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"

namespace performer::kernels {
namespace {

TEST(Projection, BlocksAreOrthogonalAndTheLastOneIsCut) {
  const int64_t d = 12, m = 30;
  const auto p = draw_projection(ProjectionKind::orthogonal, RowNorm::sqrt_d, m, d, {.seed = 3});
  for (int64_t a = 0; a < m; ++a) {
    for (int64_t b = 0; b <= a; ++b) {
      if (a / d != b / d) continue;
      double dot = 0;
      for (int64_t i = 0; i < d; ++i) dot += static_cast<double>(p[a * d + i]) * p[b * d + i];
      EXPECT_NEAR(dot, a == b ? d : 0, 1e-5);
    }
  }
}

// With unfixed QR signs E[Q_ii] is about -0.29 at d = 8; Haar has 0 with variance 1/d.
TEST(Projection, IsHaar) {
  const int64_t d = 8;
  const int draws = 4000;
  double diagonal = 0, trace_square = 0;
  for (int n = 0; n < draws; ++n) {
    const auto q = haar_orthogonal(d, {.seed = 11, .redraw = static_cast<uint32_t>(n)}, 0);
    double trace = 0;
    for (int64_t i = 0; i < d; ++i) trace += q[i * d + i];
    diagonal += trace / d;
    trace_square += trace * trace;
  }
  // trace(Q) of a Haar matrix has mean 0 and variance 1 (d >= 2): five standard errors of each estimate.
  EXPECT_NEAR(diagonal / draws, 0, 5 / (d * std::sqrt(double(draws))));
  EXPECT_NEAR(trace_square / draws, 1, 5 * std::sqrt(2.0 / draws));
}

TEST(Projection, RowNormsFollowTheChiDistribution) {
  const int64_t d = 16, m = 16 * 600;
  for (const auto kind : {ProjectionKind::orthogonal, ProjectionKind::iid}) {
    const auto p = draw_projection(kind, RowNorm::chi, m, d, {.seed = 5});
    double mean = 0, square = 0;
    for (int64_t f = 0; f < m; ++f) {
      double norm2 = 0;
      for (int64_t i = 0; i < d; ++i) norm2 += static_cast<double>(p[f * d + i]) * p[f * d + i];
      mean += norm2 / m;
      square += norm2 * norm2 / m;
    }
    EXPECT_NEAR(mean, d, 5 * std::sqrt(2.0 * d / m));  // chi-squared: mean d, variance 2d
    EXPECT_NEAR(square - mean * mean, 2 * d, 0.15 * 2 * d);
  }
}

TEST(Projection, EveryPartOfTheKeyNamesADrawOfItsOwn) {
  const auto draw = [](ProjectionKey key) {
    return draw_projection(ProjectionKind::orthogonal, RowNorm::chi, 8, 4, key);
  };
  const auto base = draw({1, 2, 3, 4});
  EXPECT_EQ(base, draw({1, 2, 3, 4}));
  for (const ProjectionKey& other : {ProjectionKey{0, 2, 3, 4}, {1, 0, 3, 4}, {1, 2, 0, 4}, {1, 2, 3, 0}})
    EXPECT_NE(base, draw(other));
}

TEST(Projection, RefusesEmptySizes) {
  EXPECT_THROW(draw_projection(ProjectionKind::iid, RowNorm::chi, 0, 4, {}), UsageError);
  EXPECT_THROW(projection_kind_from_name("hadamar"), UsageError);
  EXPECT_THROW(row_norm_from_name("one"), UsageError);
}

}  // namespace
}  // namespace performer::kernels
