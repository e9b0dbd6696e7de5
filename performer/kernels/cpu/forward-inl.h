// SPDX-License-Identifier: Apache-2.0
// Forward pass of one (sequence, head).
#if defined(PERFORMER_KERNELS_CPU_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_FORWARD_INL_H_
#undef PERFORMER_KERNELS_CPU_FORWARD_INL_H_
#else
#define PERFORMER_KERNELS_CPU_FORWARD_INL_H_
#endif

#include "performer/kernels/cpu/head-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

template <class Number>
class ForwardHead : public Head<Number> {
 public:
  using Base = Head<Number>;
  using Base::kHalf, Base::p, Base::n, Base::head, Base::exponential, Base::queries, Base::keys, Base::kt;
  using Base::staging, Base::Epsilon, Base::StateIndex, Base::KeyProducts, Base::KeyLogit;
  using Base::value, Base::key_norm, Base::keep, Base::key_sum, Base::scale, Base::new_scale, Base::factor;

  ForwardHead(const AttentionForward& params, int64_t sequence, int64_t head_index, Scratch& scratch)
      : Base(params, sequence, head_index, scratch) {
    kv = scratch.floats(n.m * n.ep);
    ut = scratch.floats((p.causal ? n.m : this->feature_block) * n.cp);
    phi_t = scratch.floats(n.m * n.cp);
    uq = scratch.floats(kMostRows * n.mp);
    phi_q = p.causal || kHalf ? scratch.floats(kMostRows * n.mp) : uq;
    kv_right = kHalf ? scratch.floats(n.mg * n.ep) : kv;
    phi_right = kHalf && p.causal ? scratch.floats(n.mg * n.cp) : phi_t;
    out = scratch.floats(kMostRows * n.ep);
    weights = scratch.floats(kMostRows * n.cp);
    sum_update = scratch.floats(n.m * kLanes);
    if (!p.causal) return;
    kept_kv = scratch.floats(n.m * n.ep);
    kept_sum = scratch.floats(n.mp);
    kept_scale = scratch.floats(n.mp);
  }

  void Run() {
    this->Begin();
    LoadState();
    if (p.causal) {
      for (int64_t t = 0; t < queries.count; t += n.c) {
        const int64_t count = HWY_MIN(n.c, queries.count - t);
        KeyFeatures(t, count);
        PackState();
        for (int64_t i = 0; i < count; i += rows_) Read(t, i, HWY_MIN(rows_, count - i));
        Absorb(count);
      }
    } else {
      for (int64_t t = 0; t < keys.count; t += n.c) {
        const int64_t count = HWY_MIN(n.c, keys.count - t);
        KeyFeatures(t, count);
        Absorb(count);
      }
      PackState();
      for (int64_t t = 0; t < queries.count; t += rows_) Read(t, 0, HWY_MIN(rows_, queries.count - t));
    }
    StoreState();
  }

 private:
  void LoadState() {
    Fill(key_sum, 0, n.mp);
    Fill(scale, kEmptyLogScale, n.mp);
    Fill(kv, 0, n.m * n.ep);
    if (!p.initial) return;
    const float* from = static_cast<const float*>(p.initial.kv) + StateIndex() * n.m * n.e;
    for (int64_t f = 0; f < n.m; ++f)
      std::memcpy(kv + f * n.ep, from + f * n.e, sizeof(float) * static_cast<size_t>(n.e));
    const size_t bytes = sizeof(float) * static_cast<size_t>(n.m);
    std::memcpy(key_sum, static_cast<const float*>(p.initial.key_sum) + StateIndex() * n.m, bytes);
    if (exponential)
      std::memcpy(scale, static_cast<const float*>(p.initial.log_scale) + StateIndex() * n.m, bytes);
  }

  void StoreState() {
    if (!p.final) return;
    float* to = static_cast<float*>(p.final.kv) + StateIndex() * n.m * n.e;
    for (int64_t f = 0; f < n.m; ++f)
      std::memcpy(to + f * n.e, kv + f * n.ep, sizeof(float) * static_cast<size_t>(n.e));
    float* sums = static_cast<float*>(p.final.key_sum) + StateIndex() * n.m;
    float* scales = static_cast<float*>(p.final.log_scale) + StateIndex() * n.m;
    for (int64_t f = 0; f < n.m; ++f) {
      sums[f] = key_sum[f];
      scales[f] = exponential ? scale[f] : 0.0f;
    }
  }

