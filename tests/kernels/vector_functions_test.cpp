// SPDX-License-Identifier: Apache-2.0
// The vector forms of the element-wise functions against their definition in double, over all float32 numbers
// (every 16,381st of them) and on every target.
#include "performer/kernels/function.h"

// The targets that the kernels leave out (kernels/cpu/favor.cpp).
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/kernels/vector_functions_test.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h

#include "performer/kernels/cpu/functions-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

// values = g(u) and slopes = g'(u) for `count` numbers, a multiple of 16.
void ValuesAndSlopes(Function function, const float* u, float* values, float* slopes, int64_t count) {
  ApplyFunction(function, 0, u, values, count);
  for (int64_t i = 0; i < count; ++i) slopes[i] = 1;
  MultiplyDerivative(function, u, slopes, count);
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();

#if HWY_ONCE
#include <gtest/gtest.h>
#include <hwy/aligned_allocator.h>

#include <bit>
#include <cmath>
#include <numbers>
#include <vector>

#include "tests/kernels/each_target.h"

namespace performer::kernels {
namespace {

HWY_EXPORT(ValuesAndSlopes);

constexpr int64_t kCount = 4096;
constexpr uint64_t kStep = 16381;
constexpr double kNothing = 2e-37;  // what lies below may be 0

// The definitions, where float64 would cancel in a form that does not.
double value_of(Function function, double x) {
  return apply_function(function, x);
}
double slope_of(Function function, double x) {
  const double z = std::exp(-std::abs(x));
  if (function == Function::sigmoid) return z / ((1 + z) * (1 + z));
  if (function == Function::tanh) return 4 * z * z / ((1 + z * z) * (1 + z * z));
  return function_derivative(function, x);
}
// What an error of the slope is relative to.
double slope_size(Function function, double x) {
  if (function != Function::gelu) return std::abs(slope_of(function, x));
  const double density = std::exp(-x * x / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
  return std::max(std::abs(x) * density, std::erfc(-x / std::numbers::sqrt2) / 2);
}

double last_place(double size) {
  return std::ldexp(1.0, std::max(std::ilogb(size), -126) - 23);
}

struct Worst {
  double units = 0;
  float at = 0;
  void see(float x, double got, double exact, double size) {
    const double error = std::abs(got - exact) - kNothing;
    if (error <= 0) return;
    if (const double u = error / last_place(size); !(u <= units)) units = u, at = x;
  }
};

struct Case {
  Function function;
  double value, slope;  // most units in the last place
};

TEST(VectorFunctions, StayWithinTheirBoundsOverAllNumbers) {
  const auto u = hwy::AllocateAligned<float>(kCount), values = hwy::AllocateAligned<float>(kCount),
             slopes = hwy::AllocateAligned<float>(kCount);
  for_each_target([&](const char* target) {
    for (const Case& c : {Case{Function::gelu, 8, 6}, Case{Function::sigmoid, 4, 6},
                          Case{Function::tanh, 3, 6}, Case{Function::cos, 2, 2}, Case{Function::sin, 2, 2}}) {
      Worst value, slope;
      for (uint64_t bits = 0; bits < uint64_t{1} << 32;) {
        for (int64_t i = 0; i < kCount; ++i, bits += kStep)
          u[i] = std::bit_cast<float>(static_cast<uint32_t>(std::min<uint64_t>(bits, 0xFFFFFFFF)));
        HWY_DYNAMIC_DISPATCH(ValuesAndSlopes)(c.function, u.get(), values.get(), slopes.get(), kCount);
        for (int64_t i = 0; i < kCount; ++i) {
          const float x = u[i];
          if (!std::isfinite(x)) continue;
          const double exact = value_of(c.function, x);
          if (std::abs(exact) < 3e38) value.see(x, values[i], exact, std::abs(exact));
          slope.see(x, slopes[i], slope_of(c.function, x), slope_size(c.function, x));
        }
      }
      EXPECT_LE(value.units, c.value) << target << " " << function_name(c.function) << " at " << value.at;
      EXPECT_LE(slope.units, c.slope)
          << target << " slope of " << function_name(c.function) << " at " << slope.at;
    }
  });
}

TEST(VectorFunctions, InfinitiesAndNanAreTreatedAsTheDefinitionDoes) {
  const auto u = hwy::AllocateAligned<float>(16), values = hwy::AllocateAligned<float>(16),
             slopes = hwy::AllocateAligned<float>(16);
  const float infinity = std::numeric_limits<float>::infinity();
  for_each_target([&](const char* target) {
    for (const Function function :
         {Function::gelu, Function::sigmoid, Function::tanh, Function::cos, Function::sin}) {
      for (int64_t i = 0; i < 16; ++i) u[i] = 1;
      u[0] = infinity, u[1] = -infinity, u[2] = std::nanf(""), u[3] = 0;
      HWY_DYNAMIC_DISPATCH(ValuesAndSlopes)(function, u.get(), values.get(), slopes.get(), 16);
      const auto same = [&](float got, float expected, int64_t i) {
        const bool equal =
            std::isnan(expected) ? std::isnan(got) : std::abs(got - expected) <= 2e-7f || got == expected;
        EXPECT_TRUE(equal) << target << " " << function_name(function) << " at " << u[i] << ": " << got
                           << " instead of " << expected;
      };
      for (int64_t i = 0; i < 16; ++i) {
        same(values[i], apply_function(function, u[i]), i);
        same(slopes[i], function_derivative(function, u[i]), i);
      }
    }
  });
}

}  // namespace
}  // namespace performer::kernels
#endif
