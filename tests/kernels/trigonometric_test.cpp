// SPDX-License-Identifier: Apache-2.0
// The trigonometric family of every kernel table against the quadratic definition in double.
#include <gtest/gtest.h>

#include "tests/kernels/definition.h"

namespace performer::kernels::test {
namespace {

class EveryTrigonometric : public ::testing::TestWithParam<const FavorKernels*> {};
INSTANTIATE_TEST_SUITE_P(Targets, EveryTrigonometric, ::testing::ValuesIn(available_favor_kernels()),
                         [](const auto& info) { return info.param->name; });

// Small deviations and many frequencies keep denominators away from zero; otherwise the problem is ill-posed.
Spec waves(Spec spec) {
  spec.family = Family::trigonometric;
  spec.norm_weight = -0.5;
  return spec;
}

TEST(ReferenceTrigonometric, AgreesWithTheDefinitionInDouble) {
  for (Spec s : {Spec{.batch = 2, .queries = 9, .keys = 9, .causal = true, .deviation = 0.5},
                 Spec{.batch = 2, .queries = 5, .keys = 11, .offset = true, .deviation = 0.5},
                 Spec{.queries = 12, .keys = 12, .causal = true, .mask = true, .deviation = 0.5},
                 Spec{.queries = 3, .keys = 4, .projection = false, .deviation = 0.3}}) {
    s.type = DataType::float64;
    const Problem problem(waves(s));
    const Answer exact = quadratic<double>(problem), got = run(favor_reference(), problem, true);
    EXPECT_LT(difference(got.out, exact.out), 1e-11) << s.text();
    EXPECT_LT(difference(got.dq, exact.dq), 1e-10) << s.text();
    EXPECT_LT(difference(got.dk, exact.dk), 1e-10) << s.text();
    EXPECT_LT(difference(got.dv, exact.dv), 1e-11) << s.text();
  }
}

// One frequency, two keys: 0 and pi / 2 with weights 1 and w, and queries around the root of the denominator
// cos q + w sin q.
Problem two_waves(DataType type) {
  Spec s = waves({.queries = 4, .keys = 2, .heads = 1, .d = 1, .e = 1, .projection = false, .type = type});
  Problem problem(s);
  const double k = std::numbers::pi / 2, w = std::exp(k * k / 2), zero = std::atan2(-1.0, w);
  problem.k.set(0, 0, 0), problem.k.set(1, 0, k);
  problem.v.set(0, 0, 2), problem.v.set(1, 0, 5);
  const double queries[] = {zero + 1e-5, zero - 1e-5, 0.3, 1};
  for (int64_t i = 0; i < 4; ++i) problem.q.set(i, 0, queries[i]);
  return problem;
}

TEST(ReferenceTrigonometric, TheFloorStandsForDenominatorsNearZero) {
  const Problem problem = two_waves(DataType::float64);
  const double k = std::numbers::pi / 2, w = std::exp(k * k / 2), floor = kTrigonometricFloor * (1 + w);
  const Answer got = run(favor_reference(), problem, true), exact = quadratic<double>(problem);
  for (int64_t i = 0; i < 4; ++i) {
    const double q = problem.q.at(i, 0), a = std::cos(q), b = w * std::sin(q);
    const double safe = i < 2 ? std::copysign(floor, a + b) : a + b;
    EXPECT_NEAR(got.out[i], (2 * a + 5 * b) / safe, 1e-8) << i;
  }
  EXPECT_LT(got.out[0] * got.out[1], 0);  // the sign is kept
  EXPECT_LT(difference(got.dq, exact.dq), 1e-8 * largest(exact.dq));
  EXPECT_LT(difference(got.dk, exact.dk), 1e-8 * largest(exact.dk));
  EXPECT_LT(difference(got.dv, exact.dv), 1e-8 * largest(exact.dv));
}

TEST_P(EveryTrigonometric, TheFloorStandsForDenominatorsNearZero) {
  const Problem problem = two_waves(DataType::float32);
  const Answer got = run(*GetParam(), problem, true), exact = quadratic<double>(problem);
  EXPECT_LT(difference(got.out, exact.out), 1e-5 * largest(exact.out));
  EXPECT_LT(difference(got.dq, exact.dq), 1e-5 * largest(exact.dq));
  EXPECT_LT(difference(got.dk, exact.dk), 1e-5 * largest(exact.dk));
  EXPECT_LT(difference(got.dv, exact.dv), 1e-5 * largest(exact.dv));
}

TEST_P(EveryTrigonometric, LengthsAroundBlockEdges) {
  for (const bool causal : {false, true}) {
    for (const int64_t length : {0, 1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 70, 129, 200}) {
      check_against_definition(*GetParam(), waves({.queries = length,
                                                   .keys = length,
                                                   .heads = 1,
                                                   .m = 32,
                                                   .causal = causal,
                                                   .deviation = 0.5,
                                                   .seed = static_cast<uint64_t>(7 + length)}));
    }
  }
}

TEST_P(EveryTrigonometric, OddSizes) {
  for (const bool causal : {false, true}) {
    for (const int64_t d : {1, 3, 16, 24, 80}) {
      for (const int64_t e : {1, 5, 24, 33}) {
        for (const int64_t m : {19, 32, 65, 130}) {
          check_against_definition(*GetParam(), waves({.queries = 37,
                                                       .keys = 37,
                                                       .heads = 1,
                                                       .d = d,
                                                       .e = e,
                                                       .m = m,
                                                       .causal = causal,
                                                       .deviation = 0.3}));
        }
      }
    }
  }
}

TEST_P(EveryTrigonometric, DifferentNumbersOfQueriesAndKeys) {
  for (const auto& [queries, keys] :
       {std::pair<int64_t, int64_t>{1, 70}, {70, 1}, {5, 0}, {0, 5}, {65, 130}}) {
    check_against_definition(
        *GetParam(),
        waves({.batch = 2, .queries = queries, .keys = keys, .m = 40, .mask = keys > 5, .deviation = 0.4}));
  }
}

TEST_P(EveryTrigonometric, MasksOffsetsChunksAndPackedSegments) {
  for (const bool causal : {false, true}) {
    for (const int64_t chunk : {0, 1, 7, 100, 256}) {
      check_against_definition(*GetParam(), waves({.batch = 2,
                                                   .queries = 133,
                                                   .keys = 133,
                                                   .m = 48,
                                                   .causal = causal,
                                                   .offset = true,
                                                   .mask = true,
                                                   .deviation = 0.4,
                                                   .chunk = chunk}));
    }
    check_against_definition(*GetParam(), waves({.m = 48,
                                                 .causal = causal,
                                                 .mask = true,
                                                 .deviation = 0.4,
                                                 .cu = {0, 0, 5, 5, 70, 71, 140, 140}}));
  }
}

TEST_P(EveryTrigonometric, HalfPrecisionInputs) {
  for (const DataType type : {DataType::bfloat16, DataType::float16}) {
    for (const bool causal : {false, true}) {
      for (const int64_t m : {33, 64}) {
        check_against_definition(*GetParam(), waves({.queries = 90,
                                                     .keys = 90,
                                                     .m = m,
                                                     .causal = causal,
                                                     .mask = true,
                                                     .deviation = 0.4,
                                                     .type = type}));
      }
    }
  }
}

TEST_P(EveryTrigonometric, TheFinalStateMayBeReused) {
  const Problem problem(waves({.queries = 130, .keys = 130, .m = 33, .mask = true, .deviation = 0.4}));
  const Answer kept = run(*GetParam(), problem, true, nullptr, true), exact = quadratic<double>(problem);
  EXPECT_LT(difference(kept.dq, exact.dq), 2e-4 * largest(exact.dq));
  EXPECT_LT(difference(kept.dk, exact.dk), 2e-4 * largest(exact.dk));
  EXPECT_LT(difference(kept.dv, exact.dv), 2e-4 * largest(exact.dv));
}

// exp(|k|^2 / 2) overflows float from |k| = 13.3 on; weights of later keys are e^800 times those of the
// first.
TEST_P(EveryTrigonometric, EarlierRowsDoNotDrownInLaterKeys) {
  for (const int64_t turn : {30, 64, 100}) {
    Problem problem(
        waves({.queries = 130, .keys = 130, .heads = 1, .d = 4, .m = 128, .causal = true, .deviation = 0.3}));
    for (int64_t j = turn; j < 130; ++j) {
      for (int64_t i = 0; i < 4; ++i) problem.k.set(j, i, problem.k.at(j, i) + 28);
    }
    const Answer exact = quadratic<double>(problem), got = run(*GetParam(), problem, true);
    double early = 0, gap = 0, gradient_gap = 0;
    for (int64_t i = 0; i < turn * problem.spec.e; ++i) {
      early = std::max(early, std::abs(exact.out[i]));
      gap = std::max(gap, std::abs(got.out[i] - exact.out[i]));
      gradient_gap = std::max(gradient_gap, std::abs(got.dv[i] - exact.dv[i]));
    }
    EXPECT_GT(early, 0.1);
    EXPECT_LT(gap, 1e-4) << turn;
    EXPECT_LT(gradient_gap, 1e-3) << turn;
  }
}

TEST_P(EveryTrigonometric, FiniteAndBoundedForInputsOfAThousand) {
  for (const bool causal : {false, true}) {
    const Spec s =
        waves({.queries = 130, .keys = 130, .d = 64, .e = 16, .m = 64, .causal = causal, .deviation = 1000});
    const Problem problem(s);
    const Answer answer = run(*GetParam(), problem, true);
    for (const auto* part : {&answer.out, &answer.dq, &answer.dk, &answer.dv}) {
      for (double value : *part) ASSERT_TRUE(std::isfinite(value)) << GetParam()->name << " " << s.text();
    }
    EXPECT_LE(largest(answer.out), 1.001 * largest(problem.v.values()) / kTrigonometricFloor);
  }
}

}  // namespace
}  // namespace performer::kernels::test