  // Features and values of a chunk of keys; the state is brought to the scale that includes them.
  void KeyFeatures(int64_t first, int64_t count) {
    dropped_ = this->LoadKeys(first, count);
    this->LoadValues(first, count);
    for (int64_t f = 0; f < n.m; f += this->feature_block) {
      const int64_t features = HWY_MIN(this->feature_block, n.m - f);
      float* u = p.causal ? ut + f * n.cp : ut;
      KeyProducts(f, features, u);
      if (!exponential)
        ElementwiseFeatures(f, features, u);
      else if (n.cp != 4 * kLanes)
        ExponentialFeatures<0, true>(f, features, u);
      else if (dropped_ || p.causal)
        ExponentialFeatures<4, true>(f, features, u);
      else
        ExponentialFeatures<4, false>(f, features, u);
    }
    kept_ = false;
    if (exponential) Rescale();
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) PackFeatures();
#endif
  }

  // phi, its sums and its largest log-weights for a block of features of all keys of the chunk, from P.x' in
  // u. kVecs: vectors of a row of tokens, 0 when only known at run time. kGeneral: keys may be dropped, and u
  // is kept.
  template <int kVecs, bool kGeneral>
  HWY_NOINLINE void ExponentialFeatures(int64_t first, int64_t count, float* HWY_RESTRICT u) {
    const Tag d;
    const int64_t vectors = kVecs > 0 ? kVecs : n.cp / kLanes;
    const float* HWY_RESTRICT norm = key_norm;
    for (int64_t f = first; f < first + count; ++f, u += n.cp) {
      float* HWY_RESTRICT phi = phi_t + f * n.cp;
      const Vec c = hn::Set(d, this->Offset(f)), none = hn::Set(d, kEmptyLogScale);
      Vec logit[kVecs > 0 ? kVecs : 1];
      Vec most = hn::Set(d, scale[f]);
      for (int64_t v = 0; v < vectors; ++v) {
        const Vec raw = hn::Sub(hn::Add(hn::Load(d, u + v * kLanes), c), hn::Load(d, norm + v * kLanes));
        const Vec x = LargerOf(none, raw);
        if (kVecs > 0) logit[kVecs > 0 ? v : 0] = x;
        if (kGeneral) hn::Store(x, d, u + v * kLanes);
        most = hn::Max(most, x);
      }
      const Vec largest = hn::MaxOfLanes(d, most);
      new_scale[f] = hn::GetLane(largest);
      Vec sum = hn::Zero(d);
      for (int64_t v = 0; v < vectors; ++v) {
        const Vec x = kVecs > 0 ? logit[kVecs > 0 ? v : 0] : hn::Load(d, u + v * kLanes);
        Vec y = ExpUnchecked(hn::Sub(x, largest));
        if (kGeneral) y = hn::Mul(y, hn::Load(d, keep + v * kLanes));
        hn::Store(y, d, phi + v * kLanes);
        sum = hn::Add(sum, y);
      }
      hn::Store(sum, d, sum_update + f * kLanes);
    }
  }
  HWY_NOINLINE void ElementwiseFeatures(int64_t first, int64_t count, float* HWY_RESTRICT u) {
    const Tag d;
    for (int64_t f = first; f < first + count; ++f, u += n.cp) {
      float* phi = phi_t + f * n.cp;
      if (this->offset != nullptr) AddConstant(this->offset[f], u, n.cp);
      ApplyFunction(p.map.function, Epsilon(), u, phi, n.cp);
      if (dropped_) MultiplyRow(phi, keep, n.cp);
      Vec sum = hn::Zero(d);
      for (int64_t j = 0; j < n.cp; j += kLanes) sum = hn::Add(sum, hn::Load(d, phi + j));
      hn::Store(sum, d, sum_update + f * kLanes);
    }
  }

  void Rescale() {
    this->FinishScale();
    if (this->LosesState()) {
      kept_ = true;
      Copy(kv, kept_kv, n.m * n.ep);
      Copy(key_sum, kept_sum, n.mp);
      Copy(scale, kept_scale, n.mp);
    }
    for (int64_t f = 0; f < n.m; ++f) {
      if (factor[f] != 1.0f) Multiply(kv + f * n.ep, factor[f], n.ep);
    }
    MultiplyRow(key_sum, factor, n.mp);
    Copy(new_scale, scale, n.mp);
  }

