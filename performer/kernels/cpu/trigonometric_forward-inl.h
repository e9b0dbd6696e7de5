// SPDX-License-Identifier: Apache-2.0
// Forward pass of one (sequence, head) of the trigonometric family.
#if defined(PERFORMER_KERNELS_CPU_TRIGONOMETRIC_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_TRIGONOMETRIC_FORWARD_INL_H_
#undef PERFORMER_KERNELS_CPU_TRIGONOMETRIC_FORWARD_INL_H_
#else
#define PERFORMER_KERNELS_CPU_TRIGONOMETRIC_FORWARD_INL_H_
#endif

#include "performer/kernels/cpu/trigonometric-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

template <class Number>
class TrigonometricForward : public Head<Number> {
 public:
  using Base = Head<Number>;
  using Base::kHalf, Base::p, Base::n, Base::head, Base::queries, Base::keys, Base::value, Base::keep,
      Base::key_norm, Base::key_sum, Base::StateIndex;

  TrigonometricForward(const AttentionForward& params, int64_t sequence, int64_t head_index, Scratch& scratch)
      : Base(params, sequence, head_index, scratch), weights(n, scratch) {
    kv = scratch.floats(n.rows * n.ep);
    u = scratch.floats(this->feature_block * n.cp);
    phi_t = scratch.floats(n.rows * n.cp);
    uq = scratch.floats(kMostRows * n.mp);
    phi_q = scratch.floats(kMostRows * n.fp);
    kv_right = kHalf ? scratch.floats(n.rows_g * n.ep) : kv;
    phi_right = kHalf && p.causal ? scratch.floats(n.rows_g * n.cp) : phi_t;
    out = scratch.floats(kMostRows * n.ep);
    if (!p.causal) return;
    pairs = scratch.floats(kMostRows * n.cp);
    seen = scratch.floats(n.cp);
  }

  void Run() {
    this->Begin();
    LoadState();
    for (int64_t t = 0; t < keys.count; t += n.c) {
      const int64_t count = HWY_MIN(n.c, keys.count - t);
      LoadChunk(t, count);
      for (int64_t i = 0; p.causal && i < count; i += rows_) Read(t, i, HWY_MIN(rows_, count - i));
      Absorb(count);
    }
    PackState();
    for (int64_t t = 0; !p.causal && t < queries.count; t += rows_)
      Read(t, 0, HWY_MIN(rows_, queries.count - t));
    StoreState();
  }

 private:
  int64_t Features() const { return 2 * n.m + 1; }

