// SPDX-License-Identifier: Apache-2.0
// Every kernel table against the quadratic definition in double (definition.h).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "tests/kernels/definition.h"

namespace performer::kernels::test {
namespace {

class EveryTable : public ::testing::TestWithParam<const FavorKernels*> {};
INSTANTIATE_TEST_SUITE_P(Targets, EveryTable, ::testing::ValuesIn(available_favor_kernels()),
                         [](const auto& info) { return info.param->name; });

TEST(Reference, AgreesWithTheDefinitionInDouble) {
  for (Spec s : {Spec{.batch = 2, .queries = 9, .keys = 9, .causal = true},
                 Spec{.batch = 2, .queries = 5, .keys = 11, .offset = true},
                 Spec{.queries = 12, .keys = 12, .causal = true, .mask = true},
                 Spec{.queries = 12,
                 .keys = 12,
                 .causal = true,
                 .mask = true,
                 .family = Family::elementwise,
                 .epsilon = 1e-3},
                 Spec{.queries = 7,
                 .keys = 3,
                 .family = Family::elementwise,
                 .function = Function::gelu,
                 .epsilon = 0.5}}) {
    s.type = DataType::float64;
    const Problem problem(s);
    const Answer exact = quadratic<double>(problem), got = run(favor_reference(), problem, true);
    EXPECT_LT(difference(got.out, exact.out), 1e-12) << s.text();
    EXPECT_LT(difference(got.dq, exact.dq), 1e-11) << s.text();
    EXPECT_LT(difference(got.dk, exact.dk), 1e-11) << s.text();
    EXPECT_LT(difference(got.dv, exact.dv), 1e-12) << s.text();
  }
}

// Two tokens, one feature, by hand: phi = exp(x - x^2/2), k = (0, 1), v = (1, 3): weights 1 and e^(1/2).
TEST(Reference, HandWorkedCase) {
  Spec s{.queries = 2, .keys = 2, .heads = 1, .d = 1, .e = 1, .projection = false, .type = DataType::float64};
  Problem problem(s);
  problem.k.set(0, 0, 0);
  problem.k.set(1, 0, 1);
  problem.v.set(0, 0, 1);
  problem.v.set(1, 0, 3);
  const double w = std::exp(0.5), expected = (1 + 3 * w) / (1 + w);
  const Answer answer = run(favor_reference(), problem, false);
  EXPECT_NEAR(answer.out[0], expected, 1e-14);
  EXPECT_NEAR(answer.out[1], expected, 1e-14);
}

TEST_P(EveryTable, LengthsAroundBlockEdges) {
  for (const bool causal : {false, true}) {
    for (const int64_t length : {0, 1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 70, 129}) {
      check_against_definition(*GetParam(), {.queries = length,
                                             .keys = length,
                                             .heads = 1,
                                             .causal = causal,
                                             .seed = static_cast<uint64_t>(7 + length)});
      check_against_definition(*GetParam(), {.queries = length,
                                             .keys = length,
                                             .heads = 1,
                                             .d = 24,
                                             .projection = false,
                                             .causal = causal,
                                             .family = Family::elementwise,
                                             .epsilon = 1e-3,
                                             .seed = static_cast<uint64_t>(99 + length)});
    }
  }
}

TEST_P(EveryTable, OddSizes) {
  for (const bool causal : {false, true}) {
    for (const int64_t d : {1, 3, 16, 24, 80}) {
      for (const int64_t e : {1, 5, 24, 33}) {
        check_against_definition(
            *GetParam(), {.queries = 37, .keys = 37, .heads = 1, .d = d, .e = e, .m = 19, .causal = causal});
        check_against_definition(*GetParam(), {.queries = 20,
                                               .keys = 20,
                                               .heads = 1,
                                               .d = d,
                                               .e = e,
                                               .m = 130,
                                               .causal = causal,
                                               .family = Family::elementwise,
                                               .function = Function::elu1});
      }
    }
  }
}

TEST_P(EveryTable, DifferentNumbersOfQueriesAndKeys) {
  for (const auto& [queries, keys] :
       {std::pair<int64_t, int64_t>{1, 70}, {70, 1}, {5, 0}, {0, 5}, {65, 130}}) {
    check_against_definition(*GetParam(), {.batch = 2, .queries = queries, .keys = keys});
    check_against_definition(*GetParam(), {.batch = 2,
                                           .queries = queries,
                                           .keys = keys,
                                           .mask = true,
                                           .family = Family::elementwise,
                                           .epsilon = 1e-3});
  }
}

TEST_P(EveryTable, EveryFunction) {
  for (const Function function :
       {Function::relu, Function::elu1, Function::square, Function::abs, Function::requ, Function::gelu,
        Function::sigmoid, Function::tanh, Function::cos, Function::sin, Function::identity}) {
    // The signed functions get an epsilon that keeps denominators away from zero; otherwise the problem is
    // ill-posed.
    const double epsilon = function >= Function::tanh ? 3 : 0.01;
    for (const bool causal : {false, true}) {
      check_against_definition(*GetParam(), {.queries = 40,
                                             .keys = 40,
                                             .causal = causal,
                                             .family = Family::elementwise,
                                             .function = function,
                                             .epsilon = epsilon,
                                             .deviation = 0.3});
    }
  }
}

TEST_P(EveryTable, MasksAndOffsets) {
  for (const bool causal : {false, true}) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      check_against_definition(*GetParam(), {.batch = 2,
                                             .queries = 33,
                                             .keys = 33,
                                             .causal = causal,
                                             .offset = true,
                                             .mask = true,
                                             .seed = seed});
      check_against_definition(*GetParam(), {.batch = 2,
                                             .queries = 33,
                                             .keys = 33,
                                             .causal = causal,
                                             .offset = true,
                                             .mask = true,
                                             .family = Family::elementwise,
                                             .epsilon = 1e-3,
                                             .seed = seed});
    }
  }
}

