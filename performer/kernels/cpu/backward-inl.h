// SPDX-License-Identifier: Apache-2.0
// What the backward passes of one (sequence, head) share. Everything is recomputed; no state is recovered by
// subtraction.
//
// Write a_f(i, j) = phi_f(q_i) phi_f(k_j) / denominator_i and t(i, j) = g_i.v_j - g_i.out_i. Then
//   d u_f(q_i) = sum_j a_f(i, j) t(i, j),   d u_f(k_j) = sum_i a_f(i, j) t(i, j),   d v_j = sum_i (sum_f
//   a_f(i, j)) g_i
// (element-wise family: the factor phi of the differentiated side becomes its derivative). Sums over keys
// come from the keys' state, kept transposed [E, M]. Sums over queries come from its mirror, the queries'
// state sum_i phi(q_i)/denominator_i [g_i, -g_i.out_i], kept as [M, E].
#if defined(PERFORMER_KERNELS_CPU_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_BACKWARD_INL_H_
#undef PERFORMER_KERNELS_CPU_BACKWARD_INL_H_
#else
#define PERFORMER_KERNELS_CPU_BACKWARD_INL_H_
#endif

#include "performer/kernels/cpu/head-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

template <class Number>
class BackwardHead : public Head<Number> {
 public:
  using Base = Head<Number>;
  using Base::kHalf, Base::p, Base::n, Base::head, Base::exponential, Base::queries, Base::keys, Base::kt;
  using Base::projection, Base::staging, Base::has_norm, Base::qx, Base::Epsilon, Base::Scale,
      Base::StateIndex;
  using Base::value, Base::key_norm, Base::keep, Base::key_sum, Base::scale, Base::new_scale, Base::factor;

  BackwardHead(const AttentionBackward& params, int64_t sequence, int64_t head_index, Scratch& scratch)
      : Base(params.forward, sequence, head_index, scratch), b(params) {
    sums = scratch.floats(n.e * n.fp);
    state_right = kHalf ? scratch.floats(n.eg * n.fp) : sums;
    mirror = scratch.floats(n.rows * n.ep);
    mirror_sum = scratch.floats(n.fp);
    mirror_rows = kHalf ? scratch.floats(n.rows * n.ep) : mirror;
    mirror_pairs = kHalf ? scratch.floats(n.rows_g * n.ep) : mirror;
    gradient = scratch.floats(n.c * n.ep);
    gradient_rows = kHalf ? scratch.floats(n.c * n.ep) : gradient;
    gradient_pairs = kHalf ? scratch.floats(n.cg * n.ep) : gradient;
    output = scratch.floats(n.ep);
    normalizer = scratch.floats(n.cp);
    inner = scratch.floats(n.cp);
    value_t = scratch.floats(n.e * n.cp);
    dx = scratch.floats(HWY_MAX(kBlock * n.dp, n.d * n.cp));
    dvalue_t = scratch.floats(n.e * n.cp);
    norm_gradient = scratch.floats(n.cp);
    if (p.map.projection != nullptr)
      projection_pairs = kHalf ? scratch.floats(n.mg * n.dp) : this->projection_rows;
  }

 protected:
  void Begin() {
    Base::Begin();
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) {
      for (int64_t f = 0; f < n.m; f += 2) {
        const int64_t rows = HWY_MIN(2, n.m - f);
        Fill(staging, 0, 2 * n.dp);
        for (int64_t r = 0; r < rows; ++r)
          ScaleRow(projection + (f + r) * n.d, Scale(), n.d, staging + r * n.dp);
        PackRowPairs(staging, n.dp, rows, n.dp, projection_pairs + f / 2 * n.dp, n.dp);
      }
    }
#endif
  }

  // exp of the log of a weight, which is at most 1 but for rounding.
  static float WeightOf(float exponent) {
    return std::exp(HWY_MIN(0.0f, exponent));
  }

  // The keys' state before the first chunk: the initial one, or none.
  void LoadInitialState() {
    ClearState();
    if (p.initial) LoadState(p.initial);
  }
  void ClearState() {
    Fill(sums, 0, n.e * n.fp);
    Fill(key_sum, 0, n.fp);
    Fill(scale, kEmptyLogScale, n.mp);
  }
  // Over a cleared state, whose padding stays.
  void LoadState(const State& state) {
    const float* from = static_cast<const float*>(state.kv) + StateIndex() * n.m * n.e;
    Transpose(from, n.e, n.m, n.e, sums, n.mp);
    const size_t bytes = sizeof(float) * static_cast<size_t>(n.m);
    std::memcpy(key_sum, static_cast<const float*>(state.key_sum) + StateIndex() * n.m, bytes);
    if (exponential)
      std::memcpy(scale, static_cast<const float*>(state.log_scale) + StateIndex() * n.m, bytes);
  }
  void PackState() {
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) PackRowPairs(sums, n.fp, n.e, n.fp, state_right, n.fp);
#endif
  }

  // The mirror state after the last query: the gradient of the final state, or none. Returns its log-scales,
  // of which the key's are the negative, through `log_scale`.
  void LoadMirror(float* log_scale) {
    Fill(mirror, 0, n.m * n.ep);
    Fill(mirror_sum, 0, n.mp);
    Fill(log_scale, kEmptyLogScale, n.mp);
    if (!b.grad_final) return;
    const float* from = static_cast<const float*>(b.grad_final.kv) + StateIndex() * n.m * n.e;
    const float* from_sum = static_cast<const float*>(b.grad_final.key_sum) + StateIndex() * n.m;
    const float* final_scale = static_cast<const float*>(p.final.log_scale) + StateIndex() * n.m;
    for (int64_t f = 0; f < n.m; ++f) {
      std::memcpy(mirror + f * n.ep, from + f * n.e, sizeof(float) * static_cast<size_t>(n.e));
      mirror_sum[f] = from_sum[f];
      if (exponential) log_scale[f] = -final_scale[f];
    }
  }
  void PackMirror([[maybe_unused]] const float* state) {
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) {
      PackRowPairs(state, n.ep, n.rows, n.ep, mirror_pairs, n.ep);
      for (int64_t f = 0; f < n.rows; ++f) PackRowAlong(state + f * n.ep, n.ep, mirror_rows + f * n.ep);
    }
