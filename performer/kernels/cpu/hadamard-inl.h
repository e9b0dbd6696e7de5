// SPDX-License-Identifier: Apache-2.0
// Products with a projection in its structured form (FeatureMap::factors): with its rows in D log D additions
// for D of them instead of D^2 multiplications.
//
// The transform works on rows in registers, whose lanes exchange their numbers, and on columns (tokens side
// by side) in passes over the bits of the row number: the lower bits, then the upper ones. A pass over the
// same bits before and after a diagonal is one, so that three transforms take four passes. Both forms add in
// the same order and give the same numbers.
#if defined(PERFORMER_KERNELS_CPU_HADAMARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_HADAMARD_INL_H_
#undef PERFORMER_KERNELS_CPU_HADAMARD_INL_H_
#else
#define PERFORMER_KERNELS_CPU_HADAMARD_INL_H_
#endif

#include <cmath>

#include "performer/kernels/cpu/rows-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

// The diagonals of one block in the order in which they are applied: between them the transform.
struct Diagonals {
  const float *first, *second, *third, *last;
  // Of the transposed block.
  HWY_INLINE Diagonals Reversed() const { return {last, third, second, first}; }
};

// Sums and differences of registers whose numbers differ in one bit, kHalf.
template <int kHalf, int kCount>
HWY_INLINE void Butterflies(Vec (&x)[kCount]) {
  for (int i = 0; i < kCount / 2; ++i) {
    const int low = i / kHalf * 2 * kHalf + i % kHalf, high = low + kHalf;
    const Vec sum = hn::Add(x[low], x[high]), difference = hn::Sub(x[low], x[high]);
    x[low] = sum;
    x[high] = difference;
  }
}
// The transform of each kSize registers over the bits of their numbers, from the lowest or from the highest
// on.
template <bool kUp, int kSize, int kCount, int kHalf = kUp ? 1 : kSize / 2>
HWY_INLINE void TransformRegisters(Vec (&x)[kCount]) {
  if constexpr (kHalf >= 1 && kHalf < kSize) {
    Butterflies<kHalf>(x);
    TransformRegisters<kUp, kSize, kCount, kUp ? 2 * kHalf : kHalf / 2>(x);
  }
}

#if HWY_TARGET != HWY_SCALAR
// x with lanes exchanged whose numbers differ in bit kBit.
template <int kBit>
HWY_INLINE Vec ExchangeLanes(Vec x) {
  if constexpr (kBit == 0) {
    return hn::Shuffle2301(x);
  } else if constexpr (kBit == 1) {
    return hn::Shuffle1032(x);
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  } else if constexpr (kBit == 2) {
    return hn::SwapAdjacentBlocks(x);
#endif
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  } else if constexpr (kBit == 3) {
    return Vec{_mm512_shuffle_f32x4(x.raw, x.raw, 0x4E)};
#endif
  } else {
    return x;
  }
}
// 1 in lanes without bit kBit, -1 in the others.
template <int kBit>
HWY_INLINE Vec LaneSigns() {
  const Tag d;
  HWY_ALIGN float sign[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) sign[i] = (i >> kBit & 1) != 0 ? -1.0f : 1.0f;
  return hn::Load(d, sign);
}
constexpr int LaneBits() {
  int bits = 0;
  while ((int64_t{1} << bits) < kLanes) ++bits;
  return bits;
}
// The transform over the bits of a lane's number.
template <bool kUp, int kCount, int kBit = kUp ? 0 : LaneBits() - 1>
HWY_INLINE void TransformLanes(Vec (&x)[kCount]) {
  if constexpr (kBit >= 0 && kBit < LaneBits()) {
    const Vec signs = LaneSigns<kBit>();
    for (int i = 0; i < kCount; ++i) x[i] = hn::MulAdd(signs, x[i], ExchangeLanes<kBit>(x[i]));
    TransformLanes<kUp, kCount, kUp ? kBit + 1 : kBit - 1>(x);
  }
}

