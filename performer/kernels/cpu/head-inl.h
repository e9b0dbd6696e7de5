// SPDX-License-Identifier: Apache-2.0
// One (sequence, head) at work: its scratch memory, and the logits of a chunk of queries or keys.
//
// Letters as in kernels/favor.h, and C: rows of a chunk. Matrices are row-major with rows padded to whole
// vectors (Mp, Dp, Ep, Cp). Factors of products are made of cells (gemm-inl.h): `Number` is Single, where a
// cell is a number, or Half, where it is a pair along the depth of the product. Keys are held transposed
// (features or head elements down, tokens across) wherever a product needs them on the right.
//
// The projection's copies contain the input scale, so inputs enter the products as they are.
#if defined(PERFORMER_KERNELS_CPU_HEAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_HEAD_INL_H_
#undef PERFORMER_KERNELS_CPU_HEAD_INL_H_
#else
#define PERFORMER_KERNELS_CPU_HEAD_INL_H_
#endif

#include <cmath>
#include <cstring>
#include <type_traits>

#include "performer/kernels/cpu/functions-inl.h"
#include "performer/kernels/cpu/gemm-inl.h"
#include "performer/kernels/cpu/hadamard-inl.h"
#include "performer/kernels/cpu/rows-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

using cpu::Scratch;

constexpr int64_t kChunk = 64;
constexpr int64_t kBlock = 16;         // rows of a causal triangle that are handled together
constexpr int64_t kFeatureBlock = 48;  // the same for features of keys
// A row whose largest weight exceeds its denominator by more than e^46 = 1e20 is dominated by keys it may not
// see; it is computed on its own. Everything else keeps at least 18 decimal orders above the smallest float.
constexpr float kSlowGap = 46.0f;
// A state that a chunk rescales by less than this is kept aside for the rows of that chunk that need it as it
// was.
constexpr float kKeepBelow = 0x1p-40f;

// Sizes, padded sizes (p) and numbers of cells along the depth (g).
template <class Number>
struct Sizes {
  int64_t m, d, e, c, mp, dp, ep, cp, mg, dg, eg, cg;
  // Features: M, and in the trigonometric family M cosines and, from `sines` on (where a cell begins), M
  // sines. Rows of a state: the same, and in that family a last one for the constant 1.
  int64_t sines, f, fp, rows, rows_g;
  explicit Sizes(const AttentionForward& p)
      : m(p.shape.features), d(p.shape.head_size), e(p.shape.value_size) {
    c = p.chunk > 0 ? p.chunk : kChunk;
    mp = PaddedToCells(m);
    dp = PaddedToCells(d);
    ep = PaddedToCells(HWY_MAX(e, 1));
    cp = PaddedToCells(c);
    mg = Groups(m), dg = Groups(d), eg = Groups(e), cg = Groups(c);
    const bool waves = p.map.family == Family::trigonometric;
    sines = mg * Number::kGroup;
    f = waves ? sines + m : m;
    fp = PaddedToCells(f);
    rows = waves ? f + 1 : f;
    rows_g = Groups(rows);
  }
  static int64_t Groups(int64_t count) { return (count + Number::kGroup - 1) / Number::kGroup; }
  // Rows of numbers that are whole vectors also as cells.
  static int64_t PaddedToCells(int64_t count) {
    const int64_t step = kLanes * Number::kGroup;
    return (count + step - 1) / step * step;
  }
};

template <class Number>
class Head {
 public:
  static constexpr bool kHalf = Number::kGroup == 2;

  Head(const AttentionForward& params, int64_t sequence, int64_t head_index, Scratch& scratch)
      : p(params),
        n(params),
        sequence_(sequence),
        head(head_index),
        exponential(params.map.family == Family::exponential),
        has_norm(params.map.family != Family::elementwise) {
    queries = query_rows(p.shape, sequence);
    keys = key_rows(p.shape, sequence);
    kt = scratch.floats(n.d * n.cp);
    qx = scratch.floats(n.c * n.dp);
    value_memory = scratch.floats(n.c * n.ep);
    key_norm = scratch.floats(n.cp);
    keep = scratch.floats(n.cp);
    key_sum = scratch.floats(n.fp);
    scale = scratch.floats(n.mp);
    new_scale = scratch.floats(n.mp);
    factor = scratch.floats(n.mp);
    staging = scratch.floats(HWY_MAX(n.c, 2) * HWY_MAX(HWY_MAX(n.dp, n.ep), HWY_MAX(n.mp, n.cp)));
    if (p.map.projection != nullptr) {
      projection_rows = scratch.floats(n.m * n.dp);
      projection_t = scratch.floats(n.d * n.mp);
      structured = HadamardRows(p.map, n.m, n.d, kHalf, scratch);
      if (structured.rows() > 0) feature_block = structured.block();
    }
  }