  void LoadState() {
    Fill(kv, 0, n.rows * n.ep);
    Fill(key_sum, 0, n.fp);
    if (!p.initial) return;
    const int64_t index = StateIndex() * Features();
    const float* from = static_cast<const float*>(p.initial.kv) + index * n.e;
    const float* from_sum = static_cast<const float*>(p.initial.key_sum) + index;
    for (int64_t f = 0; f < Features(); ++f) {
      const int64_t row = RowOfFeature(n, f);
      std::memcpy(kv + row * n.ep, from + f * n.e, sizeof(float) * static_cast<size_t>(n.e));
      (row < n.f ? key_sum[row] : weight_sum_) = from_sum[f];
    }
    scale_ = static_cast<const float*>(p.initial.log_scale)[index + 2 * n.m];
  }
  void StoreState() const {
    if (!p.final) return;
    const int64_t index = StateIndex() * Features();
    float* to = static_cast<float*>(p.final.kv) + index * n.e;
    for (int64_t f = 0; f < Features(); ++f) {
      const int64_t row = RowOfFeature(n, f);
      std::memcpy(to + f * n.e, kv + row * n.ep, sizeof(float) * static_cast<size_t>(n.e));
      static_cast<float*>(p.final.key_sum)[index + f] = row < n.f ? key_sum[row] : weight_sum_;
      static_cast<float*>(p.final.log_scale)[index + f] = scale_;
    }
  }
  void PackState() {
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) PackRowPairs(kv, n.ep, n.rows, n.ep, kv_right, n.ep);
#endif
  }

  // Features and values of a chunk of keys. Without causality nobody reads the chunk itself, and its features
  // get their weights at once.
  void LoadChunk(int64_t first, int64_t count) {
    this->LoadKeys(first, count);
    this->LoadValues(first, count);
    weights.Load(key_norm);
    raised_ = weights.Largest(scale_);
    weights.Weigh(keep, -raised_);
    for (int64_t f = 0; f < n.m; f += this->feature_block) {
      const int64_t features = HWY_MIN(this->feature_block, n.m - f);
      this->KeyProducts(f, features, u);
      for (int64_t i = 0; i < features; ++i) {
        if (p.causal)
          KeyFeature<false>(f + i, u + i * n.cp);
        else
          KeyFeature<true>(f + i, u + i * n.cp);
      }
    }
    if (n.sines > n.m) Fill(phi_t + n.m * n.cp, 0, n.cp);
    if (!p.causal) return;
    weights.LoadLargest(scale_);
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) PackRowPairs(phi_t, n.cp, n.f, n.cp, phi_right, n.cp);
#endif
    PackState();
  }
  template <bool kWeighted>
  HWY_INLINE void KeyFeature(int64_t f, const float* arguments) const {
    const Tag d;
    const Vec c = hn::Set(d, this->Offset(f));
    float *cosines = phi_t + f * n.cp, *sines = phi_t + (n.sines + f) * n.cp;
    for (int64_t j = 0; j < n.cp; j += kLanes) {
      Wave wave = SineAndCosine(hn::Add(hn::Load(d, arguments + j), c));
      if (kWeighted) {
        const Vec w = hn::Load(d, weights.weight + j);
        wave = {hn::Mul(wave.sine, w), hn::Mul(wave.cosine, w)};
      }
      hn::Store(wave.cosine, d, cosines + j);
      hn::Store(wave.sine, d, sines + j);
    }
  }

  // Adds the chunk to the state, brought to the scale that includes it.
  void Absorb(int64_t count) {
    const float decay = WeightOf(scale_ - raised_);
    scale_ = raised_;
    if (decay != 1.0f) Multiply(kv, decay, n.rows * n.ep);
    for (int64_t f = 0; f < n.f; ++f) {
      float* phi = phi_t + f * n.cp;
      if (p.causal) MultiplyRow(phi, weights.weight, n.cp);
      key_sum[f] = key_sum[f] * decay + SumOf(phi, n.cp);
    }
    weight_sum_ = weight_sum_ * decay + SumOf(weights.weight, n.cp);
    Copy(weights.weight, phi_t + n.f * n.cp, n.cp);
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) {
      for (int64_t f = 0; f < n.rows; ++f) PackRowAlong(phi_t + f * n.cp, n.cp, phi_t + f * n.cp);
    }
