// SPDX-License-Identifier: Apache-2.0
// Causal backward pass: a sweep forwards for the gradients of queries, with the keys' state, and one
// backwards for those of keys and values, with the mirror state, which has log-scales of its own.
#if defined(PERFORMER_KERNELS_CPU_BACKWARD_CAUSAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_BACKWARD_CAUSAL_INL_H_
#undef PERFORMER_KERNELS_CPU_BACKWARD_CAUSAL_INL_H_
#else
#define PERFORMER_KERNELS_CPU_BACKWARD_CAUSAL_INL_H_
#endif

#include "performer/kernels/cpu/backward-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

template <class Number>
class CausalBackward : public BackwardHead<Number> {
 public:
  using Base = BackwardHead<Number>;
  using Base::b, Base::kHalf, Base::p, Base::n, Base::exponential, Base::queries, Base::keys, Base::kt;
  using Base::dvalue_t, Base::norm_gradient, Base::new_scale, Base::offset, Base::staging, Base::Epsilon;
  using Base::dx;
  using Base::gradient, Base::gradient_rows, Base::gradient_pairs, Base::normalizer, Base::inner;
  using Base::state_right, Base::mirror, Base::mirror_sum, Base::mirror_rows, Base::mirror_pairs;
  using Base::value, Base::value_t, Base::keep, Base::key_norm, Base::key_sum, Base::scale, Base::sums;

  CausalBackward(const AttentionBackward& params, int64_t sequence, int64_t head_index, Scratch& scratch)
      : Base(params, sequence, head_index, scratch) {
    const int64_t rows = HWY_MAX(n.c * n.mp, n.m * n.cp);
    uq = scratch.floats(n.c * n.mp);
    phi_q = scratch.floats(n.c * n.mp);
    phi_q_rows = kHalf ? scratch.floats(n.c * n.mp) : phi_q;
    phi_q_tokens = kHalf ? scratch.floats(n.cg * n.mp) : phi_q;
    uk = scratch.floats(rows);
    phi_k = scratch.floats(rows);
    phi_k_cells = kHalf ? scratch.floats(HWY_MAX(n.cg * n.mp, n.mg * n.cp)) : phi_k;
    du = scratch.floats(rows);
    pairs = scratch.floats(n.c * n.cp);
    pairs_cells = kHalf ? scratch.floats(n.c * n.cp) : pairs;
    weights = scratch.floats(kBlock * n.cp);
    weights_cells = kHalf ? scratch.floats(kBlock * n.cp) : weights;
    slow = scratch.floats(n.cp);
    kept_state = scratch.floats(HWY_MAX(n.e * n.mp, n.m * n.ep));
    kept_sum = scratch.floats(n.mp);
    kept_scale = scratch.floats(n.mp);
    mirror_scale = scratch.floats(n.mp);
  }

  void Run() {
    this->Begin();
    QuerySweep();
    KeySweep();
  }

 private:
  // ---- Sweep forwards: gradients of queries. ----

  void QuerySweep() {
    this->LoadInitialState();
    for (int64_t t = 0; t < queries.count; t += n.c) {
      const int64_t count = HWY_MIN(n.c, queries.count - t);
      this->KeyFeaturesByRows(t, count, uk, phi_k, [this] { KeepState(); });
#ifdef PERFORMER_BFLOAT16
      if constexpr (kHalf) PackRowPairs(phi_k, n.mp, count, n.mp, phi_k_cells, n.mp);
#endif
      QueryGradients(t, count);
      this->AbsorbKeys(count, phi_k, phi_k_cells);
    }
  }

  void KeepState() {
    kept_ = this->LosesState();
    if (!kept_) return;
    Copy(sums, kept_state, n.e * n.mp);
    Copy(key_sum, kept_sum, n.mp);
    Copy(scale, kept_scale, n.mp);
  }

