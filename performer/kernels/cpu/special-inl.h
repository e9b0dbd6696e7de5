// SPDX-License-Identifier: Apache-2.0
// Sines, cosines and the upper tail of the normal distribution on vectors of float32. Polynomials minimise
// the largest relative error, found by reweighted least squares; tests/kernels/function_test.cpp holds each
// bound that is stated here.
#if defined(PERFORMER_KERNELS_CPU_SPECIAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_SPECIAL_INL_H_
#undef PERFORMER_KERNELS_CPU_SPECIAL_INL_H_
#else
#define PERFORMER_KERNELS_CPU_SPECIAL_INL_H_
#endif

#include "performer/kernels/cpu/math-inl.h"
#include "performer/kernels/cpu/support.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

// c[0] + c[1] x + ... + c[kCount - 1] x^(kCount - 1)
template <int kCount>
HWY_INLINE Vec Polynomial(Vec x, const float (&c)[kCount]) {
  const Tag d;
  Vec sum = hn::Set(d, c[kCount - 1]);
  for (int k = kCount - 2; k >= 0; --k) sum = hn::MulAdd(sum, x, hn::Set(d, c[k]));
  return sum;
}

struct Wave {
  Vec sine, cosine;
};

// Angles up to here are reduced in vectors; larger ones, and what is not finite, go one by one.
constexpr float kLargestAngle = 131072;

// x - n pi / 2 for |x| <= kLargestAngle. With fused multiply-adds pi / 2 is held in three parts, and only the
// last two subtractions round, relative to what they leave. Elsewhere double precision takes their place.
HWY_INLINE Vec LessQuarters(Vec x, Vec n) {
  const Tag d;
#if HWY_NATIVE_FMA
  Vec r = hn::NegMulAdd(n, hn::Set(d, 1.57079637f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -4.37113883e-08f), r);
  return hn::NegMulAdd(n, hn::Set(d, -1.71512451e-15f), r);
#else
  HWY_ALIGN float angle[kLanes], quarters[kLanes];
  hn::Store(x, d, angle);
  hn::Store(n, d, quarters);
  for (int64_t i = 0; i < kLanes; ++i) {
    // The first part has 33 bits, so that its product with a whole number below 2^20 is exact.
    const double r = angle[i] - quarters[i] * 0x1.921fb544p+0;
    angle[i] = static_cast<float>(r - quarters[i] * 0x1.0b4611a626331p-34);
  }
  return hn::Load(d, angle);
#endif
}

inline HWY_NOINLINE void FarWaves(const float* x, float* sine, float* cosine) {
  for (int64_t i = 0; i < kLanes; ++i) {
    if (HWY_MAX(x[i], -x[i]) <= kLargestAngle) continue;
    sine[i] = cpu::ElementFunction(Function::sin, x[i]);
    cosine[i] = cpu::ElementFunction(Function::cos, x[i]);
  }
}

// Sine and cosine of any x, each within 2 units in its last place; NaN for what is not finite.
HWY_INLINE Wave SineAndCosine(Vec x) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  const Vec n = hn::Round(hn::Mul(x, hn::Set(d, 0.636619772f)));
  const Vec r = LessQuarters(x, n), z = hn::Mul(r, r);
  constexpr float kSine[] = {-0.166666538f, 0.00833209511f, -0.0001950554f};
  constexpr float kCosine[] = {0.0416666418f, -0.00138871302f, 2.44120856e-05f};
  const Vec sine = hn::MulAdd(hn::Mul(r, z), Polynomial(z, kSine), r);
  const Vec cosine =
      hn::MulAdd(hn::Mul(z, z), Polynomial(z, kCosine), hn::NegMulAdd(z, hn::Set(d, 0.5f), hn::Set(d, 1.0f)));
  // Quarter q turns (sine, cosine) into (cosine, -sine), (-sine, -cosine), (-cosine, sine).
  const auto q = hn::ConvertTo(di, n), one = hn::Set(di, 1), two = hn::Set(di, 2);
  const auto odd = hn::RebindMask(d, hn::Eq(hn::And(q, one), one));
  const auto sine_sign = hn::ShiftLeft<30>(hn::And(q, two));
  const auto cosine_sign = hn::ShiftLeft<30>(hn::And(hn::Add(q, one), two));
  Wave wave{hn::Xor(hn::IfThenElse(odd, cosine, sine), hn::BitCast(d, sine_sign)),
            hn::Xor(hn::IfThenElse(odd, sine, cosine), hn::BitCast(d, cosine_sign))};
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Le(hn::Abs(x), hn::Set(d, kLargestAngle))))) {
    HWY_ALIGN float angle[kLanes], sines[kLanes], cosines[kLanes];
    hn::Store(x, d, angle);
    hn::Store(wave.sine, d, sines);
    hn::Store(wave.cosine, d, cosines);
    FarWaves(angle, sines, cosines);
    wave = {hn::Load(d, sines), hn::Load(d, cosines)};
  }
  return wave;
}

// The normal distribution at a >= 0: the probability of more than a, and the density at a.
struct NormalTail {
  Vec beyond, density;
};

// The density is exp(-a^2 / 2) with a^2 in two parts; the tail is the density times a polynomial for their
// quotient, and near 0 an odd polynomial taken from 1/2. Both within 8 units in the last place where they are
// at least 1e-37; what is smaller may be 0, and is at infinity; NaN for NaN.
HWY_INLINE NormalTail TailOf(Vec a) {
  const Tag d;
  const Vec square = hn::Mul(a, a);
#if HWY_NATIVE_FMA
  const Vec rest = hn::MulSub(a, a, square);
#else
  const hn::RebindToUnsigned<Tag> du;
  const Vec high = hn::BitCast(d, hn::And(hn::BitCast(du, a), hn::Set(du, 0xFFFFF000u)));
  const Vec low = hn::Sub(a, high);
  const Vec cross = hn::Add(hn::Sub(hn::Mul(high, high), square), hn::Mul(hn::Add(high, high), low));
  const Vec rest = hn::MulAdd(low, low, cross);
#endif
  const Vec half = hn::Set(d, 0.5f);
  const Vec power = ExpUnchecked(hn::Neg(hn::Mul(half, square)));
  // Far out the parts of the square are not numbers, but nothing is left of the tail.
  const auto far = hn::Gt(a, hn::Set(d, 14.5f));
  const Vec bell = hn::IfThenZeroElse(far, hn::NegMulAdd(power, hn::Mul(half, rest), power));
  const Vec t = hn::Div(hn::Sub(a, hn::Set(d, 3.0f)), hn::Add(a, hn::Set(d, 3.0f)));
  constexpr float kQuotient[] = {0.121513948f,    -0.206402615f,  0.123225018f,     -0.0462133288f,
                                 0.00613213331f,  0.00290465448f, -0.000983801787f, -0.000339535036f,
                                 0.000115457515f, 5.35751569e-05f};
  const Vec beyond = hn::IfThenZeroElse(far, hn::Mul(bell, Polynomial(t, kQuotient)));
  constexpr float kCentral[] = {0.398942292f,    -0.0664905384f,  0.00997416303f,
                                -0.00118801999f, 0.000115018847f, -8.1695789e-06f};
  const Vec central = hn::NegMulAdd(a, Polynomial(square, kCentral), half);
  return {hn::IfThenElse(hn::Lt(a, hn::Set(d, 1.0f)), central, beyond),
          hn::Mul(bell, hn::Set(d, 0.398942280f))};
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