#endif
    Gemm<Number>(n.rows, n.ep, n.Groups(count), {phi_t, n.cp, 1}, value.data, value.ld, kv, n.ep, true);
  }

  // Outputs of queries `start` .. `start` + `rows` of the chunk at `first`. A causal row counts in units of
  // the largest weight that it sees, others in those of the state.
  void Read(int64_t first, int64_t start, int64_t rows) {
    this->QueryLogits(first + start, rows, uq);
    for (int64_t i = 0; i < rows; ++i) {
      float* phi = phi_q + i * n.fp;
      WaveRow(uq + i * n.mp, n.m, n.sines, n.fp, phi);
      denominator[i] = Dot(phi, key_sum, n.fp);
      weight_total[i] = weight_sum_;
#ifdef PERFORMER_BFLOAT16
      if constexpr (kHalf) PackRowAlong(phi, n.fp, phi);
#endif
    }
    Gemm<Number>(rows, n.ep, n.Groups(n.f), {phi_q, n.fp, 1}, kv_right, n.ep, out, n.ep, false);
    if (p.causal) ReadChunk(start, rows);
    for (int64_t i = 0; i < rows; ++i) Finish(first + start + i, i);
  }

  void ReadChunk(int64_t start, int64_t rows) {
    const int64_t columns = start + rows, padded = Sizes<Number>::PaddedToCells(columns);
    Gemm<Number>(rows, columns, n.Groups(n.f), {phi_q, n.fp, 1}, phi_right, n.cp, pairs, n.cp, false);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = pairs + i * n.cp;
      const float earlier = WeightOf(scale_ - weights.largest[start + i]);
      Multiply(out + i * n.ep, earlier, n.ep);
      weight_total[i] = earlier * weight_sum_ + weights.Seen(start + i, keep, padded, seen);
      for (int64_t j = Padded(columns); j < padded; ++j) row[j] = 0;
      MultiplyRow(row, seen, padded);
      denominator[i] = earlier * denominator[i] + SumOf(row, padded);
#ifdef PERFORMER_BFLOAT16
      if constexpr (kHalf) PackRowAlong(row, padded, row);
#endif
    }
    Gemm<Number>(rows, n.ep, n.Groups(columns), {pairs, n.cp, 1}, value.data, value.ld, out, n.ep, true);
  }

  void Finish(int64_t token, int64_t i) {
    const float sum = this->KeepsQuery(token) ? weight_total[i] : 0.0f;
    const int64_t at = this->NormalizerIndex(token);
    auto* normalizer = static_cast<float*>(p.normalizer);
    const View& to = p.out;
    if (weight_sums != nullptr) {
      weight_sums[at] = sum;
      normalizer[at] = denominator[i];
      return StoreRow(to, queries.at(to, token, head), n.e, 1.0f, out + i * n.ep);
    }
    const FlooredDenominator safe = Floored(denominator[i], sum, n.m);
    const bool empty = sum == 0.0f;
    if (empty) Fill(out + i * n.ep, 0, n.ep);
    if (normalizer != nullptr) normalizer[at] = empty ? 0.0f : safe.normalizer;
    StoreRow(to, queries.at(to, token, head), n.e, empty ? 1.0f : 1.0f / safe.divisor, out + i * n.ep);
  }

  static constexpr int64_t kMostRows = 48;
  const int64_t rows_ = HWY_MIN(n.c, p.causal && !kHalf ? kBlock : kMostRows);

  KeyWeights<Number> weights;
  float* kv;                                // [rows, Ep]
  float* u;                                 // arguments of a block of keys' features, [feature_block, Cp]
  float* phi_t;                             // [rows, Cp] of the keys, then as cells with depth C
  float* phi_right;                         // the same without weights as cells with depth F
  float* uq;                                // [rows_, Mp]
  float* phi_q;                             // [rows_, Fp], then as cells with depth F
  float* kv_right;                          // the state as cells with depth F
  float* out;                               // [rows_, Ep]
  float *pairs = nullptr, *seen = nullptr;  // [rows_, Cp], then as cells with depth C; [Cp]
  float denominator[kMostRows], weight_total[kMostRows];
  float scale_ = kEmptyLogScale, raised_ = kEmptyLogScale;  // of the state, and with the chunk
  float weight_sum_ = 0;                                    // of the keys in the state

 protected:
  float* weight_sums = nullptr;  // where to leave them, instead of dividing: WaveGroupsForward
};

// One group of a head's frequencies.
template <class Number>
class TrigonometricGroupForward : public TrigonometricForward<Number> {
 public:
  TrigonometricGroupForward(const WaveGroupsForward& groups, int64_t sequence, int64_t group,
                            Scratch& scratch)
      : TrigonometricForward<Number>(groups.call, sequence, group, scratch) {
    this->weight_sums = groups.weight_sums;
  }
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
