// SPDX-License-Identifier: Apache-2.0
// One (sequence, head) at work: its scratch memory, and the features of a chunk of queries or keys.
//
// Letters as in kernels/favor.h, and C: rows of a chunk. Matrices are row-major float32 with rows padded to
// whole vectors (Mp, Dp, Ep, Cp). Keys are held transposed (features or head elements down, tokens across)
// wherever a product needs them on the right, so no C x M matrix is ever transposed.
#if defined(PERFORMER_KERNELS_CPU_HEAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_HEAD_INL_H_
#undef PERFORMER_KERNELS_CPU_HEAD_INL_H_
#else
#define PERFORMER_KERNELS_CPU_HEAD_INL_H_
#endif

#include <cmath>
#include <cstring>

#include "performer/kernels/cpu/math-inl.h"
#include "performer/kernels/cpu/support.h"
#include "performer/kernels/element.h"

HWY_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace HWY_NAMESPACE {

using cpu::Scratch;

constexpr int64_t kChunk = 64;
constexpr int64_t kBlock = 16;  // rows of the causal triangle handled together
// A row whose largest weight exceeds its denominator by more than e^46 = 1e20 is dominated by keys it may not
// see; it is computed on its own. Everything else keeps at least 18 decimal orders above the smallest float.
constexpr float kSlowGap = 46.0f;
// A state that a chunk rescales by less than this is kept aside for the rows of that chunk that need it as it
// was.
constexpr float kKeepBelow = 0x1p-40f;

HWY_INLINE int64_t Padded(int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

struct Sizes {
  int64_t m, d, e, c, mp, dp, ep, cp;
  explicit Sizes(const AttentionForward& p)
      : m(p.shape.features), d(p.shape.head_size), e(p.shape.value_size) {
    c = p.chunk > 0 ? p.chunk : kChunk;
    mp = Padded(m);
    dp = Padded(d);
    ep = Padded(HWY_MAX(e, 1));
    cp = Padded(c);
  }
};

class Head {
 public:
  Head(const AttentionForward& params, int64_t sequence, int64_t head_index, Scratch& scratch)
      : p(params),
        n(params),
        sequence_(sequence),
        head(head_index),
        exponential(params.map.family == Family::exponential) {
    queries = query_rows(p.shape, sequence);
    keys = key_rows(p.shape, sequence);
    qx = scratch.floats(n.c * n.dp);
    kt = scratch.floats(n.d * n.cp);
    value = scratch.floats(n.c * n.ep);
    phi_q = scratch.floats(n.c * n.mp);
    key_norm = scratch.floats(n.cp);
    keep = scratch.floats(n.cp);
    key_sum = scratch.floats(n.mp);
    scale = scratch.floats(n.mp);
    new_scale = scratch.floats(n.mp);
    factor = scratch.floats(n.mp);
    row = scratch.floats(HWY_MAX(HWY_MAX(n.dp, n.ep), n.mp));
    if (p.map.projection != nullptr) projection_t = scratch.floats(n.d * n.mp);
  }

  // Loads the projection; the scratch memory must be real.
  void Begin() {
    if (p.map.offset != nullptr)
      offset = p.map.offset + sequence_ * p.map.offset_batch_stride + head * p.map.offset_head_stride;
    if (p.map.projection == nullptr) return;
    projection =
        p.map.projection + sequence_ * p.map.projection_batch_stride + head * p.map.projection_head_stride;
    Fill(projection_t, 0, n.d * n.mp);
    Transpose(projection, n.d, n.m, n.d, 1, projection_t, n.mp);
  }

  int64_t StateIndex() const { return sequence_ * p.shape.heads + head; }
  int64_t NormalizerIndex(int64_t i) const {
    return row_index(queries, i, p.shape.query_tokens) * p.shape.heads + head;
  }
  bool KeepsKey(int64_t j) const {
    return p.key_mask == nullptr || p.key_mask[row_index(keys, j, p.shape.key_tokens)];
  }
  bool KeepsQuery(int64_t i) const {
    return p.query_mask == nullptr || p.query_mask[row_index(queries, i, p.shape.query_tokens)];
  }

  // Rows first .. first + count of a view, padded with zeros to `ld`.
  void LoadRows(const View& view, const Rows& rows, int64_t first, int64_t count, int64_t size, float factor_,
                float* out, int64_t ld) {
    const bool plain = view.type == DataType::float32;
    for (int64_t i = 0; i < count; ++i) {
      Fill(out + i * ld + ld - kLanes, 0, kLanes);
      const int64_t offset = rows.at(view, first + i, head);
      if (plain) {
        ScaleRow(static_cast<const float*>(view.data) + offset, factor_, size, out + i * ld);
      } else {
        cpu::LoadRow(view, offset, size, factor_, out + i * ld);
      }
    }
  }
  // The same, transposed to [size, Cp]; missing columns are zero.
  void LoadTransposed(const View& view, const Rows& rows, int64_t first, int64_t count, int64_t size,
                      float factor_, float* out) {
    if (count < n.cp) Fill(out, 0, size * n.cp);
    if (view.type == DataType::float32) {
      const float* source = static_cast<const float*>(view.data) + rows.at(view, first, head);
      Transpose(source, view.token_stride, count, size, factor_, out, n.cp);
      return;
    }
    for (int64_t j = 0; j < count; ++j) {
      cpu::LoadRow(view, rows.at(view, first + j, head), size, factor_, row);
      for (int64_t i = 0; i < size; ++i) out[i * n.cp + j] = row[i];
    }
  }

  // kt, key_norm and keep of a chunk of keys. A dropped column (masked or past the end) has keep 0 and, in
  // the exponential family, u = kEmptyLogScale, so that it moves no maximum. Returns whether any column is
  // dropped.
  bool LoadKeys(int64_t first, int64_t count) {
    LoadTransposed(p.key, keys, first, count, n.d, Scale(), kt);
    Fill(key_norm, 0, n.cp);
    const Tag d;
    const Vec eta = hn::Set(d, static_cast<float>(p.map.norm_weight));
    for (int64_t j = 0; exponential && j < n.cp; j += kLanes) {
      Vec sum = hn::Zero(d);
      for (int64_t i = 0; i < n.d; ++i) {
        const Vec x = hn::Load(d, kt + i * n.cp + j);
        sum = hn::MulAdd(x, x, sum);
      }
      hn::Store(hn::Mul(eta, sum), d, key_norm + j);
    }
    bool dropped = false;
    for (int64_t j = 0; j < n.cp; ++j) {
      const bool kept = j < count && KeepsKey(first + j);
      keep[j] = kept ? 1.0f : 0.0f;
      dropped = dropped || !kept;
      if (!kept) key_norm[j] = -kEmptyLogScale;
    }
    return dropped;
  }

  // u of the loaded keys, transposed [M, Cp].
  void KeyLogitsTransposed(float* out) {
    if (projection != nullptr)
      Gemm(n.m, n.cp, n.d, {projection, n.d, 1}, kt, n.cp, out, n.cp, false);
    else
      std::memcpy(out, kt, sizeof(float) * static_cast<size_t>(n.m * n.cp));
    if (!exponential && offset == nullptr) return;
    const Tag d;
    for (int64_t f = 0; f < n.m; ++f) {
      const Vec c = hn::Set(d, offset != nullptr ? offset[f] : 0.0f);
      for (int64_t j = 0; j < n.cp; j += kLanes) {
        Vec u = hn::Add(hn::Load(d, out + f * n.cp + j), c);
        if (exponential) u = hn::Max(hn::Sub(u, hn::Load(d, key_norm + j)), hn::Set(d, kEmptyLogScale));
        hn::Store(u, d, out + f * n.cp + j);
      }
    }
  }

  // u of the loaded keys by rows [count, Mp]; the padding of a row is 0.
  void KeyLogits(int64_t count, float* out) {
    if (projection != nullptr) {
      Gemm(count, n.mp, n.d, {kt, 1, n.cp}, projection_t, n.mp, out, n.mp, false);
    } else {
      Fill(out, 0, count * n.mp);
      for (int64_t j = 0; j < count; ++j) {
        for (int64_t i = 0; i < n.d; ++i) out[j * n.mp + i] = kt[i * n.cp + j];
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      AddOffset(out + j * n.mp);
      if (!exponential) continue;
      for (int64_t f = 0; f < n.m; ++f)
        out[j * n.mp + f] = HWY_MAX(out[j * n.mp + f] - key_norm[j], kEmptyLogScale);
    }
  }

  // u of a chunk of queries by rows [count, Mp], and qx.
  void QueryLogits(int64_t first, int64_t count, float* out) {
    LoadRows(p.query, queries, first, count, n.d, Scale(), qx, n.dp);
    if (projection != nullptr)
      Gemm(count, n.mp, n.d, {qx, n.dp, 1}, projection_t, n.mp, out, n.mp, false);
    else
      std::memcpy(out, qx, sizeof(float) * static_cast<size_t>(count * n.mp));
    for (int64_t i = 0; i < count; ++i) AddOffset(out + i * n.mp);
  }

  // new_scale = max(scale, largest u of the chunk), factor = exp(scale - new_scale) from u transposed [M,
  // Cp].
  void RaiseScale(const float* ut) {
    for (int64_t f = 0; f < n.m; ++f) new_scale[f] = HWY_MAX(scale[f], MaxOf(ut + f * n.cp, n.cp));
    FinishScale();
  }
  // The same from u by rows; only kept rows count.
  void RaiseScaleRows(const float* u, int64_t count) {
    std::memcpy(new_scale, scale, sizeof(float) * static_cast<size_t>(n.mp));
    const Tag d;
    for (int64_t j = 0; j < count; ++j) {
      if (keep[j] == 0.0f) continue;
      for (int64_t f = 0; f < n.mp; f += kLanes) {
        hn::Store(hn::Max(hn::Load(d, new_scale + f), hn::Load(d, u + j * n.mp + f)), d, new_scale + f);
      }
    }
    FinishScale();
  }

  // phi = exp(u + shift_f - c) along a row of features. The exponents are at most `most` but for rounding,
  // which for exponents of 1e12 is 65536: they are cut there.
  void ExpRow(const float* u, const float* shift, float c, float* phi, float most = 0) const {
    const Tag d;
    const Vec minus = hn::Set(d, c), largest = hn::Set(d, most);
    for (int64_t f = 0; f < n.mp; f += kLanes) {
      const Vec exponent = hn::Sub(hn::Add(hn::Load(d, u + f), hn::Load(d, shift + f)), minus);
      hn::Store(Exp(hn::Min(largest, exponent)), d, phi + f);  // in this order NaN stays NaN
    }
  }
  // phi = exp(u - scale_f) along a transposed row of tokens, exponents cut at 0 as above; dropped columns are
  // zero.
  void ExpColumns(const float* u, float minus_f, float* phi) const {
    const Tag d;
    const Vec minus = hn::Set(d, minus_f), zero = hn::Zero(d);
    for (int64_t j = 0; j < n.cp; j += kLanes) {
      const Vec exponent = hn::Min(zero, hn::Sub(hn::Load(d, u + j), minus));
      hn::Store(hn::Mul(hn::Load(d, keep + j), Exp(exponent)), d, phi + j);
    }
  }
  float MaxSum(const float* u, const float* shift) const {
    const Tag d;
    Vec m = hn::Set(d, 2 * kEmptyLogScale);
    for (int64_t f = 0; f < n.mp; f += kLanes)
      m = hn::Max(m, hn::Add(hn::Load(d, u + f), hn::Load(d, shift + f)));
    return hn::GetLane(hn::MaxOfLanes(d, m));
  }

  float Scale() const { return static_cast<float>(p.map.scale); }
  float Epsilon() const { return static_cast<float>(p.map.epsilon); }

  const AttentionForward& p;
  Sizes n;
  int64_t sequence_, head;
  bool exponential;
  Rows queries, keys;
  const float* projection = nullptr;  // [M, D] as given
  const float* offset = nullptr;      // [M]
  float* projection_t = nullptr;      // [D, Mp]
  float *qx, *kt, *value, *phi_q, *key_norm, *keep;
  float *key_sum, *scale, *new_scale, *factor;  // [Mp]; the padding of the scales is kEmptyLogScale
  float* row;

 private:
  void AddOffset(float* u) const {
    for (int64_t f = 0; offset != nullptr && f < n.m; ++f) u[f] += offset[f];
  }
  void FinishScale() {
    for (int64_t f = n.m; f < n.mp; ++f) new_scale[f] = kEmptyLogScale;
    const Tag d;
    for (int64_t f = 0; f < n.mp; f += kLanes) {
      hn::Store(Exp(hn::Sub(hn::Load(d, scale + f), hn::Load(d, new_scale + f))), d, factor + f);
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace performer::kernels
HWY_AFTER_NAMESPACE();
#endif  // include guard
