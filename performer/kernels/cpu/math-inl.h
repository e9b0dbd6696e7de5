// SPDX-License-Identifier: Apache-2.0
// Vector arithmetic on rows of float32 that are padded to whole vectors: exp, sums, maxima, products.
#if defined(PERFORMER_KERNELS_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_MATH_INL_H_
#undef PERFORMER_KERNELS_CPU_MATH_INL_H_
#else
#define PERFORMER_KERNELS_CPU_MATH_INL_H_
#endif

#include "performer/kernels/cpu/target-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

// The larger and the smaller of x and y; NaN where y is NaN.
HWY_INLINE Vec LargerOf(Vec x, Vec y) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_EMU128 && HWY_TARGET != HWY_SCALAR
  return hn::Max(x, y);  // the instruction returns its second operand where either is NaN
#else
  return hn::IfThenElse(hn::Gt(x, y), x, y);
#endif
}
HWY_INLINE Vec SmallerOf(Vec x, Vec y) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_EMU128 && HWY_TARGET != HWY_SCALAR
  return hn::Min(x, y);
#else
  return hn::IfThenElse(hn::Lt(x, y), x, y);
#endif
}

// exp(x) for x <= 88.3: n = round(x / ln 2), r = x / ln 2 - n with a constant in two parts, 2^r as a
// polynomial on |r| <= 1/2, times 2^n. Relative error below 2 units in the last place; 0 below -87.3; NaN for
// NaN. exp(0) is 1. The coefficients minimise the largest relative error (9.1e-8 before rounding), found by
// reweighted least squares with the constant term held at 1.
HWY_INLINE Vec ExpUnchecked(Vec x) {
  const Tag d;
  const Vec inverse = hn::Set(d, 1.44269504f);
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  const Vec n{_mm512_roundscale_ps(hn::Mul(x, inverse).raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
#else
  const Vec n = hn::Round(hn::Mul(x, inverse));
#endif
#if HWY_NATIVE_FMA
  Vec r = hn::MulSub(x, inverse, n);
  r = hn::MulAdd(x, hn::Set(d, 1.92596302e-8f), r);
#else
  // x / ln 2 would be rounded before n is taken off: take off n ln 2 instead, the larger part of which has 9
  // bits, so that its product with n is exact.
  Vec r = hn::Sub(x, hn::Mul(n, hn::Set(d, 0.693359375f)));
  r = hn::Mul(hn::Add(r, hn::Mul(n, hn::Set(d, 2.12194440e-4f))), inverse);
#endif
  Vec p = hn::Set(d, 1.326472731e-03f);
  p = hn::MulAdd(p, r, hn::Set(d, 9.671512991e-03f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.550733581e-02f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.402224243e-01f));
  p = hn::MulAdd(p, r, hn::Set(d, 6.931470037e-01f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  const __mmask16 normal = _mm512_cmp_ps_mask(x.raw, hn::Set(d, -87.3f).raw, _CMP_NLT_UQ);
  return Vec{_mm512_maskz_scalef_ps(normal, p.raw, n.raw)};
#else
  const hn::RebindToSigned<Tag> di;
  const auto bits = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.3f)), hn::Mul(p, hn::BitCast(d, bits)));
#endif
}

// The same for any x; saturates above 88.3.
HWY_INLINE Vec Exp(Vec x) {
  return ExpUnchecked(SmallerOf(hn::Set(Tag(), 88.3f), x));
}

HWY_INLINE float LargestLane(Vec x) {
  return hn::GetLane(hn::MaxOfLanes(Tag(), x));
}
HWY_INLINE float SumOfLanes(Vec x) {
  return hn::GetLane(hn::SumOfLanes(Tag(), x));
}

HWY_INLINE float MaxOf(const float* x, int64_t padded) {
  const Tag d;
  Vec m = hn::Load(d, x);
  for (int64_t i = kLanes; i < padded; i += kLanes) m = hn::Max(m, hn::Load(d, x + i));
  return LargestLane(m);
}

HWY_INLINE float SumOf(const float* x, int64_t padded) {
  const Tag d;
  Vec s = hn::Zero(d);
  for (int64_t i = 0; i < padded; i += kLanes) s = hn::Add(s, hn::Load(d, x + i));
  return SumOfLanes(s);
}

HWY_INLINE float Dot(const float* x, const float* y, int64_t padded) {
  const Tag d;
  Vec s = hn::Zero(d);
  for (int64_t i = 0; i < padded; i += kLanes) s = hn::MulAdd(hn::Load(d, x + i), hn::Load(d, y + i), s);
  return SumOfLanes(s);
}

HWY_INLINE void Fill(float* x, float value, int64_t padded) {
  const Tag d;
  for (int64_t i = 0; i < padded; i += kLanes) hn::Store(hn::Set(d, value), d, x + i);
}

HWY_INLINE void Copy(const float* x, float* y, int64_t padded) {
  const Tag d;
  for (int64_t i = 0; i < padded; i += kLanes) hn::Store(hn::Load(d, x + i), d, y + i);
}

HWY_INLINE void Multiply(float* x, float factor, int64_t padded) {
  const Tag d;
  const Vec f = hn::Set(d, factor);
  for (int64_t i = 0; i < padded; i += kLanes) hn::Store(hn::Mul(hn::Load(d, x + i), f), d, x + i);
}

// x *= y
HWY_INLINE void MultiplyRow(float* x, const float* y, int64_t padded) {
  const Tag d;
  for (int64_t i = 0; i < padded; i += kLanes)
    hn::Store(hn::Mul(hn::Load(d, x + i), hn::Load(d, y + i)), d, x + i);
}

HWY_INLINE void AddConstant(float a, float* x, int64_t padded) {
  const Tag d;
  for (int64_t i = 0; i < padded; i += kLanes)
    hn::Store(hn::Add(hn::Set(d, a), hn::Load(d, x + i)), d, x + i);
}

// y += a x
HWY_INLINE void Axpy(float a, const float* x, float* y, int64_t padded) {
  const Tag d;
  const Vec f = hn::Set(d, a);
  for (int64_t i = 0; i < padded; i += kLanes)
    hn::Store(hn::MulAdd(f, hn::Load(d, x + i), hn::Load(d, y + i)), d, y + i);
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
