// SPDX-License-Identifier: Apache-2.0
// One token of some sequences and heads. What costs time is passing over the states, which are contiguous and
// unpadded: their rows are read and written once, in place, and in the order in which they lie in memory,
// without anything else in between, since the CPU's own prefetching follows such a pass best. Measured on Zen
// 4 with states larger than the caches: a state at a time with its features computed between costs a third
// more, and so does asking for the next state's rows.
#if defined(PERFORMER_KERNELS_CPU_STEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_STEP_INL_H_
#undef PERFORMER_KERNELS_CPU_STEP_INL_H_
#else
#define PERFORMER_KERNELS_CPU_STEP_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "performer/kernels/cpu/functions-inl.h"
#include "performer/kernels/cpu/gemm-inl.h"
#include "performer/kernels/cpu/hadamard-inl.h"
#include "performer/kernels/cpu/rows-inl.h"
#include "performer/kernels/cpu/trigonometric-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

class StepBlock {
 public:
  // Sequences whose logits are computed together, as one product with a head's projection.
  static constexpr int64_t kSequences = 16;

  // A block's heads: as many as leave their features in the second-level cache, and no more than let every
  // one of `workers` have some blocks.
  static int64_t HeadsAtOnce(const AttentionStep& p, int64_t workers) {
    constexpr int64_t kBytes = 512 << 10, kBlocksOfWorker = 4;
    const int64_t rows = RowsOf(p), blocks = (p.shape.batch + kSequences - 1) / kSequences;
    const int64_t features = Padded(state_features(p.map.family, p.shape.features));
    const int64_t cached = kBytes / HWY_MAX(1, rows * 3 * features * static_cast<int64_t>(sizeof(float)));
    const int64_t shared = blocks * p.shape.heads / (kBlocksOfWorker * workers);
    return HWY_MAX(1, HWY_MIN(p.shape.heads, HWY_MIN(cached, shared)));
  }

  StepBlock(const AttentionStep& params, int64_t heads_at_once, cpu::Scratch& scratch)
      : p(params),
        m(state_features(p.map.family, p.shape.features)),
        d(p.shape.head_size),
        e(p.shape.value_size),
        w(p.shape.features),
        mp(Padded(m)),
        wp(Padded(w)),
        dp(Padded(d)),
        rows(RowsOf(p)),
        heads(heads_at_once) {
    queries = scratch.floats(rows * dp);
    keys = scratch.floats(rows * dp);
    reads = scratch.floats(heads * rows * mp);
    weights = scratch.floats(heads * rows * mp);
    decays = scratch.floats(heads * rows * mp);
    denominators = scratch.floats(heads * rows);
    value = scratch.floats(Padded(e));
    out = scratch.floats(Padded(e));
    if (p.map.projection != nullptr) {
      projection_t = scratch.floats(d * wp);
      structured = HadamardRows(p.map, w, d, false, scratch);
    }
  }

