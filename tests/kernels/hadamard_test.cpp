// SPDX-License-Identifier: Apache-2.0
// Projections in factors: finding the factors of a matrix, and every kernel table with them against the
// quadratic definition, which has the dense matrix.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/kernels/definition.h"

namespace performer::kernels::test {
namespace {

std::vector<float> hadamard(int64_t m, int64_t d, uint64_t seed, RowNorm norm = RowNorm::chi) {
  return draw_projection(ProjectionKind::hadamard, norm, m, d, {.seed = seed});
}

// The matrix that factors [blocks, 4, D] stand for, by the formula of kernels/favor.h.
std::vector<double> expanded(const std::vector<float>& factors, int64_t d) {
  std::vector<double> matrix;
  for (size_t b = 0; b < factors.size(); b += static_cast<size_t>(4 * d)) {
    std::vector<double> block(static_cast<size_t>(d * d));
    for (int64_t j = 0; j < d; ++j) {
      std::vector<double> x(static_cast<size_t>(d)), y(x.size());
      x[j] = 1;
      for (int64_t k = 0; k < 4; ++k) {
        for (int64_t i = 0; i < d; ++i) x[i] *= factors[b + static_cast<size_t>(k * d + i)];
        for (int64_t i = 0; k < 3 && i < d; ++i) {
          y[i] = 0;
          for (int64_t c = 0; c < d; ++c)
            y[i] += (std::popcount(static_cast<uint64_t>(i & c)) % 2 != 0 ? -1 : 1) * x[c];
        }
        if (k < 3) x = y;
      }
      for (int64_t i = 0; i < d; ++i) block[static_cast<size_t>(i * d + j)] = x[i];
    }
    matrix.insert(matrix.end(), block.begin(), block.end());
  }
  return matrix;
}

TEST(HadamardFactors, ExpandToTheMatrix) {
  for (const int64_t d : {32, 64, 128, 256}) {
    for (uint64_t seed = 0; seed < (d > 64 ? 2 : 6); ++seed) {
      const int64_t m = 2 * d + 5;
      const auto rows = hadamard(m, d, seed, seed % 2 == 0 ? RowNorm::chi : RowNorm::sqrt_d);
      const auto factors = hadamard_factors(rows.data(), m, d);
      const auto matrix = expanded(factors, d);
      ASSERT_EQ(matrix.size(), static_cast<size_t>(2 * d * d));
      for (size_t i = 0; i < matrix.size(); ++i)
        // The length of a row is rounded, and each element of the matrix.
        ASSERT_NEAR(matrix[i], rows[i], 0x1p-22 * std::abs(rows[i])) << d << " " << seed << " " << i;
      for (size_t i = 0; i < factors.size(); ++i) {
        if (i / static_cast<size_t>(d) % 4 != 3) {
          ASSERT_EQ(std::abs(factors[i]), 1.0f);
        }
      }
    }
  }
}

TEST(HadamardFactors, AreLookedForWhereThatPays) {
  constexpr int64_t m = 70, d = 32, size = 2 * 4 * d;
  std::vector<float> rows, factors;
  for (uint64_t head = 0; head < 5; ++head) {
    const auto own = hadamard(m, d, head);
    rows.insert(rows.end(), own.begin(), own.end());
    const auto found = hadamard_factors(own.data(), m, d);
    factors.insert(factors.end(), found.begin(), found.end());
  }
  ASSERT_EQ(factors.size(), static_cast<size_t>(5 * size));
  ThreadExecutor threads(3);
  EXPECT_EQ(factors_for_tokens(rows.data(), 5, m, d, 512, threads), factors);
  SerialExecutor serial;
  EXPECT_EQ(factors_for_tokens(rows.data(), 5, m, d, 512, serial), factors);
  EXPECT_TRUE(factors_for_tokens(rows.data(), 5, m, d, 511, serial).empty());
  EXPECT_TRUE(factors_for_tokens(rows.data(), 0, m, d, 512, serial).empty());
  EXPECT_TRUE(factors_for_tokens(rows.data(), 5, d - 1, d, 512, serial).empty()) << "less than a block";
  rows[3 * m * d] *= 1.01f;  // one projection that has none is enough
  EXPECT_TRUE(factors_for_tokens(rows.data(), 5, m, d, 512, serial).empty());
}

// A draw's signs may leave some of each other unknown.
TEST(HadamardFactors, NearlyAllDrawsHaveThem) {
  for (const auto& [d, most_without] : {std::pair<int64_t, int64_t>{32, 5}, {64, 0}}) {
    int64_t without = 0;
    for (uint64_t seed = 0; seed < 500; ++seed)
      without += hadamard_factors(hadamard(d, d, seed).data(), d, d).empty();
    EXPECT_LE(without, most_without) << d;
  }
}

TEST(HadamardFactors, NegativeRowsAndOddLengthsHaveThem) {
  const int64_t d = 64;
  auto rows = hadamard(d, d, 3);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] *= -0.37f * static_cast<float>(1 + i / d % 7);
  const auto factors = hadamard_factors(rows.data(), d, d);
  ASSERT_FALSE(factors.empty());
  const auto matrix = expanded(factors, d);
  for (size_t i = 0; i < matrix.size(); ++i) ASSERT_NEAR(matrix[i], rows[i], 0x1p-21 * std::abs(rows[i]));
}

TEST(HadamardFactors, OtherMatricesHaveNone) {
  const int64_t d = 64, m = 128;
  const auto rows = hadamard(m, d, 3);
  ASSERT_FALSE(hadamard_factors(rows.data(), m, d).empty());
  const auto none = [&](std::vector<float> changed) {
    return hadamard_factors(changed.data(), m, d).empty();
  };
  for (const auto kind :
       {ProjectionKind::orthogonal, ProjectionKind::iid, ProjectionKind::givens, ProjectionKind::simplex})
    EXPECT_TRUE(none(draw_projection(kind, RowNorm::chi, m, d, {.seed = 5})));
  auto changed = rows;
  changed[100 * d + 7] *= 1.01f;
  EXPECT_TRUE(none(changed));
  changed = rows;
  changed[100 * d + 7] *= -1;
  EXPECT_TRUE(none(changed));
  changed = rows;
  std::fill_n(changed.begin() + 3 * d, d, 0.0f);
  EXPECT_TRUE(none(changed));
  changed = rows;
  changed[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(none(changed));
  changed = rows;
  for (float& x : changed) x = bfloat16_to_float(float_to_bfloat16(x));
  EXPECT_TRUE(none(changed));
  changed = rows;
  std::swap_ranges(changed.begin(), changed.begin() + d, changed.begin() + d);
  EXPECT_TRUE(none(changed));
  EXPECT_TRUE(none(std::vector<float>(static_cast<size_t>(m * d), 1.0f)));
  for (const int64_t other : {1, 16, 24, 80, 512}) {
    const auto no_power = hadamard(2 * other, other, 3);
    EXPECT_TRUE(hadamard_factors(no_power.data(), 2 * other, other).empty()) << other;
  }
}

// The reference is left out: it has the dense matrix, and its own tests.
std::vector<const FavorKernels*> vector_tables() {
  auto tables = available_favor_kernels();
  tables.pop_back();
  return tables;
}
class EveryTableInFactors : public ::testing::TestWithParam<const FavorKernels*> {};
INSTANTIATE_TEST_SUITE_P(Targets, EveryTableInFactors, ::testing::ValuesIn(vector_tables()),
                         [](const auto& info) { return info.param->name; });

// A spec in each family. Trigonometric denominators stay away from zero.
std::vector<Spec> in_families(Spec s) {
  s.hadamard = true;
  Spec elementwise = s, waves = s;
  elementwise.family = Family::elementwise, elementwise.epsilon = 1e-3;
  waves.family = Family::trigonometric, waves.norm_weight = -0.5;
  waves.deviation = std::min(0.4, s.deviation);
  return {s, elementwise, waves};
}

constexpr DataType kTypes[] = {DataType::float32, DataType::bfloat16, DataType::float16};

TEST_P(EveryTableInFactors, EverySize) {
  for (const bool causal : {false, true}) {
    for (const DataType type : kTypes) {
      for (const int64_t d : {32, 64, 128, 256}) {
        // Whole blocks; features beside them, even and odd; fewer than one.
        for (const int64_t m : {2 * d, d + 6, d + 1, d - 1}) {
          if (d > 64 && m != d + 1) continue;  // the definition is slow
          for (const Spec& s : in_families(
                   {.queries = 20, .keys = 20, .d = d, .e = 24, .m = m, .causal = causal, .type = type}))
            check_against_definition(*GetParam(), s);
        }
      }
    }
  }
}

TEST_P(EveryTableInFactors, LengthsAndChunks) {
  for (const bool causal : {false, true}) {
    for (const DataType type : {DataType::float32, DataType::bfloat16}) {
      for (const int64_t length : {0, 1, 17, 49, 65}) {
        Spec spec{.queries = length, .keys = length, .heads = 1, .d = 64, .m = 64, .causal = causal};
        spec.type = type;
        for (const Spec& s : in_families(spec)) check_against_definition(*GetParam(), s);
      }
      for (const int64_t chunk : {1, 7, 48, 100}) {
        Spec spec{.queries = 55, .keys = 55, .heads = 1, .d = 64, .m = 70, .causal = causal, .type = type};
        spec.chunk = chunk;
        for (const Spec& s : in_families(spec)) check_against_definition(*GetParam(), s);
      }
    }
  }
}

TEST_P(EveryTableInFactors, MasksOffsetsAndPackedSegments) {
  for (const bool causal : {false, true}) {
    for (const DataType type : {DataType::float32, DataType::bfloat16}) {
      Spec masked{.batch = 2, .queries = 35, .keys = 35, .d = 64, .m = 100, .causal = causal, .type = type};
      masked.offset = masked.mask = true;
      for (const Spec& s : in_families(masked)) check_against_definition(*GetParam(), s);
      Spec packed{.heads = 1, .d = 64, .m = 96, .causal = causal, .cu = {0, 0, 5, 5, 70, 71}, .type = type};
      for (const Spec& s : in_families(packed)) check_against_definition(*GetParam(), s);
    }
  }
}

TEST_P(EveryTableInFactors, LargeMagnitudes) {
  for (const double deviation : {10.0, 100.0}) {
    for (const bool causal : {false, true}) {
      Spec s{.queries = 70, .keys = 70, .d = 64, .m = 64, .causal = causal, .deviation = deviation};
      s.hadamard = true;
      check_against_definition(*GetParam(), s);
    }
  }
}

bool finite(const Answer& answer) {
  for (const auto* part : {&answer.out, &answer.dq, &answer.dk, &answer.dv}) {
    for (const double x : *part) {
      if (!std::isfinite(x)) return false;
    }
  }
  return true;
}
void poison(Problem& problem) {
  std::fill(problem.projection.begin(), problem.projection.end(), std::numeric_limits<float>::quiet_NaN());
}

// With a matrix of which nothing is a number, the factors alone must carry a pass.
TEST_P(EveryTableInFactors, TheFactorsAreWhatIsMultiplied) {
  for (const bool causal : {false, true}) {
    for (const DataType type : kTypes) {
      for (const Spec& s :
           in_families({.queries = 40, .keys = 40, .d = 64, .m = 128, .causal = causal, .type = type})) {
        Problem problem(s);
        const Answer right = run(*GetParam(), problem, true);
        EXPECT_TRUE(finite(right)) << s.text();
        poison(problem);
        const Answer got = run(*GetParam(), problem, true);
        EXPECT_EQ(got.out, right.out) << s.text();
        EXPECT_EQ(got.dq, right.dq) << s.text();
        EXPECT_EQ(got.dk, right.dk) << s.text();
        EXPECT_EQ(got.dv, right.dv) << s.text();
      }
    }
  }
}
TEST(Reference, HasTheMatrixAndNotTheFactors) {
  Problem problem({.queries = 4, .keys = 4, .d = 64, .m = 64, .hadamard = true});
  EXPECT_TRUE(finite(run(favor_reference(), problem, true)));
  poison(problem);
  EXPECT_FALSE(finite(run(favor_reference(), problem, true)));
}

// A single long head, which is cut into two groups of features: of whole blocks, and not.
TEST_P(EveryTableInFactors, AHeadInGroups) {
  for (const auto& [d, m] : {std::pair<int64_t, int64_t>{64, 128}, {64, 192}, {32, 160}}) {
    for (const bool causal : {false, true}) {
      for (const Spec& s :
           in_families({.queries = 600, .keys = 600, .heads = 1, .d = d, .m = m, .causal = causal})) {
        Problem problem(s);
        const Answer exact = run(favor_reference(), problem, true), got = run(*GetParam(), problem, true);
        // As for groups of dense features.
        EXPECT_LT(difference(got.out, exact.out), 2e-5 * std::max(1.0, largest(exact.out))) << s.text();
        EXPECT_LT(difference(got.dq, exact.dq), 2e-5 * std::max(1.0, largest(exact.dq))) << s.text();
        EXPECT_LT(difference(got.dk, exact.dk), 2e-5 * std::max(1.0, largest(exact.dk))) << s.text();
        EXPECT_LT(difference(got.dv, exact.dv), 2e-5 * std::max(1.0, largest(exact.dv))) << s.text();
        if (m != 128) continue;
        poison(problem);
        EXPECT_EQ(run(*GetParam(), problem, true).dk, got.dk) << s.text();
      }
    }
  }
}

}  // namespace
}  // namespace performer::kernels::test