#endif
  }
  void StoreInitialGradient(const float* log_scale) {
    if (!b.grad_initial) return;
    float* to = static_cast<float*>(b.grad_initial.kv) + StateIndex() * n.m * n.e;
    float* to_sum = static_cast<float*>(b.grad_initial.key_sum) + StateIndex() * n.m;
    const float* initial_scale = static_cast<const float*>(p.initial.log_scale) + StateIndex() * n.m;
    for (int64_t f = 0; f < n.m; ++f) {
      const float down = exponential ? WeightOf(initial_scale[f] + log_scale[f]) : 1.0f;
      for (int64_t k = 0; k < n.e; ++k) to[f * n.e + k] = down * mirror[f * n.ep + k];
      to_sum[f] = down * mirror_sum[f];
    }
  }

  // Normalizers, output gradients and inner = -g.out of a chunk of queries. Element-wise: gradient and inner
  // are divided by the denominator here. Rows without gradient get a zero row and normalizer 1e30.
  void LoadOutputGradients(int64_t first, int64_t count) {
    this->LoadRows(b.grad_out, queries, first, count, n.e, gradient, n.ep);
    for (int64_t i = 0; i < count; ++i) {
      float* g = gradient + i * n.ep;
      Fill(output, 0, n.ep);
      LoadRow(p.out, queries.at(p.out, first + i, head), n.e, 1, output);
      inner[i] = -Dot(g, output, n.ep);
      normalizer[i] = static_cast<const float*>(p.normalizer)[this->NormalizerIndex(first + i)];
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
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) {
      PackRowPairs(gradient, n.ep, count, n.ep, gradient_pairs, n.ep);
      for (int64_t i = 0; i < count; ++i) PackRowAlong(gradient + i * n.ep, n.ep, gradient_rows + i * n.ep);
    }
#endif
  }

  // phi_k by rows [count, Mp] from P.x' + c in u, which becomes the whole log-weight; the state is brought
  // to the scale that includes them. Rows of masked keys are zero.
  template <class BeforeRescale>
  void KeyFeaturesByRows(int64_t first, int64_t count, float* u, float* phi, BeforeRescale before) {
    if (exponential)
      this->LoadKeys(first, count);
    else
      this->KeepKeys(first, count);  // its rows are all that is needed
    this->LoadValues(first, count);
    this->RowLogits(p.key, keys, first, count, u);
    const Tag d;
    if (exponential) {
      Copy(scale, new_scale, n.mp);
      for (int64_t j = 0; j < count; ++j) {
        const Vec norm = hn::Set(d, key_norm[j]), none = hn::Set(d, kEmptyLogScale);
        float* row = u + j * n.mp;
        for (int64_t f = n.m; f < n.mp; ++f) row[f] = kEmptyLogScale;  // else exp of a huge difference
        for (int64_t f = 0; f < n.mp; f += kLanes) {
          const Vec x = LargerOf(none, hn::Sub(hn::Load(d, row + f), norm));
          hn::Store(x, d, row + f);
          hn::Store(hn::Max(x, hn::Load(d, new_scale + f)), d, new_scale + f);
        }
      }
      this->FinishScale();
      before();
      for (int64_t i = 0; i < n.e; ++i) MultiplyRow(sums + i * n.mp, factor, n.mp);
      MultiplyRow(key_sum, factor, n.mp);
      Copy(new_scale, scale, n.mp);
    } else {
      ApplyFunction(p.map.function, Epsilon(), u, phi, count * n.mp);
    }
    for (int64_t j = 0; j < count; ++j) {
      if (keep[j] == 0.0f) {
        Fill(phi + j * n.mp, 0, n.mp);
      } else if (exponential) {
        for (int64_t f = 0; f < n.mp; f += kLanes) {
          const Vec x = hn::Sub(hn::Load(d, u + j * n.mp + f), hn::Load(d, scale + f));
          hn::Store(ExpUnchecked(x), d, phi + j * n.mp + f);
        }
      }
    }
  }
  // Adds a chunk of keys to the state; `cells` are their features with depth C.
  void AbsorbKeys(int64_t count, const float* phi, const float* cells) {
    Gemm<Number>(n.e, n.fp, n.Groups(count), {value.data, 1, value.ld}, cells, n.fp, sums, n.fp, true);
    for (int64_t j = 0; j < count; ++j) Axpy(1, phi + j * n.fp, key_sum, n.fp);
  }

  // Gradients of `rows` queries from `first` on, from the gradients of their logits, by rows [rows, Mp].
  void StoreQueryGradients(int64_t first, int64_t rows, float* du) {
    const float* result = du;
    int64_t ld = n.mp;
    if (projection != nullptr) {
      const int64_t fast = this->structured.rows();
      if (fast > 0) this->structured.ApplyTransposed(rows, du, n.mp, dx, n.dp);
      if (fast < n.m) DenseRowGradients(fast, rows, du);
      result = dx, ld = n.dp;
    }
    const float factor_ = projection != nullptr ? 1.0f : Scale();
    for (int64_t i = 0; i < rows; ++i)
      StoreRow(b.grad_query, queries.at(b.grad_query, first + i, head), n.d, factor_, result + i * ld);
  }

  // dx of those rows, or what features from `first` on add to it. The gradients become cells in place.
  void DenseRowGradients(int64_t first, int64_t rows, float* du) {
    du += first;
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) {
      for (int64_t i = 0; i < rows; ++i) PackRowAlong(du + i * n.mp, n.mp - first, du + i * n.mp);
    }