  // Sequences `block` * kSequences and heads `group` * heads_at_once, and those that follow them.
  void Run(int64_t block, int64_t group) {
    const int64_t first = block * kSequences, first_head = group * heads;
    const int64_t count = HWY_MIN(kSequences, p.shape.batch - first);
    const int64_t head_count = HWY_MIN(heads, p.shape.heads - first_head);
    for (int64_t h = 0; h < head_count; ++h) Features(first, count, first_head + h, h * rows);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t h = 0; h < head_count; ++h) PassState(first + i, first_head + h, h * rows + i);
    }
  }

 private:
  static int64_t RowsOf(const AttentionStep& p) { return HWY_MIN(kSequences, HWY_MAX(p.shape.batch, 1)); }
  bool Trigonometric() const { return p.map.family == Family::trigonometric; }
  int64_t StateOf(int64_t sequence, int64_t head) const { return sequence * p.shape.heads + head; }

  // What a head's states are multiplied by, for `count` sequences: rows `row` and on of reads, weights,
  // decays and denominators. Their log-scales and sums of keys take the new key in.
  void Features(int64_t first, int64_t count, int64_t head, int64_t row) {
    const float input_scale = static_cast<float>(p.map.scale);
    for (int64_t i = 0; i < count; ++i) {
      const Rows token{first + i, 0, 1};
      Fill(queries + i * dp, 0, dp);
      Fill(keys + i * dp, 0, dp);
      LoadRow(p.query, token.at(p.query, 0, head), d, input_scale, queries + i * dp);
      LoadRow(p.key, token.at(p.key, 0, head), d, input_scale, keys + i * dp);
    }
    read = reads + row * mp, weight = weights + row * mp, decay = decays + row * mp;
    Logits(first, count, head);
    for (int64_t i = 0; i < count; ++i, read += mp, weight += mp, decay += mp) {
      const int64_t state = StateOf(first + i, head) * m;
      float* log_scale = static_cast<float*>(p.state.log_scale) + state;
      if (p.map.family == Family::exponential)
        ExponentialWeights(log_scale);
      else if (Trigonometric())
        TrigonometricWeights(log_weights[i], log_scale);
      else
        ElementwiseWeights(log_scale);
      denominators[row + i] = UpdateSums(static_cast<float*>(p.state.key_sum) + state);
    }
  }

  void PassState(int64_t sequence, int64_t head, int64_t row) {
    read = reads + row * mp, weight = weights + row * mp, decay = decays + row * mp;
    const Rows token{sequence, 0, 1};
    LoadRow(p.value, token.at(p.value, 0, head), e, 1, value);
    UpdateAndRead(static_cast<float*>(p.state.kv) + StateOf(sequence, head) * m * e);
    const float denominator = denominators[row];
    const bool empty = p.map.family == Family::elementwise && vanishes(denominator);
    StoreRow(p.out, token.at(p.out, 0, head), e, empty ? 0.0f : 1.0f / denominator, out);
  }

  // sum_f = decay_f sum_f + weight_f; returns the denominator, sum_f read_f sum_f.
  float UpdateSums(float* sum) const {
    const Tag tag;
    Vec total = hn::Zero(tag);
    int64_t f = 0;
    for (; f + kLanes <= m; f += kLanes) {
      const Vec x = hn::MulAdd(hn::LoadU(tag, sum + f), hn::Load(tag, decay + f), hn::Load(tag, weight + f));
      hn::StoreU(x, tag, sum + f);
      total = hn::MulAdd(hn::Load(tag, read + f), x, total);
    }
    float denominator = SumOfLanes(total);
    for (; f < m; ++f) {
      sum[f] = sum[f] * decay[f] + weight[f];
      denominator += read[f] * sum[f];
    }
    if (Trigonometric()) {
      const float floor = static_cast<float>(kTrigonometricFloor) * static_cast<float>(w) * sum[m - 1];
      if (std::abs(denominator) < floor) return denominator < 0 ? -floor : floor;
    }
    return denominator;
  }

  // Rows of `read` = u of the queries, of `weight` = u of the keys.
  void Logits(int64_t first, int64_t count, int64_t head) {
    const float eta = p.map.family != Family::elementwise ? static_cast<float>(p.map.norm_weight) : 0.0f;
    const bool shared = p.map.projection_batch_stride == 0;
    if (p.map.projection != nullptr && shared) LoadProjection(0, head);
    for (int64_t i = 0; i < count; ++i) {
      float *q = read + i * mp, *k = weight + i * mp;
      if (p.map.projection == nullptr) {
        Copy(queries + i * dp, q, wp);
        Copy(keys + i * dp, k, wp);
      } else if (!shared || i == 0) {
        if (!shared) LoadProjection(first + i, head);
        const int64_t together = shared ? count : 1;
        Project(together, queries + i * dp, q);
        Project(together, keys + i * dp, k);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const float norm = eta * Dot(keys + i * dp, keys + i * dp, dp);
      const float* offset = p.map.offset == nullptr ? nullptr
                                                    : p.map.offset + (first + i) * p.map.offset_batch_stride +
                                                          head * p.map.offset_head_stride;
      float *q = read + i * mp, *k = weight + i * mp;
      log_weights[i] = -norm;
      if (!Trigonometric()) AddConstant(-norm, k, wp);
      for (int64_t f = 0; offset != nullptr && f < w; ++f) q[f] += offset[f], k[f] += offset[f];
    }
  }
  // u of `count` rows x [count, Dp], without what is added to it: [count, Mp].
  void Project(int64_t count, const float* x, float* u) const {
    const int64_t fast = structured.rows();
    if (fast > 0) structured.Apply(count, x, dp, u, mp);
    if (fast < w) Gemm<Single>(count, wp - fast, d, {x, dp, 1}, projection_t + fast, wp, u + fast, mp, false);
  }
  void LoadProjection(int64_t sequence, int64_t head) {
    const int64_t fast = structured.rows();
    if (fast > 0)
      structured.Load(
          p.map.factors + sequence * p.map.factors_batch_stride + head * p.map.factors_head_stride, 1.0f);
    if (fast == w) return;
    const float* from =
        p.map.projection + sequence * p.map.projection_batch_stride + head * p.map.projection_head_stride;
    if (w < wp) Fill(projection_t, 0, d * wp);
    Transpose(from + fast * d, d, w - fast, d, projection_t + fast, wp);
  }

  // The state's scale rises to include the key; decay is what that costs what it holds. `read` is shifted by
  // its largest exponent.
  void ExponentialWeights(float* log_scale) {
    const float none = -std::numeric_limits<float>::infinity();
    for (int64_t f = m; f < mp; ++f) read[f] = weight[f] = decay[f] = none;
    const Tag tag;
    int64_t f = 0;
    for (; f + kLanes <= m; f += kLanes) {
      const Vec before = hn::LoadU(tag, log_scale + f), own = hn::Load(tag, weight + f);
      const Vec raised = hn::Max(own, before);
      hn::StoreU(raised, tag, log_scale + f);
      hn::Store(hn::Sub(before, raised), tag, decay + f);
      hn::Store(hn::Sub(own, raised), tag, weight + f);
      hn::Store(hn::Add(hn::Load(tag, read + f), raised), tag, read + f);
    }
    for (; f < m; ++f) {
      const float raised = HWY_MAX(log_scale[f], weight[f]);
      decay[f] = log_scale[f] - raised;
      weight[f] -= raised;
      read[f] += raised;
      log_scale[f] = raised;
    }
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

  // Cosines and sines, of the key times its weight; the query does not read the constant.
  void TrigonometricWeights(float log_weight, float* log_scale) {
    const float raised = HWY_MAX(log_scale[m - 1], log_weight), key_weight = WeightOf(log_weight - raised);
    Fill(decay, WeightOf(log_scale[m - 1] - raised), mp);
    std::fill(log_scale, log_scale + m, raised);
    WaveRow(read, w, w, mp, read);
    WaveRow(weight, w, w, mp, weight);
    weight[m - 1] = 1;
    Multiply(weight, key_weight, mp);
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
  int64_t m, d, e, w, mp, wp, dp;   // m: features of the state; w: rows of the projection
  int64_t rows, heads;              // sequences and heads of a block
  float *queries, *keys;            // [rows, Dp], of one head
  float *reads, *weights, *decays;  // [heads, rows, Mp]: of queries, of keys, what the state is scaled by
  float* denominators;              // [heads, rows]
  float* projection_t = nullptr;    // [D, Wp] of the rows that are not structured
  HadamardRows structured;
  float log_weights[kSequences];                               // of the keys: the part of their norms
  float *value, *out;                                          // [Ep]
  float *read = nullptr, *weight = nullptr, *decay = nullptr;  // the rows of the sequence and head at work
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