  // pairs = t(i, j) for j <= i, else 0, in blocks of rows up to the block's diagonal.
  void Pairs(int64_t count) {
    for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
      const int64_t rows = HWY_MIN(kBlock, count - i0), columns = Columns(i0 + rows);
      Gemm<Number>(rows, columns, n.eg, {gradient_rows + i0 * n.ep, n.ep, 1}, value_t, n.cp,
                   pairs + i0 * n.cp, n.cp, false);
      for (int64_t i = i0; i < i0 + rows; ++i) {
        float* row = pairs + i * n.cp;
        AddConstant(inner[i], row, columns);
        for (int64_t j = i + 1; j < columns; ++j) row[j] = 0;
      }
    }
  }
  // Whole vectors, also as cells.
  static int64_t Columns(int64_t count) {
    return Sizes<Number>::PaddedToCells(count);
  }

  void QueryGradients(int64_t first, int64_t count) {
    this->QueryLogits(first, count, uq);
    this->LoadOutputGradients(first, count);
    this->PackState();
    this->LoadTransposed(p.value, keys, first, count, n.e, value_t);
    Pairs(count);
    Gemm<Number>(count, n.mp, n.eg, {gradient_rows, n.ep, 1}, state_right, n.mp, du, n.mp, false);
    for (int64_t i = 0; i < count; ++i) Axpy(inner[i], key_sum, du + i * n.mp, n.mp);
    for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
      const int64_t rows = HWY_MIN(kBlock, count - i0);
#ifdef PERFORMER_BFLOAT16
      if constexpr (kHalf) {
        for (int64_t i = i0; i < i0 + rows; ++i)
          PackRowAlong(pairs + i * n.cp, Columns(i0 + rows), pairs_cells + i * n.cp);
      }
#endif
      Gemm<Number>(rows, n.mp, n.Groups(i0 + rows), {pairs_cells + i0 * n.cp, n.cp, 1}, phi_k_cells, n.mp,
                   du + i0 * n.mp, n.mp, true);
    }
    if (exponential) {
      NormalizedQueryFeatures(count, scale);
      for (int64_t i = 0; i < count; ++i) {
        MultiplyRow(du + i * n.mp, phi_q + i * n.mp, n.mp);
        if (slow[i] != 0.0f) QueryGradientSlowly(i);
      }
    } else {
      MultiplyDerivative(p.map.function, uq, du, count * n.mp);
    }
    for (int64_t i0 = 0; i0 < count; i0 += kBlock)
      this->StoreQueryGradients(first + i0, HWY_MIN(kBlock, count - i0), du + i0 * n.mp);
  }

  // phi_q = exp(uq + shift_f - normalizer_i), the normalised weights; rows that overflow are zeroed and
  // marked slow. They may exceed 1, for keys that the row may not see.
  void NormalizedQueryFeatures(int64_t count, const float* shift) {
    for (int64_t i = 0; i < count; ++i) {
      const float* u = uq + i * n.mp;
      slow[i] = this->MaxSum(u, shift) - normalizer[i] > kSlowGap ? 1.0f : 0.0f;
      if (slow[i] != 0.0f)
        Fill(phi_q + i * n.mp, 0, n.mp);
      else
        this->ExpRow(u, shift, normalizer[i], phi_q + i * n.mp, kSlowGap);
    }
  }

  void QueryGradientSlowly(int64_t i) {
    const float* u = uq + i * n.mp;
    const float* state = kept_ ? kept_state : sums;
    const float* state_sum = kept_ ? kept_sum : key_sum;
    const float* state_scale = kept_ ? kept_scale : scale;
    for (int64_t f = 0; f < n.m; ++f) {
      float from_state = inner[i] * state_sum[f];
      for (int64_t k = 0; k < n.e; ++k) from_state += gradient[i * n.ep + k] * state[k * n.mp + f];
      const float weight =
          state_sum[f] == 0.0f ? 0.0f : this->WeightOf(u[f] + state_scale[f] - normalizer[i]);
      float total = weight * from_state;
      for (int64_t j = 0; j <= i; ++j) {
        if (keep[j] != 0.0f)
          total += this->WeightOf(u[f] + uk[j * n.mp + f] - normalizer[i]) * pairs[i * n.cp + j];
      }
      du[i * n.mp + f] = total;
    }
  }

  // ---- Sweep backwards: gradients of keys and values. ----

  void KeySweep() {
    this->LoadMirror(mirror_scale);
    const int64_t chunks = (keys.count + n.c - 1) / n.c;
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t t = chunk * n.c, count = HWY_MIN(n.c, keys.count - t);
      KeyGradients(t, count);
      if (chunk > 0 || b.grad_initial) AbsorbQueries(count);
    }
    this->StoreInitialGradient(mirror_scale);
  }

  // Adds a chunk of queries, whose uq, gradient and inner are at hand, to the mirror state.
  void AbsorbQueries(int64_t count) {
    if (exponential) {
      const Tag d;
      Copy(mirror_scale, new_scale, n.mp);
      for (int64_t i = 0; i < count; ++i) {
        const Vec minus = hn::Set(d, normalizer[i]);
        for (int64_t f = 0; f < n.mp; f += kLanes) {
          const Vec x = hn::Sub(hn::Load(d, uq + i * n.mp + f), minus);
          hn::Store(hn::Max(hn::Load(d, new_scale + f), x), d, new_scale + f);
        }
      }
      for (int64_t f = 0; f < n.m; ++f) {
        if (new_scale[f] == mirror_scale[f]) continue;
        const float down = std::exp(mirror_scale[f] - new_scale[f]);
        Multiply(mirror + f * n.ep, down, n.ep);
        mirror_sum[f] *= down;
      }
      Copy(new_scale, mirror_scale, n.mp);
      for (int64_t f = 0; f < n.mp; ++f) new_scale[f] = -mirror_scale[f];
      for (int64_t i = 0; i < count; ++i)
        this->ExpRow(uq + i * n.mp, new_scale, normalizer[i], phi_q + i * n.mp, 0);
    } else {
      ApplyFunction(p.map.function, Epsilon(), uq, phi_q, count * n.mp);
    }
    PackQueryFeatures(count, false);
    Gemm<Number>(n.m, n.ep, n.Groups(count), {phi_q_tokens, 1, n.mp}, gradient_pairs, n.ep, mirror, n.ep,
                 true);
    for (int64_t i = 0; i < count; ++i) Axpy(inner[i], phi_q + i * n.mp, mirror_sum, n.mp);
  }
  void PackQueryFeatures([[maybe_unused]] int64_t count, [[maybe_unused]] bool rows_too) {
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) {
      PackRowPairs(phi_q, n.mp, count, n.mp, phi_q_tokens, n.mp);
      for (int64_t i = 0; rows_too && i < count; ++i)
        PackRowAlong(phi_q + i * n.mp, n.mp, phi_q_rows + i * n.mp);
    }
