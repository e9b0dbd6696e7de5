// SPDX-License-Identifier: Apache-2.0
// Backward pass without causality: one pass over the queries with the keys' final state, one over the keys
// with the queries' mirror state.
//
// Every weight exp(u_f(k_j) - s_f) and every normalised exp(u_f(q_i) + s_f - normalizer_i), s_f the final
// log-scale of the keys, is at most 1, so both sides share that scale, and one set of query features serves
// the gradients of the queries and the mirror.
#if defined(PERFORMER_KERNELS_CPU_BACKWARD_BIDIRECTIONAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_BACKWARD_BIDIRECTIONAL_INL_H_
#undef PERFORMER_KERNELS_CPU_BACKWARD_BIDIRECTIONAL_INL_H_
#else
#define PERFORMER_KERNELS_CPU_BACKWARD_BIDIRECTIONAL_INL_H_
#endif

#include "performer/kernels/cpu/backward-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

template <class Number>
class BidirectionalBackward : public BackwardHead<Number> {
 public:
  using Base = BackwardHead<Number>;
  using Base::b, Base::kHalf, Base::p, Base::n, Base::exponential, Base::queries, Base::keys, Base::kt;
  using Base::gradient_rows, Base::gradient_pairs, Base::normalizer, Base::inner, Base::dvalue_t;
  using Base::norm_gradient, Base::new_scale, Base::offset;
  using Base::state_right, Base::mirror, Base::mirror_sum, Base::mirror_rows, Base::mirror_pairs;
  using Base::value_t, Base::keep, Base::key_norm, Base::key_sum, Base::scale, Base::sums, Base::Epsilon;

  BidirectionalBackward(const AttentionBackward& params, int64_t sequence, int64_t head_index,
                        Scratch& scratch)
      : Base(params, sequence, head_index, scratch) {
    phi = scratch.floats(HWY_MAX(n.c * n.mp, this->feature_block * n.cp));
    phi_cells = kHalf ? scratch.floats(n.cg * n.mp) : phi;
    u = scratch.floats(HWY_MAX(n.c * n.mp, this->feature_block * n.cp));
    du = scratch.floats(HWY_MAX(kBlock * n.mp, this->feature_block * n.cp));
    phi_right = kHalf ? scratch.floats(this->feature_block * n.cp) : phi;
    du_right = kHalf ? scratch.floats(this->feature_block * n.cp) : du;
  }

  void Run() {
    this->Begin();
    KeyState();
    this->PackState();
    this->LoadMirror(new_scale);
    for (int64_t t = 0; t < queries.count; t += n.c) Queries(t, HWY_MIN(n.c, queries.count - t));
    this->PackMirror(mirror);
    for (int64_t t = 0; t < keys.count; t += n.c) Keys(t, HWY_MIN(n.c, keys.count - t));
    for (int64_t f = 0; f < n.m; ++f) new_scale[f] = -scale[f];
    this->StoreInitialGradient(new_scale);
  }