template <bool kUp, int kSize, int kCount>
HWY_INLINE void TransformRows(Vec (&x)[kCount]) {
  if constexpr (kUp) {
    TransformLanes<true>(x);
    TransformRegisters<true, kSize>(x);
  } else {
    TransformRegisters<false, kSize>(x);
    TransformLanes<false>(x);
  }
}
template <int kSize, int kCount>
HWY_INLINE void MultiplyRows(Vec (&x)[kCount], const float* HWY_RESTRICT diagonal) {
  for (int i = 0; i < kCount; ++i) x[i] = hn::Mul(x[i], hn::Load(Tag(), diagonal + i % kSize * kLanes));
}

// out (+)= the block times each of kRows rows of kSize vectors. The input may have any alignment.
template <int kSize, int kRows>
HWY_INLINE void HadamardTile(const float* HWY_RESTRICT x, int64_t ld, Diagonals by, float* HWY_RESTRICT out,
                             int64_t out_ld, bool add) {
  const Tag d;
  Vec v[kSize * kRows];
  for (int i = 0; i < kSize * kRows; ++i) v[i] = hn::LoadU(d, x + i / kSize * ld + i % kSize * kLanes);
  MultiplyRows<kSize>(v, by.first);
  TransformRows<true, kSize>(v);
  MultiplyRows<kSize>(v, by.second);
  TransformRows<false, kSize>(v);
  MultiplyRows<kSize>(v, by.third);
  TransformRows<true, kSize>(v);
  MultiplyRows<kSize>(v, by.last);
  for (int i = 0; i < kSize * kRows; ++i) {
    float* to = out + i / kSize * out_ld + i % kSize * kLanes;
    hn::Store(add ? hn::Add(v[i], hn::Load(d, to)) : v[i], d, to);
  }
}
// The same for any number of rows. One row of a few vectors waits for its own results: several take turns.
template <int kSize>
HWY_NOINLINE void HadamardPanel(int64_t rows, const float* x, int64_t ld, Diagonals by, float* out,
                                int64_t out_ld, bool add) {
  constexpr int kTogether = HWY_MAX(1, 8 / kSize);
  int64_t i = 0;
  for (; i + kTogether <= rows; i += kTogether)
    HadamardTile<kSize, kTogether>(x + i * ld, ld, by, out + i * out_ld, out_ld, add);
  for (; i < rows; ++i) HadamardTile<kSize, 1>(x + i * ld, ld, by, out + i * out_ld, out_ld, add);
}
#endif

// Rows of a float32 matrix as the input of a column of kLanes tokens.
struct SingleColumn {
  const float* data;
  int64_t ld;
  HWY_INLINE Vec operator()(int64_t row) const { return hn::Load(Tag(), data + row * ld); }
};
#ifdef PERFORMER_BFLOAT16
// Rows of a matrix whose cells pair two of them.
struct HalfColumn {
  const float* data;
  int64_t ld;
  HWY_INLINE Vec operator()(int64_t row) const {
    const __m512i cells = _mm512_castps_si512(hn::Load(Tag(), data + row / 2 * ld).raw);
    const __m512i bits =
        row % 2 == 0 ? _mm512_slli_epi32(cells, 16) : _mm512_and_si512(cells, _mm512_set1_epi32(~0xFFFF));
    return Vec{_mm512_castsi512_ps(bits)};
  }
};
#endif

