// SPDX-License-Identifier: Apache-2.0
// Forward pass and single step of one (sequence, head).
#if defined(PERFORMER_KERNELS_CPU_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_FORWARD_INL_H_
#undef PERFORMER_KERNELS_CPU_FORWARD_INL_H_
#else
#define PERFORMER_KERNELS_CPU_FORWARD_INL_H_
#endif

#include "performer/kernels/cpu/head-inl.h"

HWY_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace HWY_NAMESPACE {

class ForwardHead : public Head {
 public:
  ForwardHead(const AttentionForward& params, int64_t sequence, int64_t head_index, Scratch& scratch)
      : Head(params, sequence, head_index, scratch) {
    kv = scratch.floats(n.m * n.ep);
    ut = scratch.floats(n.m * n.cp);
    phi_t = scratch.floats(n.m * n.cp);
    uq = scratch.floats(n.c * n.mp);
    out = scratch.floats(n.c * n.ep);
    weights = scratch.floats(n.c * n.cp);
    denominator = scratch.floats(n.cp);
    shift = scratch.floats(n.cp);
    sum_update = scratch.floats(n.mp);
    kept_kv = scratch.floats(n.m * n.ep);
    kept_sum = scratch.floats(n.mp);
    kept_scale = scratch.floats(n.mp);
  }

  void Run() {
    Begin();
    LoadState();
    if (p.causal) {
      for (int64_t t = 0; t < queries.count; t += n.c) {
        const int64_t count = HWY_MIN(n.c, queries.count - t);
        KeyFeatures(t, count);
        Read(t, count);
        Absorb(count);
      }
    } else {
      for (int64_t t = 0; t < keys.count; t += n.c) {
        const int64_t count = HWY_MIN(n.c, keys.count - t);
        KeyFeatures(t, count);
        Absorb(count);
      }
      for (int64_t t = 0; t < queries.count; t += n.c) Read(t, HWY_MIN(n.c, queries.count - t));
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
    const bool dropped = LoadKeys(first, count);
    LoadRows(p.value, keys, first, count, n.e, 1, value, n.ep);
    KeyLogitsTransposed(ut);
    kept_ = false;
    if (exponential) {
      RaiseScale(ut);
      Rescale();
      for (int64_t f = 0; f < n.m; ++f) ExpColumns(ut + f * n.cp, scale[f], phi_t + f * n.cp);
    } else {
      ApplyFunction(p.map.function, Epsilon(), ut, phi_t, n.m * n.cp);
      for (int64_t f = 0; dropped && f < n.m; ++f) {
        const Tag d;
        for (int64_t j = 0; j < n.cp; j += kLanes) {
          hn::Store(hn::Mul(hn::Load(d, keep + j), hn::Load(d, phi_t + f * n.cp + j)), d,
                    phi_t + f * n.cp + j);
        }
      }
    }
    for (int64_t f = 0; f < n.m; ++f) sum_update[f] = SumOf(phi_t + f * n.cp, n.cp);
  }

  void Rescale() {
    bool keep_aside = false;
    for (int64_t f = 0; p.causal && f < n.m; ++f)
      keep_aside = keep_aside || (factor[f] < kKeepBelow && key_sum[f] != 0.0f);
    if (keep_aside) {
      kept_ = true;
      std::memcpy(kept_kv, kv, sizeof(float) * static_cast<size_t>(n.m * n.ep));
      std::memcpy(kept_sum, key_sum, sizeof(float) * static_cast<size_t>(n.mp));
      std::memcpy(kept_scale, scale, sizeof(float) * static_cast<size_t>(n.mp));
    }
    for (int64_t f = 0; f < n.m; ++f) {
      scale[f] = new_scale[f];
      if (factor[f] == 1.0f) continue;
      Multiply(kv + f * n.ep, factor[f], n.ep);
      key_sum[f] *= factor[f];
    }
  }

  void Absorb(int64_t count) {
    Gemm(n.m, n.ep, count, {phi_t, n.cp, 1}, value, n.ep, kv, n.ep, true);
    for (int64_t f = 0; f < n.m; ++f) key_sum[f] += sum_update[f];
  }

  // Output of a chunk of queries: what the state holds, plus, when causal, the chunk's own keys up to each
  // row.
  void Read(int64_t first, int64_t count) {
    QueryLogits(first, count, uq);
    if (exponential) {
      for (int64_t i = 0; i < count; ++i) {
        shift[i] = MaxSum(uq + i * n.mp, scale);
        ExpRow(uq + i * n.mp, scale, shift[i], phi_q + i * n.mp);
      }
    } else {
      ApplyFunction(p.map.function, Epsilon(), uq, phi_q, count * n.mp);
    }
    Gemm(count, n.ep, n.m, {phi_q, n.mp, 1}, kv, n.ep, out, n.ep, false);
    for (int64_t i = 0; i < count; ++i) denominator[i] = Dot(phi_q + i * n.mp, key_sum, n.mp);
    if (p.causal) ReadChunk(count);
    for (int64_t i = 0; i < count; ++i) Finish(first, i);
  }

  void ReadChunk(int64_t count) {
    for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
      const int64_t rows = HWY_MIN(kBlock, count - i0), columns = i0 + rows;
      float* block = weights + i0 * n.cp;
      Gemm(rows, columns, n.m, {phi_q + i0 * n.mp, n.mp, 1}, phi_t, n.cp, block, n.cp, false);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = i0 + i + 1; j < Padded(columns); ++j) block[i * n.cp + j] = 0;
        denominator[i0 + i] += SumOf(block + i * n.cp, Padded(columns));
      }
      Gemm(rows, n.ep, columns, {block, n.cp, 1}, value, n.ep, out + i0 * n.ep, n.ep, true);
    }
  }

  void Finish(int64_t first, int64_t i) {
    float normalizer = 0;
    bool empty = !KeepsQuery(first + i);
    if (exponential && !empty) {
      empty = shift[i] < kEmptyLogScale / 2;
      const float log_denominator = std::log(denominator[i]);
      if (!empty && p.causal && !(log_denominator > -kSlowGap)) empty = !ReadSlowly(i);
      normalizer = shift[i] + std::log(denominator[i]);
    } else if (!empty) {
      empty = vanishes(denominator[i]);
      normalizer = denominator[i];
    }
    if (empty) Fill(out + i * n.ep, 0, n.ep);
    const float none = exponential ? std::numeric_limits<float>::infinity() : 0.0f;
    if (p.normalizer != nullptr)
      static_cast<float*>(p.normalizer)[NormalizerIndex(first + i)] = empty ? none : normalizer;
    cpu::StoreRow(p.out, queries.at(p.out, first + i, head), n.e, empty ? 1.0f : 1.0f / denominator[i],
                  out + i * n.ep);
  }

  // A causal row whose own keys are far weaker than later ones of the chunk: shifted by what it really sees.
  // False when it sees no key at all.
  bool ReadSlowly(int64_t i) {
    const float* u = uq + i * n.mp;
    const float* state_kv = kept_ ? kept_kv : kv;
    const float* state_sum = kept_ ? kept_sum : key_sum;
    const float* state_scale = kept_ ? kept_scale : scale;
    float largest = 2 * kEmptyLogScale;
    for (int64_t f = 0; f < n.m; ++f) {
      if (state_sum[f] != 0.0f) largest = HWY_MAX(largest, u[f] + state_scale[f] + std::log(state_sum[f]));
      for (int64_t j = 0; j <= i; ++j) {
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
    for (int64_t j = 0; j <= i; ++j) {
      if (keep[j] == 0.0f) continue;
      float w = 0;
      for (int64_t f = 0; f < n.m; ++f) w += std::exp(u[f] + ut[f * n.cp + j] - largest);
      total += w;
      Axpy(w, value + j * n.ep, out + i * n.ep, n.ep);
    }
    shift[i] = largest;
    denominator[i] = static_cast<float>(total);
    return true;
  }

  float *kv, *ut, *phi_t, *uq, *out, *weights, *denominator, *shift, *sum_update;
  float *kept_kv, *kept_sum, *kept_scale;
  bool kept_ = false;
};

// One token: the state is contiguous and unpadded, so rows are handled in place, element by element at their
// ends.
class StepHead {
 public:
  static int64_t Floats(const Shape& shape) {
    return 2 * shape.head_size + 2 * shape.features + 2 * shape.value_size + 64;
  }

  static void Run(const AttentionStep& p, int64_t sequence, int64_t head, float* memory) {
    const int64_t m = p.shape.features, d = p.shape.head_size, e = p.shape.value_size;
    float *query = memory, *key = query + d, *value = key + d, *out = value + e, *uq = out + e, *uk = uq + m;
    const Rows rows{sequence, 0, 1};
    const float input_scale = static_cast<float>(p.map.scale);
    cpu::LoadRow(p.query, rows.at(p.query, 0, head), d, input_scale, query);
    cpu::LoadRow(p.key, rows.at(p.key, 0, head), d, input_scale, key);
    cpu::LoadRow(p.value, rows.at(p.value, 0, head), e, 1, value);
    Logits(p, sequence, head, query, key, uq, uk);
    const int64_t index = sequence * p.shape.heads + head;
    float* kv = static_cast<float*>(p.state.kv) + index * m * e;
    float* sum = static_cast<float*>(p.state.key_sum) + index * m;
    float* scale = static_cast<float*>(p.state.log_scale) + index * m;
    const bool exponential = p.map.family == Family::exponential;
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t f = 0; exponential && f < m; ++f)
      largest = HWY_MAX(largest, uq[f] + HWY_MAX(scale[f], uk[f]));
    float denominator = 0;
    for (int64_t i = 0; i < e; ++i) out[i] = 0;
    for (int64_t f = 0; f < m; ++f) {
      float decay = 1, weight, read;
      if (exponential) {
        const float raised = HWY_MAX(scale[f], uk[f]);
        decay = std::exp(scale[f] - raised);
        weight = std::exp(uk[f] - raised);
        read = std::exp(uq[f] + raised - largest);
        scale[f] = raised;
      } else {
        weight = cpu::ElementFunction(p.map.function, uk[f]) + static_cast<float>(p.map.epsilon);
        read = cpu::ElementFunction(p.map.function, uq[f]) + static_cast<float>(p.map.epsilon);
        scale[f] = 0;
      }
      sum[f] = sum[f] * decay + weight;
      denominator += read * sum[f];
      float* kv_row = kv + f * e;
      for (int64_t i = 0; i < e; ++i) {
        kv_row[i] = kv_row[i] * decay + weight * value[i];
        out[i] += read * kv_row[i];
      }
    }
    const bool empty = !exponential && vanishes(denominator);
    cpu::StoreRow(p.out, rows.at(p.out, 0, head), e, empty ? 0.0f : 1.0f / denominator, out);
  }

 private:
  static void Logits(const AttentionStep& p, int64_t sequence, int64_t head, const float* query,
                     const float* key, float* uq, float* uk) {
    const int64_t m = p.shape.features, d = p.shape.head_size;
    float squares = 0;
    for (int64_t i = 0; i < d; ++i) squares += key[i] * key[i];
    const float norm =
        p.map.family == Family::exponential ? static_cast<float>(p.map.norm_weight) * squares : 0;
    const float* projection = p.map.projection == nullptr
                                  ? nullptr
                                  : p.map.projection + sequence * p.map.projection_batch_stride +
                                        head * p.map.projection_head_stride;
    const float* offset = p.map.offset == nullptr ? nullptr
                                                  : p.map.offset + sequence * p.map.offset_batch_stride +
                                                        head * p.map.offset_head_stride;
    for (int64_t f = 0; f < m; ++f) {
      float q = 0, k = 0;
      if (projection == nullptr) {
        q = query[f];
        k = key[f];
      }
      for (int64_t i = 0; projection != nullptr && i < d; ++i) {
        q += projection[f * d + i] * query[i];
        k += projection[f * d + i] * key[i];
      }
      uq[f] = q + (offset != nullptr ? offset[f] : 0);
      uk[f] = k + (offset != nullptr ? offset[f] : 0) - norm;
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace performer::kernels
HWY_AFTER_NAMESPACE();
#endif  // include guard
