// SPDX-License-Identifier: Apache-2.0
#include "performer/kernels/block.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "performer/kernels/cpu/block.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

#include "performer/kernels/cpu/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using elements::Float;
using elements::Lanes;
using elements::Load;
using elements::LoadPart;
using elements::StorePart;
using elements::Vector;

HWY_INLINE Vector Constant(float value) {
  return hn::Set(Float(), value);
}

// gelu(x) = x s(t) with the logistic function s and t = 2 sqrt(2/pi) (x + 0.044715 x^3) = x (a + b x^2).
struct GeluTanh {
  static constexpr float kA = 1.5957691216057308f, kB = 0.07135481282664164f;
  static constexpr float kLargest = 88;  // whose exponential is a float
  static HWY_INLINE Vector Gate(Vector x) {
    const Vector t = hn::Mul(x, hn::MulAdd(hn::Mul(x, x), Constant(kB), Constant(kA)));
    const Vector s =
        hn::Div(Constant(1), hn::Add(Constant(1), hn::Exp(Float(), hn::Min(hn::Neg(t), Constant(kLargest)))));
    return hn::IfThenElseZero(hn::Gt(t, Constant(-kLargest)), s);
  }
  static HWY_INLINE Vector Value(Vector x) { return hn::Mul(x, Gate(x)); }
  static HWY_INLINE Vector Slope(Vector x) {
    const Vector s = Gate(x);
    const Vector dt = hn::MulAdd(hn::Mul(x, x), Constant(3 * kB), Constant(kA));
    // At large |x| the product of s (1 - s) = 0 with an overflown dt must not be met.
    const Vector bend = hn::Mul(hn::Mul(s, hn::Sub(Constant(1), s)), hn::Mul(x, dt));
    return hn::Add(s, hn::IfThenElseZero(hn::Lt(hn::Abs(x), Constant(1e3f)), bend));
  }
};

struct Relu {
  static HWY_INLINE Vector Value(Vector x) {  // NaN stays
    return hn::IfThenElse(hn::Lt(x, Constant(0)), Constant(0), x);
  }
  static HWY_INLINE Vector Slope(Vector x) { return hn::IfThenElseZero(hn::Gt(x, Constant(0)), Constant(1)); }
};

// Calls body(row, column, count, factors of dropout) for all vectors of the rows; a row's last one may count
// less than a vector.
template <class Body>
HWY_INLINE void ForEachMasked(const MaskedRows& at, const Body& body) {
  HWY_ALIGN float buffer[elements::kPiece + 2 * elements::kBlock];
  const cpu::MaskSeed seed = cpu::seed_of(at.mask);
  const bool drops = at.mask.probability > 0;
  const int64_t lanes = Lanes();
  for (int64_t row = 0; row < at.rows; ++row) {
    for (int64_t begin = 0; begin < at.columns; begin += elements::kPiece) {
      const int64_t count = std::min(at.columns - begin, elements::kPiece);
      if (!drops) {
        for (int64_t i = 0; i < count; i += lanes)
          body(row, begin + i, std::min(lanes, count - i), Constant(1));
        continue;
      }
      const float* factors = elements::Factors(seed, at.mask_first + row * at.columns + begin, count, buffer);
      for (int64_t i = 0; i < count; i += lanes)
        body(row, begin + i, std::min(lanes, count - i), Load(factors + i));
    }
  }
}

HWY_INLINE void AddTo(float* sums, Vector value, int64_t count) {
  StorePart(hn::Add(LoadPart(sums, count), value), sums, count);
}

template <class F, class T>
void ActivateRows(const ActivationForward& pass) {
  const auto* input = static_cast<const T*>(pass.input);
  auto* output = static_cast<T*>(pass.output);
  const int64_t columns = pass.at.columns;
  ForEachMasked(pass.at, [&](int64_t row, int64_t column, int64_t count, Vector factor) HWY_ATTR {
    const int64_t i = row * columns + column;
    const Vector x = hn::Add(LoadPart(input + i, count), LoadPart(pass.bias + column, count));
    StorePart(hn::Mul(F::Value(x), factor), output + i, count);
  });
}