// out (+)= the block times a column of kLanes tokens. `memory`: kLow * kHigh vectors.
template <int kLow, int kHigh, class Column>
HWY_NOINLINE void HadamardColumn(Column in, Diagonals by, float* HWY_RESTRICT memory, float* HWY_RESTRICT out,
                                 int64_t ld, bool add) {
  const Tag d;
  for (int64_t row = 0; row < kLow * kHigh; row += kLow) {
    Vec x[kLow];
    for (int k = 0; k < kLow; ++k) x[k] = hn::Mul(in(row + k), hn::Set(d, by.first[row + k]));
    TransformRegisters<true, kLow>(x);
    for (int k = 0; k < kLow; ++k) hn::Store(x[k], d, memory + (row + k) * kLanes);
  }
  for (int64_t row = 0; row < kLow; ++row) {
    Vec x[kHigh];
    for (int k = 0; k < kHigh; ++k) x[k] = hn::Load(d, memory + (row + k * kLow) * kLanes);
    TransformRegisters<true, kHigh>(x);
    for (int k = 0; k < kHigh; ++k) x[k] = hn::Mul(x[k], hn::Set(d, by.second[row + k * kLow]));
    TransformRegisters<false, kHigh>(x);
    for (int k = 0; k < kHigh; ++k) hn::Store(x[k], d, memory + (row + k * kLow) * kLanes);
  }
  for (int64_t row = 0; row < kLow * kHigh; row += kLow) {
    Vec x[kLow];
    for (int k = 0; k < kLow; ++k) x[k] = hn::Load(d, memory + (row + k) * kLanes);
    TransformRegisters<false, kLow>(x);
    for (int k = 0; k < kLow; ++k) x[k] = hn::Mul(x[k], hn::Set(d, by.third[row + k]));
    TransformRegisters<true, kLow>(x);
    for (int k = 0; k < kLow; ++k) hn::Store(x[k], d, memory + (row + k) * kLanes);
  }
  for (int64_t row = 0; row < kLow; ++row) {
    Vec x[kHigh];
    for (int k = 0; k < kHigh; ++k) x[k] = hn::Load(d, memory + (row + k * kLow) * kLanes);
    TransformRegisters<true, kHigh>(x);
    for (int k = 0; k < kHigh; ++k) {
      float* to = out + (row + k * kLow) * ld;
      x[k] = hn::Mul(x[k], hn::Set(d, by.last[row + k * kLow]));
      hn::Store(add ? hn::Add(x[k], hn::Load(d, to)) : x[k], d, to);
    }
  }
}

// The structured rows of a head's projection, whole blocks of D of them; those that are left stay dense.
class HadamardRows {
 public:
  HadamardRows() = default;
  // `half`: the dense product would be one of bfloat16.
  HadamardRows(const FeatureMap& map, int64_t features, int64_t head_size, bool half, cpu::Scratch& scratch) {
    if (map.factors == nullptr || !Serves(head_size, half)) return;
    d_ = head_size;
    blocks_ = features / d_;
    factors_ = scratch.floats(blocks_ * 4 * d_);
    column_ = scratch.floats(d_ * kLanes);
  }
  // Where the transform is faster than the dense product, measured in whole passes of 256 features: float32
  // 16 % at D = 32, 30 % at 64 and 42 % at 256; bfloat16 14 % at 64, and 4 % slower at 32. A row of more than
  // 32 vectors does not stay near the registers.
  static bool Serves(int64_t head_size, bool half) {
    return head_size >= (half ? 64 : 32) && head_size <= (kLanes == 1 ? 256 : HWY_MIN(256, 32 * kLanes));
  }

  // Reads the head's factors and takes the input scale in.
  void Load(const float* from, float scale) const {
    // Three transforms make numbers D^(3/2) times as large. About that is taken off before them, as a power
    // of two, so that nothing overflows on the way.
    const float down = std::exp2(-std::floor(1.5f * std::log2(static_cast<float>(d_))));
    for (int64_t b = 0; b < blocks_; ++b, from += 4 * d_) {
      float* to = factors_ + b * 4 * d_;
      ScaleRow(from, down, d_, to);
      ScaleRow(from + d_, 1, 2 * d_, to + d_);
      ScaleRow(from + 3 * d_, scale / down, d_, to + 3 * d_);
    }
  }

  int64_t rows() const { return blocks_ * d_; }
  int64_t block() const { return d_; }
  // How many of the features first .. first + count are structured: they come first.
  int64_t Of(int64_t first, int64_t count) const {
    return HWY_MAX(0, HWY_MIN(rows(), first + count) - first);
  }

