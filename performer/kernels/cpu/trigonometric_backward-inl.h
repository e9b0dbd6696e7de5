// SPDX-License-Identifier: Apache-2.0
// Backward passes of one (sequence, head) of the trigonometric family, with the sweeps of the other families:
// queries with the keys' state, keys with the queries' mirror state.
#if defined(PERFORMER_KERNELS_CPU_TRIGONOMETRIC_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_TRIGONOMETRIC_BACKWARD_INL_H_
#undef PERFORMER_KERNELS_CPU_TRIGONOMETRIC_BACKWARD_INL_H_
#else
#define PERFORMER_KERNELS_CPU_TRIGONOMETRIC_BACKWARD_INL_H_
#endif

#include "performer/kernels/cpu/backward-inl.h"
#include "performer/kernels/cpu/trigonometric-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

template <class Number>
class TrigonometricBackward : public BackwardHead<Number> {
 public:
  using Base = BackwardHead<Number>;
  using Base::b, Base::kHalf, Base::p, Base::n, Base::head, Base::queries, Base::keys, Base::value,
      Base::keep, Base::key_norm, Base::key_sum, Base::staging, Base::sums, Base::state_right, Base::mirror,
      Base::mirror_sum, Base::mirror_rows, Base::mirror_pairs, Base::gradient, Base::gradient_rows,
      Base::gradient_pairs, Base::output, Base::inner, Base::value_t, Base::dvalue_t, Base::norm_gradient,
      Base::StateIndex;

  TrigonometricBackward(const AttentionBackward& params, int64_t sequence, int64_t head_index,
                        Scratch& scratch)
      : Base(params, sequence, head_index, scratch), weights(n, scratch) {
    const int64_t rows = n.c * n.fp, slack = kLanes * Number::kGroup;
    const int64_t both = HWY_MAX(rows, n.rows * n.cp) + slack;
    uq = scratch.floats(n.c * n.mp);
    phi_q = scratch.floats(rows + slack);
    phi_q_rows = kHalf ? scratch.floats(rows) : phi_q;
    phi_q_tokens = kHalf ? scratch.floats(n.cg * n.fp) : phi_q;
    uk = scratch.floats(HWY_MAX(n.c * n.mp, n.m * n.cp));
    phi_k = scratch.floats(both);
    phi_k_cells = kHalf ? scratch.floats(HWY_MAX(n.cg * n.fp, n.rows_g * n.cp)) : phi_k;
    du = scratch.floats(both);
    du_cells = kHalf ? scratch.floats(n.mg * n.cp) : du;
    floored = scratch.floats(n.cp);
    if (!p.causal) return;
    pairs = scratch.floats(n.c * n.cp);
    pairs_cells = kHalf ? scratch.floats(n.c * n.cp) : pairs;
    seen = scratch.floats(n.c * n.cp);
    own = scratch.floats(kBlock * n.cp);
    own_cells = kHalf ? scratch.floats(kBlock * n.cp) : own;
    const int64_t tokens = p.shape.cu_key != nullptr ? p.shape.cu_key[p.shape.batch] : p.shape.key_tokens;
    marks = scratch.floats(2 * ((tokens + n.c - 1) / n.c));
  }

  void Run() {
    this->Begin();
    LoadInitialState();
    LoadMirror();
    if (p.causal) {
      for (int64_t t = 0; t < queries.count; t += n.c) CausalQueries(t, HWY_MIN(n.c, queries.count - t));
      for (int64_t t = (keys.count - 1) / n.c * n.c; t >= 0 && keys.count > 0; t -= n.c)
        CausalKeys(t, HWY_MIN(n.c, keys.count - t));
    } else {
      KeyState();
      mirror_scale_ = -scale_;
      for (int64_t t = 0; t < queries.count; t += n.c) Queries(t, HWY_MIN(n.c, queries.count - t));
      this->PackMirror(mirror);
      for (int64_t t = 0; t < keys.count; t += n.c) Keys(t, HWY_MIN(n.c, keys.count - t));
    }
    StoreInitialGradient();
  }