#endif
  }

  void KeyGradients(int64_t first, int64_t count) {
    const bool dropped = this->LoadKeys(first, count);
    this->LoadTransposed(p.value, keys, first, count, n.e, value_t);
    this->KeyLogitsTransposed(uk);
    this->QueryLogits(first, count, uq);
    this->LoadOutputGradients(first, count);
    MirrorForKeys(dropped);
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) PackRowPairs(phi_k, n.cp, n.m, n.cp, phi_k_cells, n.cp);
#endif
    // du [M, Cp] = R v + r, dvalue_t [E, Cp] = R^T phi: what later queries ask for.
    Gemm<Number>(n.m, n.cp, n.eg, {mirror_rows_, n.ep, 1}, value_t, n.cp, du, n.cp, false);
    Gemm<Number>(n.e, n.cp, n.mg, {mirror_pairs_, 1, n.ep}, phi_k_cells, n.cp, dvalue_t, n.cp, false);
    AddChunkPairs(count);
    Fill(norm_gradient, 0, n.cp);
    for (int64_t f = 0; f < n.m; ++f) FinishLogitGradients(f, dropped);
    for (int64_t i = 0; exponential && i < count; ++i) {
      if (slow[i] != 0.0f) AddSlowPairs(i);
    }
    this->AddKeyGradients(0, n.m, du, phi_k_cells, false);
    this->StoreKeyGradients(first, count);
  }

  // The gradients of one feature's logits of all keys, from the sums over queries in du.
  HWY_INLINE void FinishLogitGradients(int64_t f, bool dropped) {
    float* gradients = du + f * n.cp;
    AddConstant(chunk_sum_[f], gradients, n.cp);
    if (!exponential) {
      MultiplyDerivative(p.map.function, uk + f * n.cp, gradients, n.cp);
      if (dropped) MultiplyRow(gradients, keep, n.cp);
      return;
    }
    MultiplyRow(gradients, phi_k + f * n.cp, n.cp);
    Axpy(1, gradients, norm_gradient, n.cp);
  }

  // phi_k, and the mirror state brought to the same scale, the largest u of the chunk.
  void MirrorForKeys(bool dropped) {
    chunk_sum_ = mirror_sum;
    const float* state = mirror;
    if (!exponential) {
      ApplyFunction(p.map.function, Epsilon(), uk, phi_k, n.m * n.cp);
      for (int64_t f = 0; dropped && f < n.m; ++f) MultiplyRow(phi_k + f * n.cp, keep, n.cp);
    } else {
      const Tag d;
      Fill(new_scale, kEmptyLogScale, n.mp);
      for (int64_t f = 0; f < n.m; ++f) {
        const float* u = uk + f * n.cp;
        new_scale[f] = MaxOf(u, n.cp);
        for (int64_t j = 0; j < n.cp; j += kLanes) {
          const Vec x = ExpUnchecked(hn::Sub(hn::Load(d, u + j), hn::Set(d, new_scale[f])));
          hn::Store(dropped ? hn::Mul(x, hn::Load(d, keep + j)) : x, d, phi_k + f * n.cp + j);
        }
      }
      for (int64_t f = 0; f < n.mp; f += kLanes) {
        const Vec gap = hn::Add(hn::Load(d, new_scale + f), hn::Load(d, mirror_scale + f));
        const Vec down = ExpUnchecked(SmallerOf(hn::Zero(d), gap));
        hn::Store(down, d, this->factor + f);
        hn::Store(hn::Mul(down, hn::Load(d, mirror_sum + f)), d, kept_sum + f);
      }
      for (int64_t f = 0; f < n.m; ++f) {
        const Vec down = hn::Set(d, this->factor[f]);
        for (int64_t i = 0; i < n.ep; i += kLanes)
          hn::Store(hn::Mul(down, hn::Load(d, mirror + f * n.ep + i)), d, kept_state + f * n.ep + i);
      }
      chunk_sum_ = kept_sum;
      state = kept_state;
    }
    this->PackMirror(state);
    mirror_rows_ = kHalf ? mirror_rows : state;
    mirror_pairs_ = kHalf ? mirror_pairs : state;
  }

  // The chunk's own queries i >= j.
  void AddChunkPairs(int64_t count) {
    if (exponential)
      NormalizedQueryFeatures(count, new_scale);
    else
      ApplyFunction(p.map.function, Epsilon(), uq, phi_q, count * n.mp);
    PackQueryFeatures(count, true);
    Pairs(count);
    for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
      const int64_t rows = HWY_MIN(kBlock, count - i0), columns = Columns(i0 + rows);
      Gemm<Number>(rows, columns, n.mg, {phi_q_rows + i0 * n.mp, n.mp, 1}, phi_k_cells, n.cp, weights, n.cp,
                   false);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = i0 + i + 1; j < columns; ++j) weights[i * n.cp + j] = 0;
      }