template <class F, class T>
void ActivateRowsBackward(const ActivationBackward& pass) {
  const auto* input = static_cast<const T*>(pass.forward.input);
  const auto* gradient = static_cast<const T*>(pass.output_gradient);
  auto* result = static_cast<T*>(pass.input_gradient);
  const float* bias = pass.forward.bias;
  const int64_t columns = pass.forward.at.columns;
  ForEachMasked(pass.forward.at, [&](int64_t row, int64_t column, int64_t count, Vector factor) HWY_ATTR {
    const int64_t i = row * columns + column;
    const Vector x = hn::Add(LoadPart(input + i, count), LoadPart(bias + column, count));
    const Vector g = hn::Mul(hn::Mul(LoadPart(gradient + i, count), factor), F::Slope(x));
    StorePart(g, result + i, count);
    AddTo(pass.bias_gradient + column, g, count);
  });
}

template <class T>
void BranchRows(const BranchForward& pass) {
  const auto* branch = static_cast<const T*>(pass.branch);
  const int64_t columns = pass.at.columns;
  ForEachMasked(pass.at, [&](int64_t row, int64_t column, int64_t count, Vector factor) HWY_ATTR {
    const int64_t i = row * columns + column;
    Vector y = LoadPart(branch + i, count);
    if (pass.bias != nullptr) y = hn::Add(y, LoadPart(pass.bias + column, count));
    StorePart(hn::MulAdd(y, factor, LoadPart(pass.input + i, count)), pass.output + i, count);
  });
}

template <class T>
void BranchRowsBackward(const BranchBackward& pass) {
  auto* result = static_cast<T*>(pass.branch_gradient);
  const int64_t columns = pass.at.columns;
  ForEachMasked(pass.at, [&](int64_t row, int64_t column, int64_t count, Vector factor) HWY_ATTR {
    const int64_t i = row * columns + column;
    const Vector g = hn::Mul(LoadPart(pass.output_gradient + i, count), factor);
    StorePart(g, result + i, count);
    if (pass.bias_gradient != nullptr) AddTo(pass.bias_gradient + column, g, count);
  });
}

void ForwardActivation(const ActivationForward& pass) {
  const bool wide = pass.type == DataType::float32;
  if (pass.activation == Activation::relu)
    wide ? ActivateRows<Relu, float>(pass) : ActivateRows<Relu, uint16_t>(pass);
  else
    wide ? ActivateRows<GeluTanh, float>(pass) : ActivateRows<GeluTanh, uint16_t>(pass);
}

void BackwardActivation(const ActivationBackward& pass) {
  const bool wide = pass.forward.type == DataType::float32;
  if (pass.forward.activation == Activation::relu)
    wide ? ActivateRowsBackward<Relu, float>(pass) : ActivateRowsBackward<Relu, uint16_t>(pass);
  else
    wide ? ActivateRowsBackward<GeluTanh, float>(pass) : ActivateRowsBackward<GeluTanh, uint16_t>(pass);
}

void ForwardBranch(const BranchForward& pass) {
  pass.type == DataType::float32 ? BranchRows<float>(pass) : BranchRows<uint16_t>(pass);
}
void BackwardBranch(const BranchBackward& pass) {
  pass.type == DataType::float32 ? BranchRowsBackward<float>(pass) : BranchRowsBackward<uint16_t>(pass);
}

}  // namespace HWY_NAMESPACE
}  // namespace performer::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace performer::kernels {

HWY_EXPORT(ForwardActivation);
HWY_EXPORT(BackwardActivation);
HWY_EXPORT(ForwardBranch);
HWY_EXPORT(BackwardBranch);

void activation_forward(const ActivationForward& pass) {
  HWY_DYNAMIC_DISPATCH(ForwardActivation)(pass);
}
void activation_backward(const ActivationBackward& pass) {
  HWY_DYNAMIC_DISPATCH(BackwardActivation)(pass);
}
void branch_forward(const BranchForward& pass) {
  HWY_DYNAMIC_DISPATCH(ForwardBranch)(pass);
}
void branch_backward(const BranchBackward& pass) {
  HWY_DYNAMIC_DISPATCH(BackwardBranch)(pass);
}

}  // namespace performer::kernels
#endif
