// SPDX-License-Identifier: Apache-2.0
// Vector arithmetic of the kernels: exp, rows of features, and one small matrix product. Compiled once a
// target.
#if defined(PERFORMER_KERNELS_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_MATH_INL_H_
#undef PERFORMER_KERNELS_CPU_MATH_INL_H_
#else
#define PERFORMER_KERNELS_CPU_MATH_INL_H_
#endif

#include <hwy/highway.h>

#include "performer/kernels/cpu/support.h"

HWY_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using cpu::ElementDerivative;
using cpu::ElementFunction;

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;
constexpr int64_t kLanes = hn::MaxLanes(Tag());

// exp(x): n = round(x / ln 2), r = x - n ln 2 in two parts, a degree-7 polynomial on |r| <= ln(2)/2, times
// 2^n. Relative error below 2 units in the last place on [-87, 88]; 0 below -87.3, saturated above 88.
HWY_INLINE Vec Exp(Vec x) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  const Vec clamped = hn::Min(hn::Max(x, hn::Set(d, -87.3f)), hn::Set(d, 88.3f));
  const auto n = hn::NearestInt(hn::Mul(clamped, hn::Set(d, 1.44269504f)));
  const Vec nf = hn::ConvertTo(d, n);
  Vec r = hn::NegMulAdd(nf, hn::Set(d, 0.693359375f), clamped);
  r = hn::NegMulAdd(nf, hn::Set(d, -2.12194440e-4f), r);
  Vec p = hn::Set(d, 1.9875691500e-4f);  // minimax coefficients of Cephes' expf (Moshier)
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::MulAdd(p, hn::Mul(r, r), hn::Add(r, hn::Set(d, 1.0f)));
  const Vec power = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127))));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.3f)), hn::Mul(p, power));
}

HWY_INLINE float MaxOf(const float* x, int64_t padded) {
  const Tag d;
  Vec m = hn::Load(d, x);
  for (int64_t i = kLanes; i < padded; i += kLanes) m = hn::Max(m, hn::Load(d, x + i));
  return hn::GetLane(hn::MaxOfLanes(d, m));
}

HWY_INLINE float SumOf(const float* x, int64_t padded) {
  const Tag d;
  Vec s = hn::Zero(d);
  for (int64_t i = 0; i < padded; i += kLanes) s = hn::Add(s, hn::Load(d, x + i));
  return hn::GetLane(hn::SumOfLanes(d, s));
}

HWY_INLINE float Dot(const float* x, const float* y, int64_t padded) {
  const Tag d;
  Vec s = hn::Zero(d);
  for (int64_t i = 0; i < padded; i += kLanes) s = hn::MulAdd(hn::Load(d, x + i), hn::Load(d, y + i), s);
  return hn::GetLane(hn::SumOfLanes(d, s));
}

HWY_INLINE void Fill(float* x, float value, int64_t padded) {
  const Tag d;
  for (int64_t i = 0; i < padded; i += kLanes) hn::Store(hn::Set(d, value), d, x + i);
}

HWY_INLINE void Multiply(float* x, float factor, int64_t padded) {
  const Tag d;
  const Vec f = hn::Set(d, factor);
  for (int64_t i = 0; i < padded; i += kLanes) hn::Store(hn::Mul(hn::Load(d, x + i), f), d, x + i);
}

// y += a x
HWY_INLINE void Axpy(float a, const float* x, float* y, int64_t padded) {
  const Tag d;
  const Vec f = hn::Set(d, a);
  for (int64_t i = 0; i < padded; i += kLanes)
    hn::Store(hn::MulAdd(f, hn::Load(d, x + i), hn::Load(d, y + i)), d, y + i);
}

// y = a x over exactly `count` elements of any alignment.
HWY_INLINE void ScaleRow(const float* x, float a, int64_t count, float* y) {
  const Tag d;
  const Vec f = hn::Set(d, a);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, x + i), f), d, y + i);
  for (; i < count; ++i) y[i] = x[i] * a;
}

