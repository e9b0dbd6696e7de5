// SPDX-License-Identifier: Apache-2.0
// Every kernel table against the quadratic definition in double, with a bound derived from the same
// computation in plain float: a kernel may err at most twice as much, plus a few units in the last place of
// the result.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "tests/kernels/problem.h"

namespace performer::kernels::test {
namespace {

// What rounding alone may do. `plain` is the same computation in plain float, `size` that of the terms that
// are summed (which may cancel). A log-weight of size U is rounded to U/2 units, which is a relative error of
// the weight, wherever the exponent is split into the query's, the key's and a scale's part.
struct Bound {
  double unit, log_weight;
  double operator()(double plain_error, double size) const {
    return 2 * plain_error + (16 + log_weight / 2) * unit * size;
  }
};

void expect_close(const char* what, const std::vector<double>& got, const std::vector<double>& exact,
                  const std::vector<double>& plain, double terms, const Bound& bound,
                  const std::string& text) {
  EXPECT_LE(difference(got, exact), bound(difference(plain, exact), std::max(terms, largest(exact))))
      << what << " of " << text << ", largest value " << largest(exact);
}

// Largest |u| of any query plus that of any key.
double largest_log_weight(const Problem& problem) {
  if (problem.spec.family == Family::elementwise) return 0;
  double row = 1, norm_q = 0, norm_k = 0;
  for (size_t f = 0; f < problem.projection.size(); f += static_cast<size_t>(problem.spec.d)) {
    double sum = 0;
    for (int64_t i = 0; i < problem.spec.d; ++i) sum += std::pow(problem.projection[f + i], 2);
    row = std::max(row, std::sqrt(sum));
  }
  const auto norm = [&](const Buffer& x) {
    double most = 0;
    for (int64_t r = 0; r < x.rows(); ++r) {
      double sum = 0;
      for (int64_t i = 0; i < x.size(); ++i) sum += std::pow(problem.map().scale * x.at(r, i), 2);
      most = std::max(most, std::sqrt(sum));
    }
    return most;
  };
  norm_q = norm(problem.q), norm_k = norm(problem.k);
  return row * (norm_q + norm_k) + norm_k * norm_k / 2;
}

void check_against_definition(const FavorKernels& kernels, const Spec& spec) {
  const Problem problem(spec);
  const Answer exact = quadratic<double>(problem), plain = quadratic<float>(problem);
  const Answer got = run(kernels, problem, true);
  const double unit = spec.type == DataType::float32    ? 0x1p-23
                      : spec.type == DataType::bfloat16 ? 0x1p-8
                                                        : 0x1p-11;
  // The log-weights are float32 whatever the inputs are.
  const Bound bound{unit, largest_log_weight(problem) * 0x1p-23 / unit};
  const std::string text = kernels.name + " " + spec.text();
  double projection = 1;
  for (float x : problem.projection) projection = std::max<double>(projection, std::abs(x));
  const double pair = largest(problem.g.values()) * largest(problem.v.values());
  const double terms = pair * projection * problem.map().scale;
  expect_close("out", got.out, exact.out, plain.out, 0, bound, text);
  expect_close("dq", got.dq, exact.dq, plain.dq, terms, bound, text);
  expect_close("dk", got.dk, exact.dk, plain.dk, terms, bound, text);
  expect_close("dv", got.dv, exact.dv, plain.dv, 0, bound, text);
}

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