  // out[count, out_ld] = P x for rows x[count, ld] of D elements.
  void Apply(int64_t count, const float* x, int64_t ld, float* out, int64_t out_ld) const {
    for (int64_t b = 0; b < blocks_; ++b) Panel(count, x, ld, BlockOf(b), out + b * d_, out_ld, false);
  }
  // out[count, out_ld] = P^T du for rows du[count, ld] of rows() elements.
  void ApplyTransposed(int64_t count, const float* du, int64_t ld, float* out, int64_t out_ld) const {
    for (int64_t b = 0; b < blocks_; ++b)
      Panel(count, du + b * d_, ld, BlockOf(b).Reversed(), out, out_ld, b > 0);
  }

  // out[count, ld] = P x for features first .. first + count, whole blocks, and tokens side by side: x in
  // cells of Number [D, ld].
  template <class Number>
  void ApplyToColumns(int64_t first, int64_t count, const float* x, int64_t ld, float* out) const {
    for (int64_t b = first / d_; b < (first + count) / d_; ++b, out += d_ * ld) {
      for (int64_t j = 0; j < ld; j += kLanes) {
#ifdef PERFORMER_BFLOAT16
        if constexpr (Number::kGroup == 2) {
          ColumnOf(HalfColumn{x + j, ld}, BlockOf(b), out + j, ld, false);
          continue;
        }
#endif
        ColumnOf(SingleColumn{x + j, ld}, BlockOf(b), out + j, ld, false);
      }
    }
  }
  // out[D, ld] (+)= P^T du for the same features, du float32 [count, ld].
  void ApplyTransposedToColumns(int64_t first, int64_t count, const float* du, int64_t ld, float* out,
                                bool add) const {
    for (int64_t b = first / d_; b < (first + count) / d_; ++b, du += d_ * ld, add = true) {
      for (int64_t j = 0; j < ld; j += kLanes)
        ColumnOf(SingleColumn{du + j, ld}, BlockOf(b).Reversed(), out + j, ld, add);
    }
  }

 private:
  Diagonals BlockOf(int64_t b) const {
    const float* f = factors_ + b * 4 * d_;
    return {f, f + d_, f + 2 * d_, f + 3 * d_};
  }
  void Panel(int64_t count, const float* x, int64_t ld, Diagonals by, float* out, int64_t out_ld,
             bool add) const {
#if HWY_TARGET == HWY_SCALAR
    for (int64_t i = 0; i < count; ++i)  // a row is a column of its own
      ColumnOf(SingleColumn{x + i * ld, 1}, by, out + i * out_ld, 1, add);
#else
    switch (d_ / kLanes) {
      case 2:
        return HadamardPanel<2>(count, x, ld, by, out, out_ld, add);
      case 4:
        return HadamardPanel<4>(count, x, ld, by, out, out_ld, add);
      case 8:
        return HadamardPanel<8>(count, x, ld, by, out, out_ld, add);
      case 16:
        return HadamardPanel<16>(count, x, ld, by, out, out_ld, add);
      default:
        return HadamardPanel<32>(count, x, ld, by, out, out_ld, add);
    }
#endif
  }
  template <class Column>
  HWY_INLINE void ColumnOf(Column in, Diagonals by, float* out, int64_t ld, bool add) const {
    switch (d_) {
      case 32:
        return HadamardColumn<8, 4>(in, by, column_, out, ld, add);
      case 64:
        return HadamardColumn<8, 8>(in, by, column_, out, ld, add);
      case 128:
        return HadamardColumn<8, 16>(in, by, column_, out, ld, add);
      default:
        return HadamardColumn<16, 16>(in, by, column_, out, ld, add);
    }
  }

  int64_t d_ = 0, blocks_ = 0;
  float* factors_ = nullptr;  // [blocks, 4, D]
  float* column_ = nullptr;   // [D, kLanes]
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
