// SPDX-License-Identifier: Apache-2.0
// The functions g of the element-wise family and their derivatives on rows of float32: the vector forms of
// kernels/function.h. Values and derivatives are within 8 units in the last place for gelu (its derivative:
// of the larger of its two terms), within 6 for sigmoid and tanh and within 2 for sin and cos; what lies
// below 1e-37 may be 0. tests/kernels/vector_functions_test.cpp holds them to that.
#if defined(PERFORMER_KERNELS_CPU_FUNCTIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_FUNCTIONS_INL_H_
#undef PERFORMER_KERNELS_CPU_FUNCTIONS_INL_H_
#else
#define PERFORMER_KERNELS_CPU_FUNCTIONS_INL_H_
#endif

#include "performer/kernels/cpu/math-inl.h"
#include "performer/kernels/cpu/special-inl.h"
#include "performer/kernels/cpu/support.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

// One struct a function: Value(x) = g(x) and Chain(x, gradient) = gradient * g'(x).
namespace functions {

HWY_INLINE Vec Constant(float value) {
  return hn::Set(Tag(), value);
}
HWY_INLINE Vec Zero() {
  return hn::Zero(Tag());
}
HWY_INLINE auto IsPositive(Vec x) {
  return hn::Gt(x, Zero());
}

struct Relu {
  static HWY_INLINE Vec Value(Vec x) { return hn::Max(x, Zero()); }
  static HWY_INLINE Vec Chain(Vec x, Vec g) { return hn::IfThenElseZero(IsPositive(x), g); }
};
struct Elu1 {
  static HWY_INLINE Vec Value(Vec x) {
    return hn::IfThenElse(IsPositive(x), hn::Add(x, Constant(1)), Exp(x));
  }
  static HWY_INLINE Vec Chain(Vec x, Vec g) { return hn::IfThenElse(IsPositive(x), g, hn::Mul(g, Exp(x))); }
};
struct Square {
  static HWY_INLINE Vec Value(Vec x) { return hn::Mul(x, x); }
  static HWY_INLINE Vec Chain(Vec x, Vec g) { return hn::Mul(g, hn::Add(x, x)); }
};
struct Abs {
  static HWY_INLINE Vec Value(Vec x) { return hn::Abs(x); }
  static HWY_INLINE Vec Chain(Vec x, Vec g) {
    return hn::IfThenElse(IsPositive(x), g, hn::IfThenElseZero(hn::Lt(x, Zero()), hn::Neg(g)));
  }
};
struct Requ {
  static HWY_INLINE Vec Value(Vec x) { return hn::Mul(hn::Max(x, Zero()), x); }
  static HWY_INLINE Vec Chain(Vec x, Vec g) {
    return hn::IfThenElseZero(IsPositive(x), hn::Mul(g, hn::Add(x, x)));
  }
};
struct Identity {
  static HWY_INLINE Vec Value(Vec x) { return x; }
  static HWY_INLINE Vec Chain(Vec, Vec g) { return g; }
};
struct Exponential {
  static HWY_INLINE Vec Value(Vec x) { return Exp(x); }
  static HWY_INLINE Vec Chain(Vec x, Vec g) { return hn::Mul(g, Exp(x)); }
};
struct LeakyRelu {
  static HWY_INLINE Vec Value(Vec x) { return Chain(x, x); }
  static HWY_INLINE Vec Chain(Vec x, Vec g) {
    return hn::IfThenElse(IsPositive(x), g, hn::Mul(g, Constant(cpu::kLeakySlopeFloat)));
  }
};

// x Phi(x) with the normal distribution Phi. As by the definition, minus infinity gives NaN (its product with
// 0), and so does the derivative at either infinity.
struct Gelu {
  static HWY_INLINE Vec Value(Vec x) {
    const Vec beyond = TailOf(hn::Abs(x)).beyond;
    return hn::Mul(x, hn::IfThenElse(IsPositive(x), hn::Sub(Constant(1), beyond), beyond));
  }
  static HWY_INLINE Vec Chain(Vec x, Vec g) {
    const NormalTail tail = TailOf(hn::Abs(x));
    const Vec below = hn::IfThenElse(IsPositive(x), hn::Sub(Constant(1), tail.beyond), tail.beyond);
    return hn::Mul(g, hn::MulAdd(x, tail.density, below));
  }
};

// With z = exp(-|x|): 1 / (1 + z) for x >= 0 and z / (1 + z) below, so that nothing overflows or cancels.
struct Sigmoid {
  static HWY_INLINE Vec Value(Vec x) {
    const Vec z = ExpUnchecked(hn::Neg(hn::Abs(x)));
    return hn::Div(hn::IfThenElse(hn::Lt(x, Zero()), z, Constant(1)), hn::Add(Constant(1), z));
  }
  static HWY_INLINE Vec Chain(Vec x, Vec g) {
    const Vec z = ExpUnchecked(hn::Neg(hn::Abs(x))), sum = hn::Add(Constant(1), z);
    return hn::Mul(g, hn::Div(z, hn::Mul(sum, sum)));
  }
};

// With z = exp(-2 |x|): (1 - z) / (1 + z), and a polynomial near 0, where that cancels; the derivative is
// 4 z / (1 + z)^2.
struct Tanh {
  static HWY_INLINE Vec Value(Vec x) {
    const Tag d;
    const Vec a = hn::Abs(x), square = hn::Mul(x, x), z = ExpUnchecked(hn::Mul(Constant(-2), a));
    constexpr float kNear[] = {-0.333332807f, 0.133314088f, -0.053737063f, 0.0206309054f, -0.00569634186f};
    const Vec near = hn::MulAdd(hn::Mul(x, square), Polynomial(square, kNear), x);
    const Vec far = hn::Div(hn::Sub(Constant(1), z), hn::Add(Constant(1), z));
    return hn::IfThenElse(hn::Lt(a, hn::Set(d, 0.625f)), near, hn::CopySign(far, x));
  }
  static HWY_INLINE Vec Chain(Vec x, Vec g) {
    const Vec z = ExpUnchecked(hn::Mul(Constant(-2), hn::Abs(x))), sum = hn::Add(Constant(1), z);
    return hn::Mul(g, hn::Div(hn::Mul(Constant(4), z), hn::Mul(sum, sum)));
  }
};

struct Cosine {
  static HWY_INLINE Vec Value(Vec x) { return SineAndCosine(x).cosine; }
  static HWY_INLINE Vec Chain(Vec x, Vec g) { return hn::Mul(g, hn::Neg(SineAndCosine(x).sine)); }
};
struct Sine {
  static HWY_INLINE Vec Value(Vec x) { return SineAndCosine(x).sine; }
  static HWY_INLINE Vec Chain(Vec x, Vec g) { return hn::Mul(g, SineAndCosine(x).cosine); }
};

}  // namespace functions

