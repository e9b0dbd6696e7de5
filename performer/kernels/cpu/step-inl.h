// SPDX-License-Identifier: Apache-2.0
// One token of one (sequence, head). The state is contiguous and unpadded, so its rows are read and written
// once, in place; everything else stays in the L1 cache.
#if defined(PERFORMER_KERNELS_CPU_STEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_STEP_INL_H_
#undef PERFORMER_KERNELS_CPU_STEP_INL_H_
#else
#define PERFORMER_KERNELS_CPU_STEP_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "performer/kernels/cpu/functions-inl.h"
#include "performer/kernels/cpu/rows-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

class StepHead {
 public:
  StepHead(const AttentionStep& params, cpu::Scratch& scratch)
      : p(params), m(p.shape.features), d(p.shape.head_size), e(p.shape.value_size), mp(Padded(m)) {
    query = scratch.floats(Padded(d));
    key = scratch.floats(Padded(d));
    value = scratch.floats(Padded(e));
    out = scratch.floats(Padded(e));
    read = scratch.floats(mp);
    weight = scratch.floats(mp);
    decay = scratch.floats(mp);
  }

  void Run(int64_t sequence, int64_t head) {
    const Rows rows{sequence, 0, 1};
    const float input_scale = static_cast<float>(p.map.scale);
    for (float* row : {query, key}) Fill(row, 0, Padded(d));
    LoadRow(p.query, rows.at(p.query, 0, head), d, input_scale, query);
    LoadRow(p.key, rows.at(p.key, 0, head), d, input_scale, key);
    LoadRow(p.value, rows.at(p.value, 0, head), e, 1, value);
    Logits(sequence, head);
    const int64_t index = sequence * p.shape.heads + head;
    float* sum = static_cast<float*>(p.state.key_sum) + index * m;
    float* log_scale = static_cast<float*>(p.state.log_scale) + index * m;
    if (p.map.family == Family::exponential)
      ExponentialWeights(log_scale);
    else
      ElementwiseWeights(log_scale);
    float denominator = 0;
    for (int64_t f = 0; f < m; ++f) {
      sum[f] = sum[f] * decay[f] + weight[f];
      denominator += read[f] * sum[f];
    }
    UpdateAndRead(static_cast<float*>(p.state.kv) + index * m * e);
    const bool empty = p.map.family == Family::elementwise && vanishes(denominator);
    StoreRow(p.out, rows.at(p.out, 0, head), e, empty ? 0.0f : 1.0f / denominator, out);
  }

 private:
  // read = u of the query, weight = u of the key.
  void Logits(int64_t sequence, int64_t head) {
    const float eta = p.map.family == Family::exponential ? static_cast<float>(p.map.norm_weight) : 0.0f;
    const float norm = eta * Dot(key, key, Padded(d));
    const float* offset = p.map.offset == nullptr ? nullptr
                                                  : p.map.offset + sequence * p.map.offset_batch_stride +
                                                        head * p.map.offset_head_stride;
    const float* row = p.map.projection == nullptr
                           ? nullptr
                           : p.map.projection + sequence * p.map.projection_batch_stride +
                                 head * p.map.projection_head_stride;
    for (int64_t f = 0; f < m; ++f) {
      float q, k;
      if (row == nullptr) {
        q = query[f], k = key[f];
      } else {
        TwoDots(row + f * d, &q, &k);
      }
      const float c = offset != nullptr ? offset[f] : 0.0f;
      read[f] = q + c;
      weight[f] = k + c - norm;
    }
  }
  HWY_INLINE void TwoDots(const float* x, float* with_query, float* with_key) const {
    const Tag tag;
    Vec q = hn::Zero(tag), k = hn::Zero(tag);
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) {
      const Vec v = hn::LoadU(tag, x + i);
      q = hn::MulAdd(v, hn::Load(tag, query + i), q);
      k = hn::MulAdd(v, hn::Load(tag, key + i), k);
    }
    *with_query = SumOfLanes(q), *with_key = SumOfLanes(k);
    for (; i < d; ++i) *with_query += x[i] * query[i], *with_key += x[i] * key[i];
  }

  // The state's scale rises to include the key; decay is what that costs what it holds. `read` is shifted by
  // its largest exponent.
  void ExponentialWeights(float* log_scale) {
    const float none = -std::numeric_limits<float>::infinity();
    for (int64_t f = m; f < mp; ++f) read[f] = weight[f] = none;
    for (int64_t f = 0; f < m; ++f) {
      const float raised = HWY_MAX(log_scale[f], weight[f]);
      decay[f] = log_scale[f] - raised;
      weight[f] -= raised;
      read[f] += raised;
      log_scale[f] = raised;
    }
    for (int64_t f = m; f < mp; ++f) decay[f] = none;
    const Tag tag;
    const Vec largest = hn::Set(tag, MaxOf(read, mp));
    for (int64_t f = 0; f < mp; f += kLanes) {
      hn::Store(ExpUnchecked(hn::Load(tag, decay + f)), tag, decay + f);
      hn::Store(ExpUnchecked(hn::Load(tag, weight + f)), tag, weight + f);
      hn::Store(ExpUnchecked(hn::Sub(hn::Load(tag, read + f), largest)), tag, read + f);
    }
  }
  void ElementwiseWeights(float* log_scale) {
    const float epsilon = static_cast<float>(p.map.epsilon);
    for (int64_t f = m; f < mp; ++f) read[f] = weight[f] = 0;
    ApplyFunction(p.map.function, epsilon, read, read, mp);
    ApplyFunction(p.map.function, epsilon, weight, weight, mp);
    Fill(decay, 1, mp);
    std::fill(log_scale, log_scale + m, 0.0f);
  }

  // kv_f = decay_f kv_f + weight_f value; out = sum_f read_f kv_f.
  void UpdateAndRead(float* kv) {
    int64_t i = 0;
    for (; i + 4 * kLanes <= e; i += 4 * kLanes) Columns<4>(kv, i);
    for (; i + kLanes <= e; i += kLanes) Columns<1>(kv, i);
    for (; i < e; ++i) {
      float total = 0;
      for (int64_t f = 0; f < m; ++f) {
        float& x = kv[f * e + i];
        x = x * decay[f] + weight[f] * value[i];
        total += read[f] * x;
      }
      out[i] = total;
    }
  }
  template <int kVecs>
  HWY_INLINE void Columns(float* kv, int64_t first) {
    const Tag tag;
    Vec sum[kVecs], v[kVecs];
    for (int k = 0; k < kVecs; ++k) {
      sum[k] = hn::Zero(tag);
      v[k] = hn::LoadU(tag, value + first + k * kLanes);
    }
    for (int64_t f = 0; f < m; ++f) {
      float* row = kv + f * e + first;
      const Vec down = hn::Set(tag, decay[f]), add = hn::Set(tag, weight[f]), take = hn::Set(tag, read[f]);
      for (int k = 0; k < kVecs; ++k) {
        const Vec x = hn::MulAdd(hn::LoadU(tag, row + k * kLanes), down, hn::Mul(add, v[k]));
        hn::StoreU(x, tag, row + k * kLanes);
        sum[k] = hn::MulAdd(take, x, sum[k]);
      }
    }
    for (int k = 0; k < kVecs; ++k) hn::StoreU(sum[k], tag, out + first + k * kLanes);
  }

  const AttentionStep& p;
  int64_t m, d, e, mp;
  float *query, *key, *value, *out;
  float *read, *weight, *decay;  // [Mp]: of the query, of the key, of the state
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