#ifdef PERFORMER_BFLOAT16
  // Features as cells: tokens paired along the row (phi_t, in place) for the state, features paired down the
  // column (phi_right) for the weights of a causal chunk.
  void PackFeatures() {
    if (p.causal) PackRowPairs(phi_t, n.cp, n.m, n.cp, phi_right, n.cp);
    for (int64_t f = 0; f < n.m; ++f) PackRowAlong(phi_t + f * n.cp, n.cp, phi_t + f * n.cp);
  }
#endif
  void PackState() {
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) PackRowPairs(kv, n.ep, n.m, n.ep, kv_right, n.ep);
#endif
  }

  void Absorb(int64_t count) {
    Gemm<Number>(n.m, n.ep, n.Groups(count), {phi_t, n.cp, 1}, value.data, value.ld, kv, n.ep, true);
    for (int64_t f = 0; f < n.m; ++f) key_sum[f] += SumOf(sum_update + f * kLanes, kLanes);
  }

  // Outputs of queries `start` .. `start` + `rows` of the chunk at `first`: what the state holds, plus, when
  // causal, the chunk's own keys up to each row.
  void Read(int64_t first, int64_t start, int64_t rows) {
    this->QueryLogits(first + start, rows, uq);
    if (exponential) {
      for (int64_t i = 0; i < rows; ++i) shift[i] = this->MaxSum(uq + i * n.mp, scale);
    }
    for (int64_t i = 0; i < rows; ++i) FeaturesOfQuery(i);
    Gemm<Number>(rows, n.ep, n.mg, {phi_q, n.mp, 1}, kv_right, n.ep, out, n.ep, false);
    if (p.causal) ReadChunk(start, rows);
    for (int64_t i = 0; i < rows; ++i) Finish(first, start, i);
  }

  // phi of a query, shifted by its largest log-weight, and its share of the denominator in the state.
  HWY_INLINE void FeaturesOfQuery(int64_t i) {
    const Tag d;
    float *u = uq + i * n.mp, *phi = phi_q + i * n.mp;
    if (exponential) {
      const Vec minus = hn::Set(d, shift[i]);
      Vec sum = hn::Zero(d);
      for (int64_t f = 0; f < n.mp; f += kLanes) {
        const Vec x = hn::Sub(hn::Add(hn::Load(d, u + f), hn::Load(d, scale + f)), minus);
        const Vec y = ExpUnchecked(x);
        sum = hn::MulAdd(y, hn::Load(d, key_sum + f), sum);
        hn::Store(y, d, phi + f);
      }
      denominator[i] = SumOfLanes(sum);
    } else {
      ApplyFunction(p.map.function, Epsilon(), u, phi, n.mp);
      denominator[i] = Dot(phi, key_sum, n.mp);
    }
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) PackRowAlong(phi, n.mp, phi);
#endif
  }

  void ReadChunk(int64_t start, int64_t rows) {
    const int64_t columns = start + rows;
    Gemm<Number>(rows, columns, n.mg, {phi_q, n.mp, 1}, phi_right, n.cp, weights, n.cp, false);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = weights + i * n.cp;
      const int64_t padded = kHalf ? Sizes<Number>::PaddedToCells(columns) : Padded(columns);
      for (int64_t j = start + i + 1; j < padded; ++j) row[j] = 0;
      denominator[i] += SumOf(row, padded);
#ifdef PERFORMER_BFLOAT16
      if constexpr (kHalf) PackRowAlong(row, padded, row);
#endif
    }
    Gemm<Number>(rows, n.ep, n.Groups(columns), {weights, n.cp, 1}, value.data, value.ld, out, n.ep, true);
  }

  void Finish(int64_t first, int64_t start, int64_t i) {
    const int64_t token = first + start + i;
    float normalizer = 0;
    bool empty = !this->KeepsQuery(token);
    if (exponential && !empty) {
      empty = shift[i] < kEmptyLogScale / 2;
      const float log_denominator = std::log(denominator[i]);
      if (!empty && p.causal && !(log_denominator > -kSlowGap)) empty = !ReadSlowly(start, i);
      normalizer = shift[i] + std::log(denominator[i]);
    } else if (!empty) {
      empty = vanishes(denominator[i]);
      normalizer = denominator[i];
    }
    if (empty) Fill(out + i * n.ep, 0, n.ep);
    const float none = exponential ? std::numeric_limits<float>::infinity() : 0.0f;
    if (p.normalizer != nullptr)
      static_cast<float*>(p.normalizer)[this->NormalizerIndex(token)] = empty ? none : normalizer;
    StoreRow(p.out, queries.at(p.out, token, head), n.e, empty ? 1.0f : 1.0f / denominator[i],
             out + i * n.ep);
  }

  // A causal row whose own keys are far weaker than later ones of the chunk: shifted by what it really sees.
  // False when it sees no key at all.
  bool ReadSlowly(int64_t start, int64_t i) {
    const float* u = uq + i * n.mp;
    const float* state_kv = kept_ ? kept_kv : kv;
    const float* state_sum = kept_ ? kept_sum : key_sum;
    const float* state_scale = kept_ ? kept_scale : scale;
    float largest = 2 * kEmptyLogScale;
    for (int64_t f = 0; f < n.m; ++f) {
      if (state_sum[f] != 0.0f) largest = HWY_MAX(largest, u[f] + state_scale[f] + std::log(state_sum[f]));
      for (int64_t j = 0; j <= start + i; ++j) {
        if (keep[j] != 0.0f) largest = HWY_MAX(largest, u[f] + ut[f * n.cp + j]);
      }
    }
    if (largest < kEmptyLogScale / 2) return false;
    double total = 0;
    Fill(out + i * n.ep, 0, n.ep);
    for (int64_t f = 0; f < n.m; ++f) {
      if (state_sum[f] == 0.0f) continue;
      const float w = std::exp(u[f] + state_scale[f] - largest);
      total += static_cast<double>(w) * state_sum[f];
      Axpy(w, state_kv + f * n.ep, out + i * n.ep, n.ep);
    }
    for (int64_t j = 0; j <= start + i; ++j) {
      if (keep[j] == 0.0f) continue;
      float w = 0;
      for (int64_t f = 0; f < n.m; ++f) w += std::exp(u[f] + ut[f * n.cp + j] - largest);
      total += w;
      Axpy(w, ValueOf(j), out + i * n.ep, n.ep);
    }
    shift[i] = largest;
    denominator[i] = static_cast<float>(total);
    return true;
  }

  // Value row j of the chunk as float32.
  const float* ValueOf(int64_t j) const {
    if constexpr (!kHalf) {
      std::memcpy(staging, value.data + j * value.ld, sizeof(float) * static_cast<size_t>(n.ep));
      return staging;
    }
    const float* cells = value.data + j / 2 * n.ep;
    for (int64_t i = 0; i < n.ep; ++i) {
      const uint32_t bits = std::bit_cast<uint32_t>(cells[i]);
      staging[i] = std::bit_cast<float>(j % 2 == 0 ? bits << 16 : bits & 0xFFFF0000u);
    }
    return staging;
  }

  // Queries read together. Fewer waste less of the causal triangle, more use the caches better.
  static constexpr int64_t kMostRows = 48;
  const int64_t rows_ = HWY_MIN(n.c, p.causal && !kHalf ? kBlock : kMostRows);

  float* kv;          // [M, Ep]
  float* ut;          // u of the keys, [M, Cp] when causal, else of a block of features
  float* phi_t;       // cells [M, Cp] of the keys' features, depth C
  float* phi_right;   // the same as cells [M, Cp], depth M
  float* uq;          // [rows, Mp]
  float* phi_q;       // cells [rows, Mp], depth M
  float* kv_right;    // the state as cells [M, Ep], depth M
  float* out;         // [rows, Ep]
  float* weights;     // [rows, Cp], then as cells, depth C
  float* sum_update;  // sums of the chunk's features, lane by lane, [M, kLanes]
  float denominator[kMostRows], shift[kMostRows];
  float *kept_kv = nullptr, *kept_sum = nullptr, *kept_scale = nullptr;
  bool kept_ = false, dropped_ = false;
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