// Calls body(functions::X()) for the struct of the function.
template <class Body>
HWY_INLINE void WithFunction(Function function, const Body& body) {
  switch (function) {
    case Function::relu:
      return body(functions::Relu());
    case Function::elu1:
      return body(functions::Elu1());
    case Function::square:
      return body(functions::Square());
    case Function::abs:
      return body(functions::Abs());
    case Function::requ:
      return body(functions::Requ());
    case Function::gelu:
      return body(functions::Gelu());
    case Function::sigmoid:
      return body(functions::Sigmoid());
    case Function::tanh:
      return body(functions::Tanh());
    case Function::cos:
      return body(functions::Cosine());
    case Function::sin:
      return body(functions::Sine());
    case Function::identity:
      return body(functions::Identity());
    case Function::exp:
      return body(functions::Exponential());
    case Function::leaky_relu:
      return body(functions::LeakyRelu());
  }
}

// The loops are functions, since clang forgets the target of a generic lambda when it instantiates it.
template <class G>
void ApplyEach(float epsilon, const float* u, float* phi, int64_t padded) {
  const Tag d;
  const Vec eps = hn::Set(d, epsilon);
  for (int64_t i = 0; i < padded; i += kLanes)
    hn::Store(hn::Add(G::Value(hn::Load(d, u + i)), eps), d, phi + i);
}

template <class G>
void MultiplyEach(const float* u, float* gradient, int64_t padded) {
  const Tag d;
  for (int64_t i = 0; i < padded; i += kLanes)
    hn::Store(G::Chain(hn::Load(d, u + i), hn::Load(d, gradient + i)), d, gradient + i);
}

// phi = g(u) + eps over `padded` elements; u and phi may be the same memory.
inline HWY_NOINLINE void ApplyFunction(Function function, float epsilon, const float* u, float* phi,
                                       int64_t padded) {
  WithFunction(function, [&](auto g) { ApplyEach<decltype(g)>(epsilon, u, phi, padded); });
}

// gradient *= g'(u)
inline HWY_NOINLINE void MultiplyDerivative(Function function, const float* u, float* gradient,
                                            int64_t padded) {
  WithFunction(function, [&](auto g) { MultiplyEach<decltype(g)>(u, gradient, padded); });
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
