// SPDX-License-Identifier: Apache-2.0
// The one matrix product of the kernels, for small matrices that lie in the caches.
//
// Its factors are made of 32-bit cells: one float32 (Single), or two bfloat16 that follow each other along
// the depth of the product (Half, where the CPU multiplies such pairs and adds them in float32).
#if defined(PERFORMER_KERNELS_CPU_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_GEMM_INL_H_
#undef PERFORMER_KERNELS_CPU_GEMM_INL_H_
#else
#define PERFORMER_KERNELS_CPU_GEMM_INL_H_
#endif

#include "performer/kernels/cpu/target-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

struct Single {
  static constexpr int64_t kGroup = 1;  // elements in a cell
  static HWY_INLINE Vec MultiplyAdd(Vec left, Vec right, Vec sum) { return hn::MulAdd(left, right, sum); }
};

#ifdef PERFORMER_BFLOAT16
struct Half {
  static constexpr int64_t kGroup = 2;
  static HWY_INLINE Vec MultiplyAdd(Vec left, Vec right, Vec sum) {
    return Vec{_mm512_dpbf16_ps(sum.raw, (__m512bh)left.raw, (__m512bh)right.raw)};
  }
};
#endif

// A left factor whose cell (i, k) is data[i * row + k * column]: a matrix or its transpose, without a copy.
struct Left {
  const float* data;
  int64_t row, column;
};

// A right factor: rows of cells.
struct Right {
  const float* data;
  int64_t ld;
};

template <class Number, int kRows, int kVecs>
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
    for (int v = 0; v < kVecs; ++v) right[v] = hn::LoadU(d, b + k * ldb + v * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Vec left = hn::Set(d, a.data[i * a.row + k * a.column]);
      for (int v = 0; v < kVecs; ++v) sum[i][v] = Number::MultiplyAdd(left, right[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVecs; ++v) hn::Store(sum[i][v], d, c + i * ldc + v * kLanes);
  }
}

template <class Number, int kVecs>
HWY_NOINLINE void GemmPanel(int64_t rows, int64_t depth, Left a, const float* b, int64_t ldb, float* c,
                            int64_t ldc, bool accumulate) {
  int64_t i = 0;
  const auto at = [&](int64_t row) { return Left{a.data + row * a.row, a.row, a.column}; };
  for (; i + 6 <= rows; i += 6)
    GemmTile<Number, 6, kVecs>(depth, at(i), b, ldb, c + i * ldc, ldc, accumulate);
  if (i + 4 <= rows) GemmTile<Number, 4, kVecs>(depth, at(i), b, ldb, c + i * ldc, ldc, accumulate), i += 4;
  if (i + 2 <= rows) GemmTile<Number, 2, kVecs>(depth, at(i), b, ldb, c + i * ldc, ldc, accumulate), i += 2;
  if (i < rows) GemmTile<Number, 1, kVecs>(depth, at(i), b, ldb, c + i * ldc, ldc, accumulate);
}

// C[rows x columns] (+)= A[rows x depth] B[depth x columns]; the depth counts cells, C is float32. Rows of B
// and C are padded to whole vectors, those of C aligned. Six rows by four vectors fill the registers of
// 512-bit targets, six by two those of the others.
template <class Number>
HWY_INLINE void Gemm(int64_t rows, int64_t columns, int64_t depth, Left a, const float* b, int64_t ldb,
                     float* c, int64_t ldc, bool accumulate) {
  constexpr int kMost = kLanes >= 16 ? 4 : 2;
  for (int64_t j = 0; j < columns; j += kMost * kLanes) {
    const int64_t vectors = HWY_MIN((columns - j + kLanes - 1) / kLanes, kMost);
    if (vectors == 1)
      GemmPanel<Number, 1>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
    else if (vectors == 2)
      GemmPanel<Number, 2>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
    else if (vectors == 3)
      GemmPanel<Number, HWY_MIN(3, kMost)>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
    else
      GemmPanel<Number, kMost>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
  }
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
