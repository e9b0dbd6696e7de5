// SPDX-License-Identifier: Apache-2.0
// Backward pass of one (sequence, head). Everything is recomputed; no state is recovered by subtraction.
//
// Write a_f(i, j) = phi_f(q_i) phi_f(k_j) / denominator_i and t(i, j) = g_i.v_j - g_i.out_i. Then
//   d u_f(q_i) = sum_j a_f(i, j) t(i, j),   d u_f(k_j) = sum_i a_f(i, j) t(i, j),   d v_j = sum_i (sum_f
//   a_f(i, j)) g_i
// (element-wise family: the factor phi of the differentiated side becomes its derivative). Sums over j <= i
// come from the keys' state on a sweep forwards; sums over i >= j come from its mirror on a sweep backwards:
// the queries' state sum_i phi(q_i)/denominator_i [g_i, -g_i.out_i], with a log-scale a feature of its own.
#if defined(PERFORMER_KERNELS_CPU_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_BACKWARD_INL_H_
#undef PERFORMER_KERNELS_CPU_BACKWARD_INL_H_
#else
#define PERFORMER_KERNELS_CPU_BACKWARD_INL_H_
#endif

#include "performer/kernels/cpu/head-inl.h"

HWY_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace HWY_NAMESPACE {

class BackwardHead : public Head {
 public:
  BackwardHead(const AttentionBackward& params, int64_t sequence, int64_t head_index, Scratch& scratch)
      : Head(params.forward, sequence, head_index, scratch), b(params) {
    const int64_t state = HWY_MAX(n.e * n.mp, n.m * n.ep);
    sums = scratch.floats(state);
    kept_sums = scratch.floats(state);
    kept_key_sum = scratch.floats(n.mp);
    kept_scale = scratch.floats(n.mp);
    uq = scratch.floats(n.c * n.mp);
    uk = scratch.floats(HWY_MAX(n.c * n.mp, n.m * n.cp));
    phi_k = scratch.floats(HWY_MAX(n.c * n.mp, n.m * n.cp));
    du = scratch.floats(HWY_MAX(n.c * n.mp, n.m * n.cp));
    dx = scratch.floats(HWY_MAX(n.c * n.dp, n.d * n.cp));
    gradient = scratch.floats(n.c * n.ep);
    output = scratch.floats(n.ep);
    value_t = scratch.floats(n.e * n.cp);
    dvalue_t = scratch.floats(n.e * n.cp);
    pairs = scratch.floats(n.c * n.cp);
    weights = scratch.floats(n.c * n.cp);
    normalizer = scratch.floats(n.cp);
    inner = scratch.floats(n.cp);
    slow = scratch.floats(n.cp);
    if (p.map.projection != nullptr) projection_padded = scratch.floats(n.m * n.dp);
  }

  void Run() {
    Begin();
    if (projection != nullptr) {
      Fill(projection_padded, 0, n.m * n.dp);
      for (int64_t f = 0; f < n.m; ++f) {
        std::memcpy(projection_padded + f * n.dp, projection + f * n.d,
                    sizeof(float) * static_cast<size_t>(n.d));
      }
    }
    QuerySweep();
    KeySweep();
  }

 private:
  // ---- Sweep forwards: gradients of queries. The state is kept transposed, [E, Mp]. ----

  void QuerySweep() {
    LoadKeyState();
    if (!p.causal) {
      for (int64_t t = 0; t < keys.count; t += n.c) {
        const int64_t count = HWY_MIN(n.c, keys.count - t);
        KeyFeaturesByRows(t, count);
        AbsorbKeys(count);
      }
    }
    for (int64_t t = 0; t < queries.count; t += n.c) {
      const int64_t count = HWY_MIN(n.c, queries.count - t);
      if (p.causal) KeyFeaturesByRows(t, count);
      QueryGradients(t, count);
      if (p.causal) AbsorbKeys(count);
    }
  }

  void LoadKeyState() {
    Fill(sums, 0, n.e * n.mp);
    Fill(key_sum, 0, n.mp);
    Fill(scale, kEmptyLogScale, n.mp);
    if (!p.initial) return;
    const float* from = static_cast<const float*>(p.initial.kv) + StateIndex() * n.m * n.e;
    Transpose(from, n.e, n.m, n.e, 1, sums, n.mp);
    const size_t bytes = sizeof(float) * static_cast<size_t>(n.m);
    std::memcpy(key_sum, static_cast<const float*>(p.initial.key_sum) + StateIndex() * n.m, bytes);
    if (exponential)
      std::memcpy(scale, static_cast<const float*>(p.initial.log_scale) + StateIndex() * n.m, bytes);
  }

  // phi_k and uk by rows [count, Mp]; the state is brought to the scale that includes them. Rows of masked
  // keys are zero.
  void KeyFeaturesByRows(int64_t first, int64_t count) {
    LoadKeys(first, count);
    LoadRows(p.value, keys, first, count, n.e, 1, value, n.ep);
    KeyLogits(count, uk);
    if (exponential) {
      RaiseScaleRows(uk, count);
      RescaleKeyState();
    } else {
      ApplyFunction(p.map.function, Epsilon(), uk, phi_k, count * n.mp);
    }
    for (int64_t j = 0; j < count; ++j) {
      if (keep[j] == 0.0f)
        Fill(phi_k + j * n.mp, 0, n.mp);
      else if (exponential)
        ExpDifference(uk + j * n.mp, scale, phi_k + j * n.mp);
    }
  }

  // phi = exp(u - scale) along a row of features.
  void ExpDifference(const float* u, const float* minus, float* phi) const {
    const Tag d;
    for (int64_t f = 0; f < n.mp; f += kLanes)
      hn::Store(Exp(hn::Sub(hn::Load(d, u + f), hn::Load(d, minus + f))), d, phi + f);
  }

  void RescaleKeyState() {
    bool keep_aside = false;
    for (int64_t f = 0; p.causal && f < n.m; ++f)
      keep_aside = keep_aside || (factor[f] < kKeepBelow && key_sum[f] != 0.0f);
    kept_ = keep_aside;
    if (kept_) {
      std::memcpy(kept_sums, sums, sizeof(float) * static_cast<size_t>(n.e * n.mp));
      std::memcpy(kept_key_sum, key_sum, sizeof(float) * static_cast<size_t>(n.mp));
      std::memcpy(kept_scale, scale, sizeof(float) * static_cast<size_t>(n.mp));
    }
    for (int64_t i = 0; i < n.e; ++i) MultiplyRow(sums + i * n.mp, factor);
    MultiplyRow(key_sum, factor);
    std::memcpy(scale, new_scale, sizeof(float) * static_cast<size_t>(n.mp));
  }

  void MultiplyRow(float* x, const float* y) const {
    const Tag d;
    for (int64_t f = 0; f < n.mp; f += kLanes)
      hn::Store(hn::Mul(hn::Load(d, x + f), hn::Load(d, y + f)), d, x + f);
  }

  void AbsorbKeys(int64_t count) {
    Gemm(n.e, n.mp, count, {value, 1, n.ep}, phi_k, n.mp, sums, n.mp, true);
    for (int64_t j = 0; j < count; ++j) Axpy(1, phi_k + j * n.mp, key_sum, n.mp);
  }

  // Normalizers, output gradients and inner = -g.out of a chunk of queries. Element-wise: gradient and inner
  // are divided by the denominator here. Rows without gradient get a zero row and normalizer 1e30.
  void LoadOutputGradients(int64_t first, int64_t count) {
    LoadRows(b.grad_out, queries, first, count, n.e, 1, gradient, n.ep);
    for (int64_t i = 0; i < count; ++i) {
      float* g = gradient + i * n.ep;
      Fill(output, 0, n.ep);
      cpu::LoadRow(p.out, queries.at(p.out, first + i, head), n.e, 1, output);
      inner[i] = -Dot(g, output, n.ep);
      normalizer[i] = static_cast<const float*>(p.normalizer)[NormalizerIndex(first + i)];
      const bool dead = exponential ? !(normalizer[i] < -kEmptyLogScale) : normalizer[i] == 0.0f;
      if (dead) {
        Fill(g, 0, n.ep);
        inner[i] = 0;
        normalizer[i] = -kEmptyLogScale;
      } else if (!exponential) {
        Multiply(g, 1.0f / normalizer[i], n.ep);
        inner[i] /= normalizer[i];
      }
    }
  }

  // exp of the log of a weight, which is at most 1 but for rounding.
  static float WeightOf(float exponent) { return std::exp(HWY_MIN(0.0f, exponent)); }

  // phi_q = exp(uq + shift_f - normalizer_i), the normalised weights; rows that overflow are zeroed and
  // marked slow. Causal ones may exceed 1, for keys that the row may not see.
  void NormalizedQueryFeatures(int64_t count, const float* shift) {
    for (int64_t i = 0; i < count; ++i) {
      const float* u = uq + i * n.mp;
      slow[i] = p.causal && MaxSum(u, shift) - normalizer[i] > kSlowGap ? 1.0f : 0.0f;
      if (slow[i] != 0.0f)
        Fill(phi_q + i * n.mp, 0, n.mp);
      else
        ExpRow(u, shift, normalizer[i], phi_q + i * n.mp, p.causal ? kSlowGap : 0.0f);
    }
  }

  // pairs = t(i, j) for j <= i, else 0; whole blocks above the diagonal are not touched and not read.
  void Pairs(int64_t count) {
    for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
      const int64_t rows = HWY_MIN(kBlock, count - i0), columns = Padded(i0 + rows);
      Gemm(rows, columns, n.e, {gradient + i0 * n.ep, n.ep, 1}, value_t, n.cp, pairs + i0 * n.cp, n.cp,
           false);
      for (int64_t i = i0; i < i0 + rows; ++i) {
        for (int64_t j = 0; j <= i; ++j) pairs[i * n.cp + j] += inner[i];
        for (int64_t j = i + 1; j < columns; ++j) pairs[i * n.cp + j] = 0;
      }
    }
  }

  void QueryGradients(int64_t first, int64_t count) {
    QueryLogits(first, count, uq);
    LoadOutputGradients(first, count);
    Gemm(count, n.mp, n.e, {gradient, n.ep, 1}, sums, n.mp, du, n.mp, false);
    for (int64_t i = 0; i < count; ++i) Axpy(inner[i], key_sum, du + i * n.mp, n.mp);
    if (p.causal) {
      if (count < n.cp) Fill(value_t, 0, n.e * n.cp);
      Transpose(value, n.ep, count, n.e, 1, value_t, n.cp);
      Pairs(count);
      for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
        const int64_t rows = HWY_MIN(kBlock, count - i0);
        Gemm(rows, n.mp, i0 + rows, {pairs + i0 * n.cp, n.cp, 1}, phi_k, n.mp, du + i0 * n.mp, n.mp, true);
      }
    }
    if (exponential) {
      NormalizedQueryFeatures(count, scale);
      for (int64_t i = 0; i < count; ++i) {
        MultiplyRow(du + i * n.mp, phi_q + i * n.mp);
        if (slow[i] != 0.0f) QueryGradientSlowly(i);
      }
    } else {
      MultiplyDerivative(p.map.function, uq, du, count * n.mp);
    }
    const float* result = du;
    if (projection != nullptr) {
      Gemm(count, n.dp, n.m, {du, n.mp, 1}, projection_padded, n.dp, dx, n.dp, false);
      result = dx;
    }
    for (int64_t i = 0; i < count; ++i) {
      cpu::StoreRow(b.grad_query, queries.at(b.grad_query, first + i, head), n.d, Scale(), result + i * n.dp);
    }
  }

  void QueryGradientSlowly(int64_t i) {
    const float* u = uq + i * n.mp;
    const float* state = kept_ ? kept_sums : sums;
    const float* state_sum = kept_ ? kept_key_sum : key_sum;
    const float* state_scale = kept_ ? kept_scale : scale;
    for (int64_t f = 0; f < n.m; ++f) {
      float from_state = inner[i] * state_sum[f];
      for (int64_t k = 0; k < n.e; ++k) from_state += gradient[i * n.ep + k] * state[k * n.mp + f];
      const float weight = state_sum[f] == 0.0f ? 0.0f : WeightOf(u[f] + state_scale[f] - normalizer[i]);
      float total = weight * from_state;
      for (int64_t j = 0; j <= i; ++j) {
        if (keep[j] != 0.0f) total += WeightOf(u[f] + uk[j * n.mp + f] - normalizer[i]) * pairs[i * n.cp + j];
      }
      du[i * n.mp + f] = total;
    }
  }

  // ---- Sweep backwards: gradients of keys and values. `sums` [M, Ep] and `key_sum` now hold the mirror
  // state. ----

  void KeySweep() {
    LoadMirror();
    if (!p.causal) {
      for (int64_t t = 0; t < queries.count; t += n.c)
        AbsorbQueries(t, HWY_MIN(n.c, queries.count - t), true);
    }
    const int64_t chunks = (keys.count + n.c - 1) / n.c;
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t t = chunk * n.c, count = HWY_MIN(n.c, keys.count - t);
      KeyGradients(t, count);
      if (p.causal) AbsorbQueries(t, count, false);
    }
    StoreInitialGradient();
  }

  void LoadMirror() {
    Fill(sums, 0, n.m * n.ep);
    Fill(key_sum, 0, n.mp);
    Fill(scale, kEmptyLogScale, n.mp);
    if (!b.grad_final) return;
    const float* from = static_cast<const float*>(b.grad_final.kv) + StateIndex() * n.m * n.e;
    const float* from_sum = static_cast<const float*>(b.grad_final.key_sum) + StateIndex() * n.m;
    const float* final_scale = static_cast<const float*>(p.final.log_scale) + StateIndex() * n.m;
    for (int64_t f = 0; f < n.m; ++f) {
      std::memcpy(sums + f * n.ep, from + f * n.e, sizeof(float) * static_cast<size_t>(n.e));
      key_sum[f] = from_sum[f];
      if (exponential) scale[f] = -final_scale[f];
    }
  }

  // Adds a chunk of queries to the mirror state. Causal: uq, gradient and inner are those of the chunk
  // already.
  void AbsorbQueries(int64_t first, int64_t count, bool load) {
    if (load) {
      QueryLogits(first, count, uq);
      LoadOutputGradients(first, count);
    }
    if (exponential) {
      const Tag d;
      std::memcpy(new_scale, scale, sizeof(float) * static_cast<size_t>(n.mp));
      for (int64_t i = 0; i < count; ++i) {
        const Vec minus = hn::Set(d, normalizer[i]);
        for (int64_t f = 0; f < n.mp; f += kLanes) {
          hn::Store(hn::Max(hn::Load(d, new_scale + f), hn::Sub(hn::Load(d, uq + i * n.mp + f), minus)), d,
                    new_scale + f);
        }
      }
      for (int64_t f = 0; f < n.m; ++f) {
        if (new_scale[f] == scale[f]) continue;
        const float down = std::exp(scale[f] - new_scale[f]);
        Multiply(sums + f * n.ep, down, n.ep);
        key_sum[f] *= down;
      }
      std::memcpy(scale, new_scale, sizeof(float) * static_cast<size_t>(n.mp));
      for (int64_t f = 0; f < n.mp; ++f) new_scale[f] = -scale[f];
      for (int64_t i = 0; i < count; ++i) ExpRow(uq + i * n.mp, new_scale, normalizer[i], phi_q + i * n.mp);
    } else {
      ApplyFunction(p.map.function, Epsilon(), uq, phi_q, count * n.mp);
    }
    Gemm(n.m, n.ep, count, {phi_q, 1, n.mp}, gradient, n.ep, sums, n.ep, true);
    for (int64_t i = 0; i < count; ++i) Axpy(inner[i], phi_q + i * n.mp, key_sum, n.mp);
  }

  void KeyGradients(int64_t first, int64_t count) {
    const bool dropped = LoadKeys(first, count);
    LoadTransposed(p.value, keys, first, count, n.e, 1, value_t);
    KeyLogitsTransposed(uk);
    if (p.causal) {
      QueryLogits(first, count, uq);
      LoadOutputGradients(first, count);
    }
    const float* mirror = MirrorForKeys(dropped);
    // du [M, Cp] = R v + r, dvalue_t [E, Cp] = R^T phi: what later queries (all of them when bidirectional)
    // ask for.
    Gemm(n.m, n.cp, n.e, {mirror, n.ep, 1}, value_t, n.cp, du, n.cp, false);
    for (int64_t f = 0; f < n.m; ++f) AddConstant(mirror_sum_[f], du + f * n.cp);
    Gemm(n.e, n.cp, n.m, {mirror, 1, n.ep}, phi_k, n.cp, dvalue_t, n.cp, false);
    if (p.causal) AddChunkPairs(count);
    if (exponential) {
      for (int64_t f = 0; f < n.m; ++f) MultiplyColumns(du + f * n.cp, phi_k + f * n.cp);
    } else {
      MultiplyDerivative(p.map.function, uk, du, n.m * n.cp);
      for (int64_t f = 0; dropped && f < n.m; ++f) MultiplyColumns(du + f * n.cp, keep);
    }
    if (exponential && p.causal) {
      for (int64_t i = 0; i < count; ++i) {
        if (slow[i] != 0.0f) AddSlowPairs(i);
      }
    }
    StoreKeyGradients(first, count);
  }

  // phi_k, and the mirror state brought to the same scale: largest u of the chunk (causal), or the mirror's
  // own.
  const float* MirrorForKeys(bool dropped) {
    mirror_sum_ = key_sum;
    if (!exponential) {
      ApplyFunction(p.map.function, Epsilon(), uk, phi_k, n.m * n.cp);
      for (int64_t f = 0; dropped && f < n.m; ++f) MultiplyColumns(phi_k + f * n.cp, keep);
      return sums;
    }
    if (!p.causal) {
      for (int64_t f = 0; f < n.m; ++f) ExpColumns(uk + f * n.cp, -scale[f], phi_k + f * n.cp);
      return sums;
    }
    Fill(new_scale, kEmptyLogScale, n.mp);
    for (int64_t f = 0; f < n.m; ++f) {
      new_scale[f] = MaxOf(uk + f * n.cp, n.cp);
      ExpColumns(uk + f * n.cp, new_scale[f], phi_k + f * n.cp);
      const float down = WeightOf(new_scale[f] + scale[f]);
      kept_key_sum[f] = key_sum[f] * down;
      std::memcpy(kept_sums + f * n.ep, sums + f * n.ep, sizeof(float) * static_cast<size_t>(n.ep));
      Multiply(kept_sums + f * n.ep, down, n.ep);
    }
    mirror_sum_ = kept_key_sum;
    return kept_sums;
  }

  void AddConstant(float a, float* x) const {
    const Tag d;
    for (int64_t j = 0; j < n.cp; j += kLanes)
      hn::Store(hn::Add(hn::Set(d, a), hn::Load(d, x + j)), d, x + j);
  }
  void MultiplyColumns(float* x, const float* y) const {
    const Tag d;
    for (int64_t j = 0; j < n.cp; j += kLanes)
      hn::Store(hn::Mul(hn::Load(d, x + j), hn::Load(d, y + j)), d, x + j);
  }

  // The chunk's own queries i >= j.
  void AddChunkPairs(int64_t count) {
    if (exponential)
      NormalizedQueryFeatures(count, new_scale);
    else
      ApplyFunction(p.map.function, Epsilon(), uq, phi_q, count * n.mp);
    Pairs(count);
    for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
      const int64_t rows = HWY_MIN(kBlock, count - i0), columns = Padded(i0 + rows);
      float* block = weights + i0 * n.cp;
      Gemm(rows, columns, n.m, {phi_q + i0 * n.mp, n.mp, 1}, phi_k, n.cp, block, n.cp, false);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = i0 + i + 1; j < columns; ++j) block[i * n.cp + j] = 0;
      }
      Gemm(n.e, columns, rows, {gradient + i0 * n.ep, 1, n.ep}, block, n.cp, dvalue_t, n.cp, true);
      Gemm(n.m, columns, rows, {phi_q + i0 * n.mp, 1, n.mp}, pairs + i0 * n.cp, n.cp, du, n.cp, true);
    }
  }

  void AddSlowPairs(int64_t i) {
    for (int64_t j = 0; j <= i; ++j) {
      if (keep[j] == 0.0f) continue;
      float weight = 0;
      for (int64_t f = 0; f < n.m; ++f) {
        const float a = WeightOf(uq[i * n.mp + f] + uk[f * n.cp + j] - normalizer[i]);
        weight += a;
        du[f * n.cp + j] += a * pairs[i * n.cp + j];
      }
      for (int64_t k = 0; k < n.e; ++k) dvalue_t[k * n.cp + j] += weight * gradient[i * n.ep + k];
    }
  }

  // qx and value serve as staging: both are loaded anew for the next chunk.
  void StoreKeyGradients(int64_t first, int64_t count) {
    float* result = du;
    if (projection != nullptr) {
      Gemm(n.d, n.cp, n.m, {projection, 1, n.d}, du, n.cp, dx, n.cp, false);
      result = dx;
    }
    if (exponential && p.map.norm_weight != 0) {
      // The norm's part: -2 eta (sum over features of du) k'. key_norm is free by now.
      Fill(key_norm, 0, n.cp);
      for (int64_t f = 0; f < n.m; ++f)
        Axpy(-2 * static_cast<float>(p.map.norm_weight), du + f * n.cp, key_norm, n.cp);
      const Tag d;
      for (int64_t i = 0; i < n.d; ++i) {
        for (int64_t j = 0; j < n.cp; j += kLanes) {
          const Vec pulled = hn::MulAdd(hn::Load(d, key_norm + j), hn::Load(d, kt + i * n.cp + j),
                                        hn::Load(d, result + i * n.cp + j));
          hn::Store(pulled, d, result + i * n.cp + j);
        }
      }
    }
    Transpose(result, n.cp, n.d, count, Scale(), qx, n.dp);
    Transpose(dvalue_t, n.cp, n.e, count, 1, value, n.ep);
    for (int64_t j = 0; j < count; ++j) {
      cpu::StoreRow(b.grad_key, keys.at(b.grad_key, first + j, head), n.d, 1, qx + j * n.dp);
      cpu::StoreRow(b.grad_value, keys.at(b.grad_value, first + j, head), n.e, 1, value + j * n.ep);
    }
  }

  void StoreInitialGradient() {
    if (!b.grad_initial) return;
    float* to = static_cast<float*>(b.grad_initial.kv) + StateIndex() * n.m * n.e;
    float* to_sum = static_cast<float*>(b.grad_initial.key_sum) + StateIndex() * n.m;
    const float* initial_scale = static_cast<const float*>(p.initial.log_scale) + StateIndex() * n.m;
    for (int64_t f = 0; f < n.m; ++f) {
      const float down = exponential ? WeightOf(initial_scale[f] + scale[f]) : 1.0f;
      for (int64_t k = 0; k < n.e; ++k) to[f * n.e + k] = down * sums[f * n.ep + k];
      to_sum[f] = down * key_sum[f];
    }
  }

  const AttentionBackward& b;
  float *sums, *kept_sums, *kept_key_sum, *kept_scale, *uq, *uk, *phi_k, *du, *dx, *gradient, *output,
      *value_t, *dvalue_t;
  float *pairs, *weights, *normalizer, *inner, *slow;
  float* projection_padded = nullptr;
  const float* mirror_sum_ = nullptr;
  bool kept_ = false;
};

}  // namespace HWY_NAMESPACE
}  // namespace performer::kernels
HWY_AFTER_NAMESPACE();
#endif  // include guard