 private:
  // The state after all keys: the forward pass's, if the caller kept it.
  void KeyState() {
    if (p.final.kv != nullptr && p.final.key_sum != nullptr) {
      this->ClearState();
      this->LoadState(p.final);
      return;
    }
    this->LoadInitialState();
    for (int64_t t = 0; t < keys.count; t += n.c) {
      const int64_t count = HWY_MIN(n.c, keys.count - t);
      this->KeyFeaturesByRows(t, count, u, phi, [] {});
      PackTokens(count);
      this->AbsorbKeys(count, phi, phi_cells);
    }
  }
  // phi_cells: phi with depth C.
  void PackTokens([[maybe_unused]] int64_t count) {
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) PackRowPairs(phi, n.mp, count, n.mp, phi_cells, n.mp);
#endif
  }

  void Queries(int64_t first, int64_t count) {
    this->LoadOutputGradients(first, count);
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t rows = HWY_MIN(kBlock, count - i);
      this->QueryLogits(first + i, rows, u);
      Gemm<Number>(rows, n.mp, n.eg, {gradient_rows + i * n.ep, n.ep, 1}, state_right, n.mp, du, n.mp, false);
      for (int64_t r = 0; r < rows; ++r)
        QueryRow(inner[i + r], normalizer[i + r], u + r * n.mp, du + r * n.mp, phi + (i + r) * n.mp);
      this->StoreQueryGradients(first + i, rows, du);
    }
    PackTokens(count);
    Gemm<Number>(n.m, n.ep, n.Groups(count), {phi_cells, 1, n.mp}, gradient_pairs, n.ep, mirror, n.ep, true);
  }

  // phi and the gradient of the logits of one query; its share of the mirror's sums.
  HWY_INLINE void QueryRow(float inner_, float normalizer_, const float* logits,
                           float* HWY_RESTRICT gradient_, float* HWY_RESTRICT features) {
    const Tag d;
    const Vec in = hn::Set(d, inner_), minus = hn::Set(d, normalizer_);
    if (!exponential) {
      ApplyFunction(p.map.function, Epsilon(), logits, features, n.mp);
      Axpy(inner_, key_sum, gradient_, n.mp);
      MultiplyDerivative(p.map.function, logits, gradient_, n.mp);
      Axpy(inner_, features, mirror_sum, n.mp);
      return;
    }
    for (int64_t f = 0; f < n.mp; f += kLanes) {
      const Vec x = hn::Sub(hn::Add(hn::Load(d, logits + f), hn::Load(d, scale + f)), minus);
      const Vec y = ExpUnchecked(SmallerOf(hn::Zero(d), x));  // at most 1 but for rounding
      hn::Store(y, d, features + f);
      const Vec g = hn::MulAdd(in, hn::Load(d, key_sum + f), hn::Load(d, gradient_ + f));
      hn::Store(hn::Mul(g, y), d, gradient_ + f);
      hn::Store(hn::MulAdd(in, y, hn::Load(d, mirror_sum + f)), d, mirror_sum + f);
    }
  }

  void Keys(int64_t first, int64_t count) {
    dropped_ = this->LoadKeys(first, count);
    this->LoadTransposed(p.value, keys, first, count, n.e, value_t);
    Fill(norm_gradient, 0, n.cp);
    for (int64_t f = 0; f < n.m; f += this->feature_block) {
      const int64_t features = HWY_MIN(this->feature_block, n.m - f);
      this->KeyProducts(f, features, u);
      Gemm<Number>(features, n.cp, n.eg, {mirror_rows + f * n.ep, n.ep, 1}, value_t, n.cp, du, n.cp, false);
      for (int64_t i = 0; i < features; ++i) FeatureOfKeys(f + i, i * n.cp);
#ifdef PERFORMER_BFLOAT16
      if constexpr (kHalf) PackRowPairs(phi, n.cp, features, n.cp, phi_right, n.cp);
#endif
      const float* left = mirror_pairs + f / Number::kGroup * n.ep;
      Gemm<Number>(n.e, n.cp, n.Groups(features), {left, 1, n.ep}, phi_right, n.cp, dvalue_t, n.cp, f > 0);
      this->AddKeyGradients(f, features, du, du_right, f > 0);
    }
    this->StoreKeyGradients(first, count);
  }

  // phi and the gradient of the logit of one feature for all keys of the chunk.
  HWY_INLINE void FeatureOfKeys(int64_t f, int64_t at) {
    const Tag d;
    float *logits = u + at, *features = phi + at, *gradient_ = du + at;
    const Vec c = hn::Set(d, this->Offset(f)), r = hn::Set(d, mirror_sum[f]);
    if (!exponential) {
      if (offset != nullptr) AddConstant(offset[f], logits, n.cp);
      ApplyFunction(p.map.function, Epsilon(), logits, features, n.cp);
      AddConstant(mirror_sum[f], gradient_, n.cp);
      MultiplyDerivative(p.map.function, logits, gradient_, n.cp);
      if (dropped_) MultiplyRow(features, keep, n.cp), MultiplyRow(gradient_, keep, n.cp);
      return;
    }
    const Vec minus = hn::Set(d, scale[f]);
    for (int64_t j = 0; j < n.cp; j += kLanes) {
      const Vec x = this->KeyLogit(hn::Load(d, logits + j), c, key_norm + j);
      Vec y = ExpUnchecked(SmallerOf(hn::Zero(d), hn::Sub(x, minus)));
      if (dropped_) y = hn::Mul(y, hn::Load(d, keep + j));
      hn::Store(y, d, features + j);
      const Vec g = hn::Mul(hn::Add(hn::Load(d, gradient_ + j), r), y);
      hn::Store(g, d, gradient_ + j);
      hn::Store(hn::Add(hn::Load(d, norm_gradient + j), g), d, norm_gradient + j);
    }
  }

  float *phi, *phi_cells;       // [C, Mp] of queries or [feature_block, Cp] of keys; cells with depth C
  float *u, *du;                // logits and their gradients: [C, Mp] or [feature_block, Cp]
  float *phi_right, *du_right;  // a block of keys' features and gradients as cells with depth M
  bool dropped_ = false;
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