#endif
    const float* right = projection_pairs + first / Number::kGroup * n.dp;
    Gemm<Number>(rows, n.dp, n.Groups(n.m - first), {du, n.mp, 1}, right, n.dp, dx, n.dp, first > 0);
  }

  // Adds the share of features first .. first + count to dx, from the gradients du [count, Cp] of their
  // logits. `cells`: memory of a Half head for them as cells with depth M. Without a projection the features
  // are the elements of the key.
  void AddKeyGradients(int64_t first, int64_t count, const float* du, [[maybe_unused]] float* cells,
                       bool accumulate) {
    if (projection == nullptr) return Copy(du, dx + first * n.cp, count * n.cp);
    const int64_t fast = this->structured.Of(first, count);
    if (fast > 0) this->structured.ApplyTransposedToColumns(first, fast, du, n.cp, dx, accumulate);
    if (fast == count) return;
    const float* right = du + fast * n.cp;
#ifdef PERFORMER_BFLOAT16
    if constexpr (kHalf) {
      PackRowPairs(right, n.cp, count - fast, n.cp, cells, n.cp);
      right = cells;
    }
#endif
    const float* left = projection_pairs + (first + fast) / Number::kGroup * n.dp;
    Gemm<Number>(n.d, n.cp, n.Groups(count - fast), {left, 1, n.dp}, right, n.cp, dx, n.cp,
                 accumulate || fast > 0);
  }
  // Gradients of the chunk's keys and values from dx, dvalue_t and norm_gradient, the sum of the gradients of
  // all logits of a key: the norm's part is -2 eta times it times the key.
  void StoreKeyGradients(int64_t first, int64_t count) {
    const float input_scale = projection != nullptr ? 1.0f : Scale();
    const int64_t ld = HWY_MAX(n.dp, n.ep);
    const float eta = has_norm ? -2 * static_cast<float>(p.map.norm_weight) * Scale() * Scale() : 0.0f;
    Transpose(dx, n.cp, n.d, count, staging, ld);
    for (int64_t j = 0; j < count; ++j) {
      float* row = staging + j * ld;
      Multiply(row, input_scale, n.dp);
      if (eta != 0) {
        float* key = qx;  // free by now
        Fill(key, 0, n.dp);
        LoadRow(p.key, keys.at(p.key, first + j, head), n.d, 1, key);
        Axpy(eta * norm_gradient[j], key, row, n.dp);
      }
      StoreRow(b.grad_key, keys.at(b.grad_key, first + j, head), n.d, 1, row);
    }
    Transpose(dvalue_t, n.cp, n.e, count, staging, ld);
    for (int64_t j = 0; j < count; ++j)
      StoreRow(b.grad_value, keys.at(b.grad_value, first + j, head), n.e, 1, staging + j * ld);
  }

  const AttentionBackward& b;
  float* sums;                        // the keys' state [E, Fp]
  float* state_right;                 // the same as cells, depth E
  float *mirror, *mirror_sum;         // [rows, Ep], [Fp]
  float *mirror_rows, *mirror_pairs;  // the mirror as cells [rows, Ep] with depth E and with depth rows
  float *gradient, *gradient_rows, *gradient_pairs;  // [C, Ep]; as cells with depth E and with depth C
  float *output, *normalizer, *inner;
  float *value_t, *dx, *dvalue_t;     // cells [E, Cp] with depth E; [D, Cp] or [kBlock, Dp]; [E, Cp]
  float* norm_gradient;               // [Cp]
  float* projection_pairs = nullptr;  // cells [M, Dp] of scale * P, depth M
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