  // Loads the projection; the scratch memory must be real.
  void Begin() {
    if (p.map.offset != nullptr)
      offset = p.map.offset + sequence_ * p.map.offset_batch_stride + head * p.map.offset_head_stride;
    if (p.map.projection == nullptr) return;
    projection =
        p.map.projection + sequence_ * p.map.projection_batch_stride + head * p.map.projection_head_stride;
    if (structured.rows() > 0)
      structured.Load(
          p.map.factors + sequence_ * p.map.factors_batch_stride + head * p.map.factors_head_stride, Scale());
    for (int64_t f = 0; f < n.m; ++f) {
      float* numbers = kHalf ? staging : projection_rows + f * n.dp;
      Fill(numbers, 0, n.dp);
      ScaleRow(projection + f * n.d, Scale(), n.d, numbers);
#ifdef PERFORMER_BFLOAT16
      if constexpr (kHalf) PackRowAlong(numbers, n.dp, projection_rows + f * n.dp);
#endif
    }
    Fill(projection_t, 0, n.dg * n.mp);
    Transpose(projection_rows, n.dp, n.m, n.dg, projection_t, n.mp);
  }

  int64_t StateIndex() const {
    return sequence_ * p.shape.heads + head;
  }
  int64_t NormalizerIndex(int64_t i) const {
    return row_index(queries, i, p.shape.query_tokens) * p.shape.heads + head;
  }
  bool KeepsKey(int64_t j) const {
    return p.key_mask == nullptr || p.key_mask[row_index(keys, j, p.shape.key_tokens)];
  }
  bool KeepsQuery(int64_t i) const {
    return p.query_mask == nullptr || p.query_mask[row_index(queries, i, p.shape.query_tokens)];
  }

