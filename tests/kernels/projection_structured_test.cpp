// SPDX-License-Identifier: Apache-2.0
// Exact properties and moments of every kind of projection.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "performer/base/error.h"
#include "performer/kernels/projection.h"

namespace performer::kernels::projection_test {
namespace {

constexpr ProjectionKind kKinds[] = {ProjectionKind::orthogonal, ProjectionKind::iid,
                                     ProjectionKind::hadamard, ProjectionKind::givens,
                                     ProjectionKind::simplex};

template <class T>
double dot(const std::vector<T>& rows, int64_t a, int64_t b, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(rows[a * size + i]) * rows[b * size + i];
  return sum;
}

// Mean and standard error of independent values.
class Mean {
 public:
  void add(double x) { ++count_, sum_ += x, squares_ += x * x; }
  double mean() const { return sum_ / count_; }
  double error() const { return std::sqrt((squares_ / count_ - mean() * mean()) / count_); }

 private:
  double count_ = 0, sum_ = 0, squares_ = 0;
};

TEST(StructuredProjection, GivensAndHadamardBlocksAreOrthogonal) {
  for (const int64_t d : {1, 2, 3, 8, 20, 64}) {
    const auto givens = givens_orthogonal(d, {.seed = 4}, 1);
    const bool power = (d & (d - 1)) == 0;
    const auto hadamard = hadamard_rows(d, {.seed = 4}, 1);
    if (power) {
      ASSERT_EQ(hadamard.size(), static_cast<size_t>(d * d));
    }
    for (int64_t a = 0; a < d; ++a) {
      for (int64_t b = 0; b <= a; ++b) {
        EXPECT_NEAR(dot(givens, a, b, d), a == b ? 1 : 0, 1e-12) << d;
        if (power) {
          EXPECT_NEAR(dot(hadamard, a, b, d), a == b ? 1 : 0, 1e-12) << d;
        }
      }
    }
  }
}

TEST(StructuredProjection, HadamardRowsOfAnySizeHaveLengthOne) {
  for (const int64_t d : {3, 5, 6, 20, 48}) {
    for (uint32_t block = 0; block < 20; ++block) {
      const auto rows = hadamard_rows(d, {.seed = 9}, block);
      const int64_t count = static_cast<int64_t>(rows.size()) / d;
      ASSERT_GE(count, 1);
      for (int64_t a = 0; a < count; ++a) EXPECT_NEAR(dot(rows, a, a, d), 1, 1e-12);
    }
  }
}

TEST(StructuredProjection, SimplexRowsHaveTheCosineOfARegularSimplex) {
  for (const int64_t d : {2, 3, 8, 30}) {
    const auto rows = simplex_directions(d, {.seed = 2}, 0);
    for (int64_t a = 0; a < d; ++a) {
      for (int64_t b = 0; b <= a; ++b)
        EXPECT_NEAR(dot(rows, a, b, d), a == b ? 1 : -1.0 / static_cast<double>(d - 1), 1e-12);
    }
  }
  EXPECT_NEAR(std::abs(simplex_directions(1, {.seed = 2}, 0)[0]), 1, 1e-15);
}

// Haar: E[trace] = 0, E[trace^2] = 1, E[Q_ij^2] = 1/d, E[Q_ij^4] = 3/(d(d+2)). Unfixed QR signs would give a
// mean diagonal of -0.29 at d = 8, too few rotations a large fourth moment.
void expect_haar(const std::function<std::vector<double>(uint32_t)>& draw, int64_t d, uint32_t draws,
                 double slack) {
  Mean trace, trace_square, square, fourth;
  const double size = static_cast<double>(d);
  for (uint32_t n = 0; n < draws; ++n) {
    const auto q = draw(n);
    double sum = 0, fourths = 0;
    for (int64_t i = 0; i < d; ++i) sum += q[i * d + i];
    for (const double x : q) fourths += std::pow(x, 4) / (size * size);
    trace.add(sum / size);
    trace_square.add(sum * sum);
    square.add(q[0] * q[0]);
    fourth.add(fourths);
  }
  EXPECT_NEAR(trace.mean(), 0, 5 * trace.error());
  EXPECT_NEAR(trace_square.mean(), 1, 5 * trace_square.error() + slack);
  EXPECT_NEAR(square.mean(), 1 / size, 5 * square.error());
  EXPECT_NEAR(fourth.mean(), 3 / (size * (size + 2)), 5 * fourth.error() + slack * 3 / (size * (size + 2)));
}

TEST(StructuredProjection, HaarMomentsOfOrthogonalAndGivens) {
  for (const int64_t d : {3, 8, 32}) {
    const uint32_t draws = d == 32 ? 300 : 4000;
    const auto key = [](uint32_t n) { return ProjectionKey{.seed = 17, .redraw = n}; };
    expect_haar([&](uint32_t n) { return haar_orthogonal(d, key(n), 0); }, d, draws, 0);
    expect_haar([&](uint32_t n) { return givens_orthogonal(d, key(n), 0); }, d, draws, 0.01);
  }
}

TEST(StructuredProjection, BlocksOfOneDrawAreIndependent) {
  const int64_t d = 4;
  for (const ProjectionKind kind : kKinds) {
    Mean same, square;
    for (uint32_t n = 0; n < 4000; ++n) {
      const auto p = draw_projection(kind, RowNorm::sqrt_d, 2 * d, d, {.seed = 21, .redraw = n});
      same.add(static_cast<double>(p[1]) * p[d * d + 1]);
      square.add(std::pow(p[1] * p[d * d + 1], 2));
    }
    EXPECT_NEAR(same.mean(), 0, 5 * same.error());
    EXPECT_NEAR(square.mean(), 1, 5 * square.error());  // of two identical blocks at least E[w^4] > 1
  }
}

TEST(StructuredProjection, RowsOfEveryKindAreIsotropicWithChiLengths) {
  const int64_t d = 6, m = 16;
  for (const ProjectionKind kind : kKinds) {
    Mean mean, own, cross, norm, norm_square;
    for (uint32_t n = 0; n < 3000; ++n) {
      const auto p = draw_projection(kind, RowNorm::chi, m, d, {.seed = 23, .redraw = n});
      double norms = 0, squares = 0;
      for (int64_t f = 0; f < m; ++f) {
        norms += dot(p, f, f, d) / m;
        squares += std::pow(dot(p, f, f, d), 2) / m;
      }
      mean.add(p[2]);
      own.add(static_cast<double>(p[d + 1]) * p[d + 1]);
      cross.add(static_cast<double>(p[d + 1]) * p[d + 3]);
      norm.add(norms);
      norm_square.add(squares);
    }
    const auto near = [](const Mean& x, double expected) { EXPECT_NEAR(x.mean(), expected, 5 * x.error()); };
    near(mean, 0);
    near(own, 1);
    near(cross, 0);
    near(norm, d);                                          // chi-squared: mean d,
    near(norm_square, static_cast<double>(d * d + 2 * d));  // variance 2d
  }
}

TEST(StructuredProjection, FixedLengthsAreTheRootOfTheSize) {
  for (const ProjectionKind kind : kKinds) {
    const auto p = draw_projection(kind, RowNorm::sqrt_d, 13, 5, {.seed = 1});
    for (int64_t f = 0; f < 13; ++f) EXPECT_NEAR(dot(p, f, f, 5), 5, 1e-5);
  }
}

TEST(StructuredProjection, KindsAreNamedAndKeyedLikeTheOthers) {
  for (const ProjectionKind kind : kKinds) {
    const auto draw = [&](ProjectionKey key) { return draw_projection(kind, RowNorm::chi, 8, 4, key); };
    EXPECT_EQ(draw({1, 2, 3, 4}), draw({1, 2, 3, 4}));
    for (const ProjectionKey& other : {ProjectionKey{0, 2, 3, 4}, {1, 0, 3, 4}, {1, 2, 0, 4}, {1, 2, 3, 0}})
      EXPECT_NE(draw({1, 2, 3, 4}), draw(other));
  }
  for (const char* name : {"orthogonal", "iid", "hadamard", "givens", "simplex"})
    EXPECT_NO_THROW(projection_kind_from_name(name));
  EXPECT_EQ(projection_kind_from_name("simplex"), ProjectionKind::simplex);
  EXPECT_EQ(projection_kind_from_name("iid"), ProjectionKind::iid);
  try {
    projection_kind_from_name("householder");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("householder"));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("givens"));
  }
}

}  // namespace
}  // namespace performer::kernels::projection_test