 private:
  int64_t Features() const { return 2 * n.m + 1; }

  // ---- States. ----

  // The waves' part; of the constant's only the sum is needed.
  void LoadState(const State& state) {
    const int64_t index = StateIndex() * Features();
    const float* from = static_cast<const float*>(state.kv) + index * n.e;
    const float* from_sum = static_cast<const float*>(state.key_sum) + index;
    Transpose(from, n.e, n.m, n.e, sums, n.fp);
    Transpose(from + n.m * n.e, n.e, n.m, n.e, sums + n.sines, n.fp);
    for (int64_t f = 0; f < 2 * n.m; ++f) key_sum[RowOfFeature(n, f)] = from_sum[f];
    weight_sum_ = from_sum[2 * n.m];
    scale_ = static_cast<const float*>(state.log_scale)[index + 2 * n.m];
  }
  void LoadInitialState() {
    this->ClearState();
    if (p.initial) LoadState(p.initial);
  }
  // The state after all keys: the forward pass's, if the caller kept it.
  void KeyState() {
    if (p.final.kv != nullptr && p.final.key_sum != nullptr) {
      this->ClearState();
      LoadState(p.final);
    } else {
      for (int64_t t = 0; t < keys.count; t += n.c) {
        const int64_t count = HWY_MIN(n.c, keys.count - t);
        LoadKeyRows(t, count);
        AbsorbKeys(count);
      }
    }
    this->PackState();
  }
  // The mirror state after the last query: the gradient of the final state, or none.
  void LoadMirror() {
    Fill(mirror, 0, n.rows * n.ep);
    Fill(mirror_sum, 0, n.fp);
    if (!b.grad_final) return;
    const int64_t index = StateIndex() * Features();
    const float* from = static_cast<const float*>(b.grad_final.kv) + index * n.e;
    const float* from_sum = static_cast<const float*>(b.grad_final.key_sum) + index;
    for (int64_t f = 0; f < Features(); ++f) {
      const int64_t row = RowOfFeature(n, f);
      std::memcpy(mirror + row * n.ep, from + f * n.e, sizeof(float) * static_cast<size_t>(n.e));
      (row < n.f ? mirror_sum[row] : mirror_weights_) = from_sum[f];
    }
    mirror_scale_ = -static_cast<const float*>(p.final.log_scale)[index + 2 * n.m];
  }
  void StoreInitialGradient() const {
    if (!b.grad_initial) return;
    const int64_t index = StateIndex() * Features();
    float* to = static_cast<float*>(b.grad_initial.kv) + index * n.e;
    float* to_sum = static_cast<float*>(b.grad_initial.key_sum) + index;
    const float initial = static_cast<const float*>(p.initial.log_scale)[index + 2 * n.m];
    const float down = WeightOf(initial + mirror_scale_);
    for (int64_t f = 0; f < Features(); ++f) {
      const int64_t row = RowOfFeature(n, f);
      for (int64_t k = 0; k < n.e; ++k) to[f * n.e + k] = down * mirror[row * n.ep + k];
      to_sum[f] = down * (row < n.f ? mirror_sum[row] : mirror_weights_);
    }
  }

  // ---- Chunks. ----

