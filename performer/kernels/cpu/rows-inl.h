// SPDX-License-Identifier: Apache-2.0
// Rows of any data type to float32 rows or to cells of a matrix product and back, and transposing.
#if defined(PERFORMER_KERNELS_CPU_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_ROWS_INL_H_
#undef PERFORMER_KERNELS_CPU_ROWS_INL_H_
#else
#define PERFORMER_KERNELS_CPU_ROWS_INL_H_
#endif

#include "performer/kernels/cpu/math-inl.h"
#include "performer/kernels/cpu/support.h"
#include "performer/kernels/element.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

// y = a x over exactly `count` elements of any alignment.
HWY_INLINE void ScaleRow(const float* x, float a, int64_t count, float* y) {
  const Tag d;
  const Vec f = hn::Set(d, a);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, x + i), f), d, y + i);
  for (; i < count; ++i) y[i] = x[i] * a;
}

// row = factor * `count` elements of the view from `offset` on.
HWY_INLINE void LoadRow(const View& view, int64_t offset, int64_t count, float factor, float* row) {
  if (view.type == DataType::float32)
    return ScaleRow(static_cast<const float*>(view.data) + offset, factor, count, row);
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const Tag d;
  const uint16_t* from = static_cast<const uint16_t*>(view.data) + offset;
  if (view.type == DataType::bfloat16) {
    const hn::Rebind<uint16_t, Tag> bits;
    const hn::RebindToUnsigned<Tag> wide;
    for (; i + kLanes <= count; i += kLanes) {
      const auto raised = hn::ShiftLeft<16>(hn::PromoteTo(wide, hn::LoadU(bits, from + i)));
      hn::StoreU(hn::Mul(hn::BitCast(d, raised), hn::Set(d, factor)), d, row + i);
    }
  } else if (view.type == DataType::float16) {
    const hn::Rebind<hwy::float16_t, Tag> half;
    for (; i + kLanes <= count; i += kLanes) {
      const auto x = hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(from + i));
      hn::StoreU(hn::Mul(hn::PromoteTo(d, x), hn::Set(d, factor)), d, row + i);
    }
  }
#endif
  for (; i < count; ++i) row[i] = static_cast<float>(load(view, offset + i)) * factor;
}

// `count` elements of the view from `offset` on = factor * row.
HWY_INLINE void StoreRow(const View& view, int64_t offset, int64_t count, float factor, const float* row) {
  if (view.type == DataType::float32)
    return ScaleRow(row, factor, count, static_cast<float*>(view.data) + offset);
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  if (view.type == DataType::bfloat16) {
    // To nearest, ties to even, as float_to_bfloat16 does.
    const Tag d;
    const hn::RebindToUnsigned<Tag> wide;
    const hn::Rebind<uint16_t, Tag> bits;
    uint16_t* to = static_cast<uint16_t*>(view.data) + offset;
    for (; i + kLanes <= count; i += kLanes) {
      const Vec x = hn::Mul(hn::LoadU(d, row + i), hn::Set(d, factor));
      const auto raw = hn::BitCast(wide, x);
      const auto odd = hn::And(hn::ShiftRight<16>(raw), hn::Set(wide, 1));
      const auto rounded = hn::Add(hn::Add(raw, odd), hn::Set(wide, 0x7FFF));
      const auto quiet = hn::Or(raw, hn::Set(wide, 0x400000));
      const auto chosen = hn::IfThenElse(hn::RebindMask(wide, hn::Ne(x, x)), quiet, rounded);
      const auto high = hn::BitCast(hn::RebindToSigned<Tag>(), hn::ShiftRight<16>(chosen));
      hn::StoreU(hn::DemoteTo(bits, high), bits, to + i);
    }
  }
#endif
  for (; i < count; ++i) store(view, offset + i, row[i] * factor);
}

#if HWY_TARGET != HWY_SCALAR
// The 128-bit block at x, and under it those `step` elements further on: one in each block of a vector.
HWY_INLINE Vec LoadBlocks(const float* x, int64_t step) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(x));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(x + step), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(x + 2 * step), 2);
  return Vec{_mm512_insertf32x4(v, _mm_loadu_ps(x + 3 * step), 3)};
