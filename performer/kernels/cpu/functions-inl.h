// SPDX-License-Identifier: Apache-2.0
// The functions of the element-wise family and their derivatives on rows of float32.
#if defined(PERFORMER_KERNELS_CPU_FUNCTIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_FUNCTIONS_INL_H_
#undef PERFORMER_KERNELS_CPU_FUNCTIONS_INL_H_
#else
#define PERFORMER_KERNELS_CPU_FUNCTIONS_INL_H_
#endif

#include "performer/kernels/cpu/math-inl.h"
#include "performer/kernels/cpu/support.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {
using cpu::ElementDerivative;
using cpu::ElementFunction;

// phi = g(u) + eps over `padded` elements; u and phi may be the same memory. Functions without a vector form
// go element by element.
HWY_NOINLINE void ApplyFunction(Function function, float epsilon, const float* u, float* phi,
                                int64_t padded) {
  const Tag d;
  const Vec eps = hn::Set(d, epsilon), zero = hn::Zero(d), one = hn::Set(d, 1.0f);
  const Vec slope = hn::Set(d, cpu::kLeakySlopeFloat);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec x = hn::Load(d, u + i);
    Vec y;
    switch (function) {
      case Function::relu:
        y = hn::Max(x, zero);
        break;
      case Function::elu1:
        y = hn::IfThenElse(hn::Gt(x, zero), hn::Add(x, one), Exp(x));
        break;
      case Function::square:
        y = hn::Mul(x, x);
        break;
      case Function::abs:
        y = hn::Abs(x);
        break;
      case Function::requ:
        y = hn::Mul(hn::Max(x, zero), x);
        break;
      case Function::identity:
        y = x;
        break;
      case Function::exp:
        y = Exp(x);
        break;
      case Function::leaky_relu:
        y = hn::IfThenElse(hn::Gt(x, zero), x, hn::Mul(x, slope));
        break;
      default:
        for (int64_t k = i; k < i + kLanes; ++k) phi[k] = ElementFunction(function, u[k]);
        y = hn::Load(d, phi + i);
    }
    hn::Store(hn::Add(y, eps), d, phi + i);
  }
}

// gradient *= g'(u)
HWY_NOINLINE void MultiplyDerivative(Function function, const float* u, float* gradient, int64_t padded) {
  const Tag d;
  const Vec zero = hn::Zero(d), slope = hn::Set(d, cpu::kLeakySlopeFloat);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec x = hn::Load(d, u + i), g = hn::Load(d, gradient + i);
    Vec y;
    switch (function) {
      case Function::relu:
        y = hn::IfThenElseZero(hn::Gt(x, zero), g);
        break;
      case Function::elu1:
        y = hn::IfThenElse(hn::Gt(x, zero), g, hn::Mul(g, Exp(x)));
        break;
      case Function::square:
        y = hn::Mul(g, hn::Add(x, x));
        break;
      case Function::abs:
        y = hn::IfThenElse(hn::Gt(x, zero), g, hn::IfThenElseZero(hn::Lt(x, zero), hn::Neg(g)));
        break;
      case Function::requ:
        y = hn::IfThenElseZero(hn::Gt(x, zero), hn::Mul(g, hn::Add(x, x)));
        break;
      case Function::identity:
        y = g;
        break;
      case Function::exp:
        y = hn::Mul(g, Exp(x));
        break;
      case Function::leaky_relu:
        y = hn::IfThenElse(hn::Gt(x, zero), g, hn::Mul(g, slope));
        break;
      default:
        for (int64_t k = i; k < i + kLanes; ++k) gradient[k] *= ElementDerivative(function, u[k]);
        y = hn::Load(d, gradient + i);
    }
    hn::Store(y, d, gradient + i);
  }
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