  // Weights and features of a chunk of keys by rows, phi_k [count, Fp].
  void LoadKeyRows(int64_t first, int64_t count) {
    this->LoadKeys(first, count);
    this->LoadValues(first, count);
    weights.Load(key_norm);
    this->RowLogits(p.key, keys, first, count, uk);
    for (int64_t j = 0; j < count; ++j) WaveRow(uk + j * n.mp, n.m, n.sines, n.fp, phi_k + j * n.fp);
  }
  // Adds those keys to the state, brought to the scale that includes them.
  void AbsorbKeys(int64_t count) {
    const float raised = weights.Largest(scale_), decay = WeightOf(scale_ - raised);
    scale_ = raised;
    weights.Weigh(keep, -raised);
    if (decay != 1.0f) {
      Multiply(sums, decay, n.e * n.fp);
      Multiply(key_sum, decay, n.fp);
    }
    weight_sum_ = weight_sum_ * decay + SumOf(weights.weight, n.cp);
    for (int64_t j = 0; j < count; ++j) Multiply(phi_k + j * n.fp, weights.weight[j], n.fp);
    PackPairs(phi_k, n.fp, count, phi_k_cells);
    Base::AbsorbKeys(count, phi_k, phi_k_cells);
  }
  // Cells whose depth runs down the rows; nothing where cells are numbers.
  void PackPairs(const float* x, int64_t ld, int64_t rows, float* cells) const {
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) PackRowPairs(x, ld, rows, ld, cells, ld);
#else
    (void)x, (void)ld, (void)rows, (void)cells;
#endif
  }
  void PackAlong(const float* x, int64_t ld, int64_t rows, int64_t padded, float* cells) const {
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) {
      for (int64_t i = 0; i < rows; ++i) PackRowAlong(x + i * ld, padded, cells + i * ld);
    }
#else
    (void)x, (void)ld, (void)rows, (void)padded, (void)cells;
