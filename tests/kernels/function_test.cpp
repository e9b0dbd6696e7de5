// SPDX-License-Identifier: Apache-2.0
// Every element-wise function: its derivative by differences, and its vector form against its definition.
#include "performer/kernels/function.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/problem.h"

namespace performer::kernels::test {
namespace {

constexpr Function kFunctions[] = {Function::relu,      Function::elu1, Function::square,   Function::abs,
                                   Function::requ,      Function::gelu, Function::sigmoid,  Function::tanh,
                                   Function::cos,       Function::sin,  Function::identity, Function::exp,
                                   Function::leaky_relu};

TEST(ElementFunctions, NamesGoBothWays) {
  for (const Function function : kFunctions)
    EXPECT_EQ(function_from_name(function_name(function)), function) << function_name(function);
  EXPECT_EQ(function_from_name("leaky-relu"), Function::leaky_relu);
  EXPECT_EQ(function_from_name("exp"), Function::exp);
}

TEST(ElementFunctions, DerivativesAreSlopes) {
  for (const Function function : kFunctions) {
    for (const double u : {-3.0, -1.1, -0.2, 0.3, 0.9, 2.5}) {
      const double slope = (apply_function(function, u + 1e-6) - apply_function(function, u - 1e-6)) / 2e-6;
      EXPECT_NEAR(function_derivative(function, u), slope, 1e-7 * std::max(1.0, std::abs(slope)))
          << function_name(function) << " at " << u;
    }
  }
  EXPECT_EQ(apply_function(Function::leaky_relu, -2.0), -0.02);
  EXPECT_EQ(function_derivative(Function::leaky_relu, 0.0), 0.01);
}

class EveryTableFunctions : public ::testing::TestWithParam<const FavorKernels*> {};
INSTANTIATE_TEST_SUITE_P(Targets, EveryTableFunctions, ::testing::ValuesIn(available_favor_kernels()),
                         [](const auto& info) { return info.param->name; });

// As tests/kernels/favor_test.cpp holds the others: at most twice the error of plain float, and 16 units in
// the last place of the largest term.
TEST_P(EveryTableFunctions, ExpAndLeakyReluMatchTheDefinition) {
  for (const Function function : {Function::exp, Function::leaky_relu}) {
    for (const bool causal : {false, true}) {
      for (const int64_t length : {1, 17, 70}) {
        Spec spec{.queries = length,
                  .keys = length,
                  .causal = causal,
                  .mask = true,
                  .family = Family::elementwise,
                  .function = function,
                  .epsilon = function == Function::exp ? 0.01 : 3,
                  .deviation = 0.3,
                  .seed = static_cast<uint64_t>(length)};
        const Problem problem(spec);
        const Answer exact = quadratic<double>(problem), plain = quadratic<float>(problem);
        const Answer got = run(*GetParam(), problem, true);
        const auto close = [&](const char* what, const std::vector<double>& a, const std::vector<double>& b,
                               const std::vector<double>& c) {
          EXPECT_LE(difference(a, b), 2 * difference(c, b) + 16 * 0x1p-23 * std::max(10.0, largest(b)))
              << what << " of " << GetParam()->name << " " << problem.spec.text();
        };
        close("out", got.out, exact.out, plain.out);
        close("dq", got.dq, exact.dq, plain.dq);
        close("dk", got.dk, exact.dk, plain.dk);
        close("dv", got.dv, exact.dv, plain.dv);
      }
    }
  }
}

}  // namespace
}  // namespace performer::kernels::test