TEST_P(EveryTable, PackedSegmentsIncludingEmptyOnes) {
  for (const bool causal : {false, true}) {
    check_against_definition(*GetParam(), {.causal = causal, .cu = {0, 0, 5, 5, 70, 71, 140, 140}});
    check_against_definition(*GetParam(), {.causal = causal,
                                           .mask = true,
                                           .family = Family::elementwise,
                                           .epsilon = 1e-3,
                                           .cu = {0, 3, 3, 67}});
  }
}

TEST_P(EveryTable, LargeMagnitudes) {
  for (const double deviation : {4.0, 10.0, 30.0, 100.0}) {
    for (const bool causal : {false, true}) {
      for (uint64_t seed = 1; seed <= 3; ++seed) {
        check_against_definition(*GetParam(), {.queries = 70,
                                               .keys = 70,
                                               .d = 16,
                                               .m = 32,
                                               .causal = causal,
                                               .deviation = deviation,
                                               .seed = seed});
      }
    }
  }
}

TEST_P(EveryTable, FiniteForInputsOfAThousand) {
  for (const bool causal : {false, true}) {
    for (const bool exponential : {false, true}) {
      Spec s{.queries = 130, .keys = 130, .d = 64, .e = 16, .m = 64, .causal = causal, .deviation = 1000};
      if (!exponential) s.family = Family::elementwise, s.epsilon = 1e-3;
      const Answer answer = run(*GetParam(), Problem(s), true);
      for (const auto* part : {&answer.out, &answer.dq, &answer.dk, &answer.dv}) {
        for (double value : *part) ASSERT_TRUE(std::isfinite(value)) << GetParam()->name << " " << s.text();
      }
      EXPECT_LE(largest(answer.out), 1.001 * largest(Problem(s).v.values()));
    }
  }
}

TEST_P(EveryTable, HalfPrecisionInputs) {
  for (const DataType type : {DataType::bfloat16, DataType::float16}) {
    for (const bool causal : {false, true}) {
      check_against_definition(*GetParam(), {.queries = 66, .keys = 66, .causal = causal, .type = type});
      check_against_definition(*GetParam(), {.queries = 66,
                                             .keys = 66,
                                             .causal = causal,
                                             .family = Family::elementwise,
                                             .epsilon = 1e-3,
                                             .type = type});
    }
  }
}

TEST_P(EveryTable, ChunkSizeChangesOnlyRounding) {
  for (const int64_t chunk : {1, 2, 7, 16, 48, 100, 256}) {
    check_against_definition(*GetParam(), {.queries = 150, .keys = 150, .causal = true, .chunk = chunk});
    check_against_definition(*GetParam(), {.queries = 150,
                                           .keys = 150,
                                           .causal = true,
                                           .family = Family::elementwise,
                                           .epsilon = 1e-3,
                                           .chunk = chunk});
  }
}

TEST_P(EveryTable, ThreadsChangeNothing) {
  const Problem problem({.heads = 3, .causal = true, .cu = {0, 40, 41, 200, 203}});
  ThreadExecutor threads(3);
  const Answer one = run(*GetParam(), problem, true), three = run(*GetParam(), problem, true, &threads);
  EXPECT_EQ(one.out, three.out);
  EXPECT_EQ(one.dq, three.dq);
  EXPECT_EQ(one.dk, three.dk);
  EXPECT_EQ(one.dv, three.dv);
}

// Nothing a causal row yields may depend on later tokens, at any magnitude: not even on their scale.
TEST_P(EveryTable, PrefixIsInvariant) {
  for (const bool exponential : {true, false}) {
    for (const double boost : {1.0, 50.0}) {
      Spec s{.queries = 100, .keys = 100, .heads = 1, .d = 16, .m = 32, .causal = true};
      if (!exponential) s.family = Family::elementwise, s.epsilon = 1e-3;
      Problem whole(s);
      for (int64_t r = 50; r < 100; ++r) {
        for (int64_t i = 0; i < s.d; ++i) whole.k.set(r, i, boost * whole.k.at(r, i));
      }
      s.queries = s.keys = 50;
      Problem prefix(s);
      for (int64_t r = 0; r < 50; ++r) {
        for (int64_t i = 0; i < s.d; ++i)
          prefix.q.set(r, i, whole.q.at(r, i)), prefix.k.set(r, i, whole.k.at(r, i));
        for (int64_t i = 0; i < s.e; ++i) prefix.v.set(r, i, whole.v.at(r, i));
      }
      prefix.projection = whole.projection;
      auto long_out = run(*GetParam(), whole, false).out, short_out = run(*GetParam(), prefix, false).out;
      long_out.resize(short_out.size());
      EXPECT_LT(difference(long_out, short_out), 2e-5) << GetParam()->name << " boost " << boost;
    }
  }
}

TEST(Dispatch, ReferenceIsLastAndNamesAreUnique) {
  const auto tables = available_favor_kernels();
  ASSERT_FALSE(tables.empty());
  EXPECT_EQ(tables.back()->name, "reference");
  for (size_t i = 0; i + 1 < tables.size(); ++i) EXPECT_NE(tables[i]->name, tables[i + 1]->name);
}

TEST(Functions, NamesGoBothWaysAndUnknownOnesAreNamed) {
  for (int i = 0; i <= static_cast<int>(Function::identity); ++i) {
    EXPECT_EQ(function_from_name(function_name(static_cast<Function>(i))), static_cast<Function>(i));
  }
  try {
    function_from_name("swish");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("swish"));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("elu+1"));
  }
}

}  // namespace
}  // namespace performer::kernels::test