#ifdef PERFORMER_BFLOAT16
      if constexpr (kHalf) {
        PackRowPairs(weights, n.cp, rows, columns, weights_cells, n.cp);
        PackRowPairs(pairs + i0 * n.cp, n.cp, rows, columns, pairs_cells + i0 / 2 * n.cp, n.cp);
      }
#endif
      const int64_t depth = n.Groups(rows), at = i0 / Number::kGroup;
      Gemm<Number>(n.e, columns, depth, {gradient_pairs + at * n.ep, 1, n.ep}, weights_cells, n.cp, dvalue_t,
                   n.cp, true);
      Gemm<Number>(n.m, columns, depth, {phi_q_tokens + at * n.mp, 1, n.mp}, pairs_cells + at * n.cp, n.cp,
                   du, n.cp, true);
    }
  }

  void AddSlowPairs(int64_t i) {
    for (int64_t j = 0; j <= i; ++j) {
      if (keep[j] == 0.0f) continue;
      float weight = 0;
      for (int64_t f = 0; f < n.m; ++f) {
        const float a = this->WeightOf(uq[i * n.mp + f] + uk[f * n.cp + j] - normalizer[i]);
        weight += a;
        du[f * n.cp + j] += a * pairs[i * n.cp + j];
        norm_gradient[j] += a * pairs[i * n.cp + j];
      }
      for (int64_t k = 0; k < n.e; ++k) dvalue_t[k * n.cp + j] += weight * gradient[i * n.ep + k];
    }
  }

  float *uq, *phi_q;                 // [C, Mp]
  float *phi_q_rows, *phi_q_tokens;  // phi_q as cells with depth M and with depth C
  float *uk, *phi_k, *du;            // [C, Mp] on the sweep forwards, [M, Cp] on the one backwards
  float* phi_k_cells;                // phi_k with depth C forwards, with depth M backwards
  float *pairs, *pairs_cells;        // [C, Cp]; with depth C
  float *weights, *weights_cells;    // [kBlock, Cp]; with depth C
  float *slow, *mirror_scale;
  float *kept_state, *kept_sum, *kept_scale;  // backwards: the mirror at the chunk's scale
  const float *mirror_rows_ = nullptr, *mirror_pairs_ = nullptr, *chunk_sum_ = nullptr;
  bool kept_ = false;
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