// out[c * out_ld + r] = a * x[r * ld + c], in blocks of four by four; any alignment.
HWY_NOINLINE void Transpose(const float* x, int64_t ld, int64_t rows, int64_t columns, float a, float* out,
                            int64_t out_ld) {
  int64_t whole_rows = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d;
  const auto f = hn::Set(d, a);
  whole_rows = rows / 4 * 4;
  const int64_t whole_columns = columns / 4 * 4;
  for (int64_t r = 0; r < whole_rows; r += 4) {
    const float* from = x + r * ld;
    for (int64_t c = 0; c < whole_columns; c += 4) {
      const auto r0 = hn::Mul(hn::LoadU(d, from + c), f), r1 = hn::Mul(hn::LoadU(d, from + ld + c), f);
      const auto r2 = hn::Mul(hn::LoadU(d, from + 2 * ld + c), f),
                 r3 = hn::Mul(hn::LoadU(d, from + 3 * ld + c), f);
      const auto even_low = hn::InterleaveLower(d, r0, r2), odd_low = hn::InterleaveLower(d, r1, r3);
      const auto even_high = hn::InterleaveUpper(d, r0, r2), odd_high = hn::InterleaveUpper(d, r1, r3);
      float* to = out + c * out_ld + r;
      hn::StoreU(hn::InterleaveLower(d, even_low, odd_low), d, to);
      hn::StoreU(hn::InterleaveUpper(d, even_low, odd_low), d, to + out_ld);
      hn::StoreU(hn::InterleaveLower(d, even_high, odd_high), d, to + 2 * out_ld);
      hn::StoreU(hn::InterleaveUpper(d, even_high, odd_high), d, to + 3 * out_ld);
    }
    for (int64_t c = whole_columns; c < columns; ++c) {
      for (int64_t i = 0; i < 4; ++i) out[c * out_ld + r + i] = a * from[i * ld + c];
    }
  }
#endif
  for (int64_t r = whole_rows; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out[c * out_ld + r] = a * x[r * ld + c];
  }
}

// A left factor whose element (i, k) is data[i * row + k * column]: a matrix or its transpose, without a
// copy.
struct Left {
  const float* data;
  int64_t row, column;
};

template <int kRows, int kVecs>
HWY_INLINE void GemmTile(int64_t depth, Left a, const float* HWY_RESTRICT b, int64_t ldb,
                         float* HWY_RESTRICT c, int64_t ldc, bool accumulate) {
  const Tag d;
  Vec sum[kRows][kVecs];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVecs; ++v)
      sum[i][v] = accumulate ? hn::Load(d, c + i * ldc + v * kLanes) : hn::Zero(d);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[kVecs];
    for (int v = 0; v < kVecs; ++v) right[v] = hn::Load(d, b + k * ldb + v * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Vec left = hn::Set(d, a.data[i * a.row + k * a.column]);
      for (int v = 0; v < kVecs; ++v) sum[i][v] = hn::MulAdd(left, right[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVecs; ++v) hn::Store(sum[i][v], d, c + i * ldc + v * kLanes);
  }
}

template <int kVecs>
HWY_NOINLINE void GemmPanel(int64_t rows, int64_t depth, Left a, const float* b, int64_t ldb, float* c,
                            int64_t ldc, bool accumulate) {
  int64_t i = 0;
  const auto at = [&](int64_t row) { return Left{a.data + row * a.row, a.row, a.column}; };
  for (; i + 6 <= rows; i += 6) GemmTile<6, kVecs>(depth, at(i), b, ldb, c + i * ldc, ldc, accumulate);
  if (i + 4 <= rows) GemmTile<4, kVecs>(depth, at(i), b, ldb, c + i * ldc, ldc, accumulate), i += 4;
  if (i + 2 <= rows) GemmTile<2, kVecs>(depth, at(i), b, ldb, c + i * ldc, ldc, accumulate), i += 2;
  if (i < rows) GemmTile<1, kVecs>(depth, at(i), b, ldb, c + i * ldc, ldc, accumulate);
}

// C[rows x columns] (+)= A[rows x depth] B[depth x columns]. Rows of B and C are padded to whole vectors and
// aligned. Six rows by four vectors fill the registers of 512-bit targets, six by two those of the others.
HWY_INLINE void Gemm(int64_t rows, int64_t columns, int64_t depth, Left a, const float* b, int64_t ldb,
                     float* c, int64_t ldc, bool accumulate) {
  constexpr int kMost = kLanes >= 16 ? 4 : 2;
  for (int64_t j = 0; j < columns; j += kMost * kLanes) {
    const int64_t vectors = HWY_MIN((columns - j + kLanes - 1) / kLanes, kMost);
    if (vectors == 1)
      GemmPanel<1>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
    else if (vectors == 2)
      GemmPanel<2>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
    else if (vectors == 3)
      GemmPanel<HWY_MIN(3, kMost)>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
    else
      GemmPanel<kMost>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
  }
}

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

}  // namespace HWY_NAMESPACE
}  // namespace performer::kernels
HWY_AFTER_NAMESPACE();
#endif  // include guard