#elif HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  const hn::FixedTag<float, 4> block;
  return hn::Combine(Tag(), hn::LoadU(block, x + step), hn::LoadU(block, x));
#else
  return hn::LoadU(hn::FixedTag<float, 4>(), x);
#endif
}
#endif

// out[c * out_ld + r] = x[r * ld + c] for 32-bit cells of any alignment; no arithmetic touches them. Takes as
// many rows at a time as a vector has lanes, and four columns.
HWY_NOINLINE void Transpose(const float* x, int64_t ld, int64_t rows, int64_t columns, float* out,
                            int64_t out_ld) {
  int64_t whole_rows = 0;
#if HWY_TARGET != HWY_SCALAR
  const Tag d;
  whole_rows = rows / kLanes * kLanes;
  const int64_t whole_columns = columns / 4 * 4;
  for (int64_t r = 0; r < whole_rows; r += kLanes) {
    const float* from = x + r * ld;
    for (int64_t c = 0; c < whole_columns; c += 4) {
      const Vec r0 = LoadBlocks(from + c, 4 * ld), r1 = LoadBlocks(from + ld + c, 4 * ld);
      const Vec r2 = LoadBlocks(from + 2 * ld + c, 4 * ld), r3 = LoadBlocks(from + 3 * ld + c, 4 * ld);
      const Vec even_low = hn::InterleaveLower(d, r0, r2), odd_low = hn::InterleaveLower(d, r1, r3);
      const Vec even_high = hn::InterleaveUpper(d, r0, r2), odd_high = hn::InterleaveUpper(d, r1, r3);
      float* to = out + c * out_ld + r;
      hn::StoreU(hn::InterleaveLower(d, even_low, odd_low), d, to);
      hn::StoreU(hn::InterleaveUpper(d, even_low, odd_low), d, to + out_ld);
      hn::StoreU(hn::InterleaveLower(d, even_high, odd_high), d, to + 2 * out_ld);
      hn::StoreU(hn::InterleaveUpper(d, even_high, odd_high), d, to + 3 * out_ld);
    }
    for (int64_t c = whole_columns; c < columns; ++c) {
      for (int64_t i = 0; i < kLanes; ++i) out[c * out_ld + r + i] = from[i * ld + c];
    }
  }
#endif
  for (int64_t r = whole_rows; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out[c * out_ld + r] = x[r * ld + c];
  }
}

#ifdef PERFORMER_BFLOAT16
// Cells of Half: (low_i, high_i) for each lane i, rounded to nearest even.
HWY_INLINE Vec PackPairs(Vec low, Vec high) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high.raw, low.raw);
  return Vec{_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both))};
}
// Cells of Half: (x_0, x_1), (x_2, x_3), ... of the 2 * kLanes numbers in `first` and `second`.
HWY_INLINE Vec PackAlong(Vec first, Vec second) {
  return Vec{_mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(second.raw, first.raw))};
}

// Cells along a row of `padded` numbers, a multiple of 2 * kLanes.
HWY_INLINE void PackRowAlong(const float* x, int64_t padded, float* cells) {
  const Tag d;
  for (int64_t i = 0; i < padded; i += 2 * kLanes)
    hn::Store(PackAlong(hn::Load(d, x + i), hn::Load(d, x + i + kLanes)), d, cells + i / 2);
}
// Cells whose depth runs down the rows: row r of `cells` pairs rows 2r and 2r + 1 of x; a missing last row
// is zero.
HWY_INLINE void PackRowPairs(const float* x, int64_t ld, int64_t rows, int64_t padded, float* cells,
                             int64_t cells_ld) {
  const Tag d;
  for (int64_t r = 0; r < rows; r += 2) {
    const float *low = x + r * ld, *high = low + ld;
    float* to = cells + r / 2 * cells_ld;
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vec second = r + 1 < rows ? hn::Load(d, high + i) : hn::Zero(d);
      hn::Store(PackPairs(hn::Load(d, low + i), second), d, to + i);
    }
  }
}
#endif

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