#endif
  }

  // Features of a chunk of queries, phi_q [count, Fp], and as cells with depth C and, where wanted, F.
  void LoadQueries(int64_t first, int64_t count, bool tokens, bool rows) {
    this->QueryLogits(first, count, uq);
    for (int64_t i = 0; i < count; ++i) WaveRow(uq + i * n.mp, n.m, n.sines, n.fp, phi_q + i * n.fp);
    if (tokens) PackPairs(phi_q, n.fp, count, phi_q_tokens);
    if (rows) PackAlong(phi_q, n.fp, count, n.fp, phi_q_rows);
  }

  // G, h (inner) and z (floored) of a chunk of queries; total(i) is the sum of the weights that row i sees,
  // in the units of its normalizer.
  template <class Total>
  void LoadGradients(int64_t first, int64_t count, const Total& total) {
    this->LoadRows(b.grad_out, queries, first, count, n.e, gradient, n.ep);
    // In units of the sum of weights: of the head, and what this group of its frequencies adds to it.
    const float floor = static_cast<float>(kTrigonometricFloor) * static_cast<float>(frequencies);
    const float own_floor = static_cast<float>(kTrigonometricFloor) * static_cast<float>(n.m);
    any_floored_ = false;
    for (int64_t i = 0; i < count; ++i) {
      float* g = gradient + i * n.ep;
      Fill(output, 0, n.ep);
      LoadRow(p.out, queries.at(p.out, first + i, head), n.e, 1, output);
      const float normalizer = static_cast<const float*>(p.normalizer)[this->NormalizerIndex(first + i)];
      inner[i] = floored[i] = 0;
      if (normalizer == 0.0f) {
        Fill(g, 0, n.ep);
        continue;
      }
      const bool at_floor = std::isinf(normalizer);
      const float share = 1.0f / (at_floor ? std::copysign(floor * total(i), normalizer) : normalizer);
      const float dot = -Dot(g, output, n.ep) * share;
      if (at_floor) {
        floored[i] = std::copysign(own_floor, normalizer) * dot;
        any_floored_ = true;
      } else {
        inner[i] = dot;
      }
      Multiply(g, share, n.ep);
    }
    PackGradients(count);
  }
  void PackGradients(int64_t count) const {
    PackPairs(gradient, n.ep, count, gradient_pairs);
    PackAlong(gradient, n.ep, count, n.ep, gradient_rows);
  }

  // Gradients of queries from those of their features, du [count, Fp].
  void StoreQueries(int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      RotateRow(phi_q + i * n.fp, du + i * n.fp, n.m, n.sines, n.mp, uq + i * n.mp);
    for (int64_t i = 0; i < count; i += kBlock)
      this->StoreQueryGradients(first + i, HWY_MIN(kBlock, count - i), uq + i * n.mp);
  }

  // Adds a chunk of queries to the mirror.
  void AbsorbQueries(int64_t count) {
    Gemm<Number>(n.f, n.ep, n.Groups(count), {phi_q_tokens, 1, n.fp}, gradient_pairs, n.ep, mirror, n.ep,
                 true);
    for (int64_t i = 0; i < count; ++i) {
      Axpy(inner[i], phi_q + i * n.fp, mirror_sum, n.fp);
      mirror_weights_ += floored[i];
    }
  }

  // Arguments and features of all keys of a chunk, transposed: phi_k [rows, Cp] without weights.
  void LoadKeyColumns(int64_t first, int64_t count) {
    this->LoadKeys(first, count);
    this->LoadTransposed(p.value, keys, first, count, n.e, value_t);
    weights.Load(key_norm);
    this->KeyProducts(0, n.m, uk);
    const Tag d;
    for (int64_t f = 0; f < n.m; ++f) {
      const Vec c = hn::Set(d, this->Offset(f));
      for (int64_t j = 0; j < n.cp; j += kLanes) {
        const Wave wave = SineAndCosine(hn::Add(hn::Load(d, uk + f * n.cp + j), c));
        hn::Store(wave.cosine, d, phi_k + f * n.cp + j);
        hn::Store(wave.sine, d, phi_k + (n.sines + f) * n.cp + j);
      }
    }
    if (n.sines > n.m) Fill(phi_k + n.m * n.cp, 0, n.cp);
    Fill(phi_k + n.f * n.cp, 1, n.cp);  // the constant
    PackPairs(phi_k, n.cp, n.rows, phi_k_cells);
  }
  // What the mirror asks of them, times their weights: du [rows, Cp] and dvalue_t [E, Cp].
  void ReadMirror() {
    weights.Weigh(keep, mirror_scale_);
    Gemm<Number>(n.rows, n.cp, n.eg, {mirror_rows, n.ep, 1}, value_t, n.cp, du, n.cp, false);
    for (int64_t f = 0; f < n.rows; ++f) {
      AddConstant(f < n.f ? mirror_sum[f] : mirror_weights_, du + f * n.cp, n.cp);
      MultiplyRow(du + f * n.cp, weights.weight, n.cp);
    }
    Gemm<Number>(n.e, n.cp, n.rows_g, {mirror_pairs, 1, n.ep}, phi_k_cells, n.cp, dvalue_t, n.cp, false);
    for (int64_t k = 0; k < n.e; ++k) MultiplyRow(dvalue_t + k * n.cp, weights.weight, n.cp);
  }
  // Gradients of keys and values from those of the features, du [rows, Cp].
  void StoreKeys(int64_t first, int64_t count) {
    const Tag d;
    Copy(du + n.f * n.cp, norm_gradient, n.cp);
    for (int64_t f = 0; f < n.m; ++f) {
      float *of_cosines = du + f * n.cp, *of_sines = du + (n.sines + f) * n.cp;
      const float *cosines = phi_k + f * n.cp, *sines = phi_k + (n.sines + f) * n.cp;
      for (int64_t j = 0; j < n.cp; j += kLanes) {
        const Vec c = hn::Load(d, cosines + j), s = hn::Load(d, sines + j);
        const Vec dc = hn::Load(d, of_cosines + j), ds = hn::Load(d, of_sines + j);
        const Vec total = hn::MulAdd(c, dc, hn::MulAdd(s, ds, hn::Load(d, norm_gradient + j)));
        hn::Store(total, d, norm_gradient + j);
        hn::Store(hn::Sub(hn::Mul(c, ds), hn::Mul(s, dc)), d, of_cosines + j);
      }
    }
    this->AddKeyGradients(0, n.m, du, du_cells, false);
    this->StoreKeyGradients(first, count);
  }

  // ---- Without causality: all share the scale of the final state. ----

  void Queries(int64_t first, int64_t count) {
    LoadQueries(first, count, true, false);
    LoadGradients(first, count, [&](int64_t) { return weight_sum_; });
    Gemm<Number>(count, n.fp, n.eg, {gradient_rows, n.ep, 1}, state_right, n.fp, du, n.fp, false);
    for (int64_t i = 0; i < count; ++i) Axpy(inner[i], key_sum, du + i * n.fp, n.fp);
    StoreQueries(first, count);
    AbsorbQueries(count);
  }
  void Keys(int64_t first, int64_t count) {
    LoadKeyColumns(first, count);
    ReadMirror();
    StoreKeys(first, count);
  }

  // ---- Causal: each row counts in units of the largest weight that it sees. ----

  // seen [C, Cp]: the weights that each row of the chunk sees; the state before the chunk has `scale`.
  void LoadSeen(int64_t count, float scale) {
    weights.LoadLargest(scale);
    for (int64_t i = 0; i < count; ++i)
      seen_sum_[i] =
          weights.Seen(i, keep, Columns(HWY_MIN(count, i / kBlock * kBlock + kBlock)), seen + i * n.cp);
  }
  static int64_t Columns(int64_t count) {
    return Sizes<Number>::PaddedToCells(count);
  }

  // pairs = seen (G_i.v_j + h_i), in blocks of rows up to the block's diagonal.
  void Pairs(int64_t count) {
    for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
      const int64_t rows = HWY_MIN(kBlock, count - i0), columns = Columns(i0 + rows);
      Gemm<Number>(rows, columns, n.eg, {gradient_rows + i0 * n.ep, n.ep, 1}, value_t, n.cp,
                   pairs + i0 * n.cp, n.cp, false);
      for (int64_t i = i0; i < i0 + rows; ++i) {
        AddConstant(inner[i], pairs + i * n.cp, columns);
        MultiplyRow(pairs + i * n.cp, seen + i * n.cp, columns);
      }
    }
  }

  void CausalQueries(int64_t first, int64_t count) {
    float* mark = marks + first / n.c * 2;
    mark[0] = scale_, mark[1] = weight_sum_;
    LoadKeyRows(first, count);
    PackPairs(phi_k, n.fp, count, phi_k_cells);
    LoadSeen(count, scale_);
    LoadQueries(first, count, false, false);
    const auto earlier = [&](int64_t i) { return WeightOf(scale_ - weights.largest[i]); };
    LoadGradients(first, count, [&](int64_t i) { return earlier(i) * weight_sum_ + seen_sum_[i]; });
    this->LoadTransposed(p.value, keys, first, count, n.e, value_t);
    this->PackState();
    Pairs(count);
    Gemm<Number>(count, n.fp, n.eg, {gradient_rows, n.ep, 1}, state_right, n.fp, du, n.fp, false);
    for (int64_t i = 0; i < count; ++i) {
      Axpy(inner[i], key_sum, du + i * n.fp, n.fp);
      Multiply(du + i * n.fp, earlier(i), n.fp);
    }
    for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
      const int64_t rows = HWY_MIN(kBlock, count - i0);
      PackAlong(pairs + i0 * n.cp, n.cp, rows, Columns(i0 + rows), pairs_cells + i0 * n.cp);
      Gemm<Number>(rows, n.fp, n.Groups(i0 + rows), {pairs_cells + i0 * n.cp, n.cp, 1}, phi_k_cells, n.fp,
                   du + i0 * n.fp, n.fp, true);
    }
    StoreQueries(first, count);
    AbsorbKeys(count);
  }

  void CausalKeys(int64_t first, int64_t count) {
    const float* mark = marks + first / n.c * 2;
    LoadKeyColumns(first, count);
    LoadSeen(count, mark[0]);
    LoadQueries(first, count, true, true);
    LoadGradients(first, count,
                  [&](int64_t i) { return WeightOf(mark[0] - weights.largest[i]) * mark[1] + seen_sum_[i]; });
    this->PackMirror(mirror);
    ReadMirror();
    Pairs(count);
    for (int64_t i0 = 0; i0 < count; i0 += kBlock) AddOwnQueries(i0, HWY_MIN(kBlock, count - i0));
    StoreKeys(first, count);
    if (first == 0 && !b.grad_initial) return;
    // The rows of the chunk in units of what its first row sees, which is what earlier keys meet.
    const float raised = HWY_MAX(mirror_scale_, -weights.largest[0]);
    const float decay = WeightOf(mirror_scale_ - raised);
    mirror_scale_ = raised;
    Multiply(mirror, decay, n.rows * n.ep);
    Multiply(mirror_sum, decay, n.fp);
    mirror_weights_ *= decay;
    for (int64_t i = 0; i < count; ++i) {
      const float weight = WeightOf(-weights.largest[i] - raised);
      Multiply(gradient + i * n.ep, weight, n.ep);
      inner[i] *= weight, floored[i] *= weight;
    }
    PackGradients(count);
    AbsorbQueries(count);
  }

  // What a block of the chunk's own queries asks of its keys.
  void AddOwnQueries(int64_t i0, int64_t rows) {
    const int64_t columns = Columns(i0 + rows), depth = n.Groups(rows), at = i0 / Number::kGroup;
    Gemm<Number>(rows, columns, n.Groups(n.f), {phi_q_rows + i0 * n.fp, n.fp, 1}, phi_k_cells, n.cp, own,
                 n.cp, false);
    for (int64_t i = 0; i < rows; ++i) MultiplyRow(own + i * n.cp, seen + (i0 + i) * n.cp, columns);
    PackPairs(own, n.cp, rows, own_cells);
    float* cells = kHalf ? pairs_cells + at * n.cp : pairs + i0 * n.cp;
    PackPairs(pairs + i0 * n.cp, n.cp, rows, cells);
    Gemm<Number>(n.e, columns, depth, {gradient_pairs + at * n.ep, 1, n.ep}, own_cells, n.cp, dvalue_t, n.cp,
                 true);
    Gemm<Number>(n.f, columns, depth, {phi_q_tokens + at * n.fp, 1, n.fp}, cells, n.cp, du, n.cp, true);
    for (int64_t i = i0; any_floored_ && i < i0 + rows; ++i)
      Axpy(floored[i], seen + i * n.cp, du + n.f * n.cp, columns);
  }

  KeyWeights<Number> weights;
  float* uq;                                       // [C, Mp]
  float *phi_q, *phi_q_rows, *phi_q_tokens;        // [C, Fp]; as cells with depth F and with depth C
  float* uk;                                       // [C, Mp] or [M, Cp]
  float *phi_k, *phi_k_cells;                      // [C, Fp] with depth C, or [rows, Cp] with depth rows
  float *du, *du_cells;                            // [C, Fp] or [rows, Cp]; with depth M
  float* floored;                                  // z of each row of the chunk
  float *pairs = nullptr, *pairs_cells = nullptr;  // [C, Cp], with depth C along rows or down them
  float* seen = nullptr;                           // [C, Cp]
  float *own = nullptr, *own_cells = nullptr;      // [kBlock, Cp]
  float* marks = nullptr;                          // scale and sum of weights of the state before each chunk
  float seen_sum_[kMaxChunk];
  float scale_ = kEmptyLogScale, weight_sum_ = 0;             // of the keys' state
  float mirror_scale_ = kEmptyLogScale, mirror_weights_ = 0;  // of the mirror, and its part for the constant
  bool any_floored_ = false;

 protected:
  int64_t frequencies = n.m;  // of the whole head: WaveGroupsBackward
};

// One group of a head's frequencies.
template <class Number>
class TrigonometricGroupBackward : public TrigonometricBackward<Number> {
 public:
  TrigonometricGroupBackward(const WaveGroupsBackward& groups, int64_t sequence, int64_t group,
                             Scratch& scratch)
      : TrigonometricBackward<Number>(groups.call, sequence, group, scratch) {
    this->frequencies = groups.frequencies;
  }
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