  // Rows first .. first + count of a view as float32, padded with zeros to `ld`.
  void LoadRows(const View& view, const Rows& rows, int64_t first, int64_t count, int64_t size, float* out,
                int64_t ld) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t end = ld - kLanes * Number::kGroup; end < ld; end += kLanes)
        Fill(out + i * ld + end, 0, kLanes);
      LoadRow(view, rows.at(view, first + i, head), size, 1, out + i * ld);
    }
  }
  // The same as cells along each row.
  void LoadCells(const View& view, const Rows& rows, int64_t first, int64_t count, int64_t size, float* out,
                 int64_t ld) const {
    if constexpr (!kHalf) {
      LoadRows(view, rows, first, count, size, out, ld);
    } else {
      // The type of a Half head's inputs is bfloat16: pairs of neighbours are cells already.
      const uint16_t* from = static_cast<const uint16_t*>(view.data);
      for (int64_t i = 0; i < count; ++i) {
        Fill(out + i * ld, 0, ld / 2);
        std::memcpy(out + i * ld, from + rows.at(view, first + i, head), static_cast<size_t>(size) * 2);
      }
    }
  }
  // The rows of a view from `first` on as cells where they lie, or null where they must be copied: where the
  // view has another type, or a pair of bfloat16 would be incomplete or not lie at a multiple of its 4 bytes.
  Left CellsInPlace(const View& view, const Rows& rows, int64_t first, int64_t size) const {
    if (view.type != (kHalf ? DataType::bfloat16 : DataType::float32)) return {nullptr, 0, 1};
    const int64_t at = rows.at(view, first, head), stride = view.token_stride;
    if constexpr (!kHalf) return {static_cast<const float*>(view.data) + at, stride, 1};
    const auto* from = static_cast<const uint16_t*>(view.data) + at;
    const bool whole = size % 2 == 0 && stride % 2 == 0 && reinterpret_cast<uintptr_t>(from) % 4 == 0;
    return {whole ? reinterpret_cast<const float*>(from) : nullptr, stride / 2, 1};
  }
  // Those rows as cells, transposed to [groups of size, Cp]; missing columns are zero.
  void LoadTransposed(const View& view, const Rows& rows, int64_t first, int64_t count, int64_t size,
                      float* out) const {
    const int64_t groups = Sizes<Number>::Groups(size);
    if (count < n.cp) Fill(out, 0, groups * n.cp);
    if (const Left cells = CellsInPlace(view, rows, first, size); cells.data != nullptr)
      return Transpose(cells.data, cells.row, count, groups, out, n.cp);
    const int64_t ld = Sizes<Number>::PaddedToCells(size);
    LoadCells(view, rows, first, count, size, staging, ld);
    Transpose(staging, ld, count, groups, out, n.cp);
  }
  // Sets `value` to the chunk's values as a right factor whose depth runs over tokens: in place where their
  // rows are whole vectors of float32 already.
  void LoadValues(int64_t first, int64_t count) {
    value = {value_memory, n.ep};
    if constexpr (kHalf) {
#ifdef PERFORMER_BFLOAT16
      LoadRows(p.value, keys, first, count, n.e, staging, n.ep);
      PackRowPairs(staging, n.ep, count, n.ep, value_memory, n.ep);
#endif
    } else if (p.value.type == DataType::float32 && n.e == n.ep) {
      value = {static_cast<const float*>(p.value.data) + keys.at(p.value, first, head), p.value.token_stride};
    } else {
      LoadRows(p.value, keys, first, count, n.e, value_memory, n.ep);
    }
  }
  // Rows of a view as a left factor of depth D: in place where that is possible.
  Left LoadLeft(const View& view, const Rows& rows, int64_t first, int64_t count) const {
    if (const Left cells = CellsInPlace(view, rows, first, n.d); cells.data != nullptr) return cells;
    LoadCells(view, rows, first, count, n.d, qx, n.dp);
    return {qx, n.dp, 1};
  }

  // kt of a chunk of keys, and what KeepKeys sets.
  bool LoadKeys(int64_t first, int64_t count) {
    LoadTransposed(p.key, keys, first, count, n.d, kt);
    return KeepKeys(first, count);
  }
  // keep of a chunk of keys and, where the map has a norm, key_norm, which needs kt. A dropped column
  // (masked or past the end) has keep 0 and, in the exponential family, u = kEmptyLogScale, so that it moves
  // no maximum. Returns whether any column is dropped.
  bool KeepKeys(int64_t first, int64_t count) {
    Prefetch(p.key, keys, first + n.c, n.c, n.d);
    Prefetch(p.value, keys, first + n.c, n.c, n.e);
    if (has_norm) KeyNorms();
    bool dropped = false;
    for (int64_t j = 0; j < n.cp; ++j) {
      const bool kept = j < count && KeepsKey(first + j);
      keep[j] = kept ? 1.0f : 0.0f;
      dropped = dropped || !kept;
      if (!kept) key_norm[j] = -kEmptyLogScale;
    }
    return dropped;
  }

  // eta |scale k|^2 of the loaded keys.
  void KeyNorms() const {
    const Tag d;
    const Vec eta = hn::Set(d, static_cast<float>(p.map.norm_weight) * Scale() * Scale());
    for (int64_t j = 0; j < n.cp; j += kLanes) {
      Vec sum = hn::Zero(d);
      for (int64_t i = 0; i < n.dg; ++i) {
        const Vec x = hn::Load(d, kt + i * n.cp + j);
        sum = Number::MultiplyAdd(x, x, sum);
      }
      hn::Store(hn::Mul(eta, sum), d, key_norm + j);
    }
  }

  // P.x' of features first .. first + count of the loaded keys, transposed [count, Cp]: u without offset and
  // norm.
  void KeyProducts(int64_t first, int64_t count, float* out) const {
    if (projection != nullptr) {
      const int64_t fast = structured.Of(first, count);
      if (fast > 0) structured.template ApplyToColumns<Number>(first, fast, kt, n.cp, out);
      if (fast == count) return;
      const float* rows = projection_rows + (first + fast) * n.dp;
      Gemm<Number>(count - fast, n.cp, n.dg, {rows, n.dp, 1}, kt, n.cp, out + fast * n.cp, n.cp, false);
    } else {
      Copy(kt + first * n.cp, out, count * n.cp);
      Multiply(out, Scale(), count * n.cp);
    }
  }
  // What u adds to the product for token j of feature f: c_f - norm_j, and whether a maximum may see it.
  HWY_INLINE Vec KeyLogit(Vec product, Vec c, const float* norm) const {
    const Tag d;
    const Vec u = hn::Add(product, c);
    return exponential ? LargerOf(hn::Set(d, kEmptyLogScale), hn::Sub(u, hn::Load(d, norm))) : u;
  }
  float Offset(int64_t f) const {
    return offset != nullptr ? offset[f] : 0.0f;
  }

  // u of the loaded keys, transposed [M, Cp].
  void KeyLogitsTransposed(float* out) const {
    KeyProducts(0, n.m, out);
    if (!exponential && offset == nullptr) return;
    const Tag d;
    for (int64_t f = 0; f < n.m; ++f) {
      const Vec c = hn::Set(d, Offset(f));
      float* u = out + f * n.cp;
      for (int64_t j = 0; j < n.cp; j += kLanes)
        hn::Store(KeyLogit(hn::Load(d, u + j), c, key_norm + j), d, u + j);
    }
  }

  // P.x' + c of rows first .. first + count of a view, [count, Mp]; the padding of a row is 0.
  void RowLogits(const View& view, const Rows& rows, int64_t first, int64_t count, float* out) const {
    if (projection != nullptr) {
      const int64_t fast = structured.rows();
      if (fast > 0) StructuredRowLogits(view, rows, first, count, out);
      if (fast < n.m)
        Gemm<Number>(count, n.mp - fast, n.dg, LoadLeft(view, rows, first, count), projection_t + fast, n.mp,
                     out + fast, n.mp, false);
    } else {
      LoadRows(view, rows, first, count, n.d, out, n.mp);
      Multiply(out, Scale(), count * n.mp);
    }
    for (int64_t i = 0; offset != nullptr && i < count; ++i) {
      for (int64_t f = 0; f < n.m; ++f) out[i * n.mp + f] += offset[f];
    }
  }
  void StructuredRowLogits(const View& view, const Rows& rows, int64_t first, int64_t count,
                           float* out) const {
    if (view.type == DataType::float32) {
      const float* from = static_cast<const float*>(view.data) + rows.at(view, first, head);
      return structured.Apply(count, from, view.token_stride, out, n.mp);
    }
    LoadRows(view, rows, first, count, n.d, qx, n.dp);
    structured.Apply(count, qx, n.dp, out, n.mp);
  }
  void QueryLogits(int64_t first, int64_t count, float* out) const {
    RowLogits(p.query, queries, first, count, out);
  }

  // Asks for the rows of the next chunk while this one is worked on: rows of heads lie apart, which the CPU's
  // own prefetcher does not follow.
  void Prefetch(const View& view, const Rows& rows, int64_t first, int64_t count, int64_t size) const {
    const int64_t bytes = view.type == DataType::float32 ? 4 : 2;
    for (int64_t i = first; i < HWY_MIN(first + count, rows.count); ++i) {
      const char* row = static_cast<const char*>(view.data) + rows.at(view, i, head) * bytes;
      for (int64_t at = 0; at < size * bytes; at += 64) hwy::Prefetch(row + at);
    }
  }

  // factor = exp(scale - new_scale), which is at most 1.
  void FinishScale() const {
    for (int64_t f = n.m; f < n.mp; ++f) new_scale[f] = kEmptyLogScale;
    const Tag d;
    for (int64_t f = 0; f < n.mp; f += kLanes)
      hn::Store(ExpUnchecked(hn::Sub(hn::Load(d, scale + f), hn::Load(d, new_scale + f))), d, factor + f);
  }
  // Whether the state would lose what rows of this chunk may need: see ReadSlowly.
  bool LosesState() const {
    for (int64_t f = 0; p.causal && f < n.m; ++f) {
      if (factor[f] < kKeepBelow && key_sum[f] != 0.0f) return true;
    }
    return false;
  }

  // Largest u_f + shift_f of a row.
  float MaxSum(const float* u, const float* shift) const {
    const Tag d;
    Vec m = hn::Set(d, 2 * kEmptyLogScale);
    for (int64_t f = 0; f < n.mp; f += kLanes)
      m = LargerOf(m, hn::Add(hn::Load(d, u + f), hn::Load(d, shift + f)));
    return LargestLane(m);
  }
  // phi = exp(u + shift_f - c) along a row of features. The exponents are at most `most` but for rounding,
  // which for exponents of 1e12 is 65536: they are cut there.
  void ExpRow(const float* u, const float* shift, float c, float* phi, float most) const {
    const Tag d;
    const Vec minus = hn::Set(d, c), largest = hn::Set(d, most);
    for (int64_t f = 0; f < n.mp; f += kLanes) {
      const Vec exponent = hn::Sub(hn::Add(hn::Load(d, u + f), hn::Load(d, shift + f)), minus);
      hn::Store(ExpUnchecked(SmallerOf(largest, exponent)), d, phi + f);
    }
  }

  float Scale() const {
    return static_cast<float>(p.map.scale);
  }
  float Epsilon() const {
    return static_cast<float>(p.map.epsilon);
  }

  const AttentionForward& p;
  Sizes<Number> n;
  int64_t sequence_, head;
  bool exponential, has_norm;
  Rows queries, keys;
  const float* projection = nullptr;      // [M, D] as given
  HadamardRows structured;                // its first rows, where the call has them in factors
  int64_t feature_block = kFeatureBlock;  // features of keys that are handled together
  const float* offset = nullptr;          // [M]
  float* projection_rows = nullptr;       // cells [M, Dp] of scale * P, depth D
  float* projection_t = nullptr;          // cells [D, Mp] of the same, depth D
  float *kt, *qx;                         // cells [D, Cp] and [C, Dp], depth D
  Right value = {};                       // cells [C, Ep], depth C
  float* value_memory;                    // the same where it is no view of the input
  float *key_norm, *keep;                 // [Cp]
  float* key_sum;                         // [Fp]
  float *scale, *new_scale, *factor;      // [Mp]; the padding of the scales is kEmptyLogScale
  float* staging;                         // rows on their way
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
