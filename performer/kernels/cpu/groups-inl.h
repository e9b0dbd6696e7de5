// SPDX-License-Identifier: Apache-2.0
// A few long heads spread over threads: each head's features in groups that are worked on side by side.
//
// Features are independent of each other. A group of them is a head of its own that shares queries, keys and
// values: outputs of groups merge as states do (by their denominators), gradients add up. The contract of
// kernels/favor.h says nearly all of that already: heads with a head stride of 0, a projection and a state
// cut into equal parts. Only trigonometric groups, whose denominators may cancel, hand over sums. Whether
// heads are grouped, and how, depends on shapes alone, so results do not depend on the number of threads.
// Tokens are handled in windows, which bounds the memory for the groups' own rows.
#if defined(PERFORMER_KERNELS_CPU_GROUPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_GROUPS_INL_H_
#undef PERFORMER_KERNELS_CPU_GROUPS_INL_H_
#else
#define PERFORMER_KERNELS_CPU_GROUPS_INL_H_
#endif

#include <algorithm>

#include "performer/kernels/cpu/passes-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

inline bool IsNonnegative(Function function) {
  switch (function) {
    case Function::relu:
    case Function::elu1:
    case Function::square:
    case Function::abs:
    case Function::requ:
    case Function::sigmoid:
    case Function::exp:
      return true;
    default:
      return false;
  }
}

constexpr int64_t kFewHeads = 4;     // fewer (sequence, head)s than this are grouped
constexpr int64_t kLeastGroup = 32;  // features of a group
constexpr int64_t kMostGroups = 2;
constexpr int64_t kLeastTokens = 512;  // shorter sequences are left alone
constexpr int64_t kWindow = 4096;      // tokens whose groups' rows are held at a time

// The groups that the features of each head are cut into; 1: none.
inline int64_t GroupsOf(const AttentionForward& p) {
  const Shape& s = p.shape;
  if (s.batch * s.heads >= kFewHeads || p.map.projection == nullptr) return 1;
  int64_t longest = 0;
  for (int64_t n = 0; n < s.batch; ++n)
    longest = std::max({longest, query_rows(s, n).count, key_rows(s, n).count});
  if (longest < kLeastTokens) return 1;
  // Denominators of groups that divide by them must not cancel each other.
  if (p.map.family == Family::elementwise && (!IsNonnegative(p.map.function) || p.map.epsilon < 0)) return 1;
  for (int64_t groups = kMostGroups; groups > 1; --groups) {
    if (s.features % groups == 0 && s.features / groups >= kLeastGroup) return groups;
  }
  return 1;
}

// The map of groups of `size` features: without factors where a block of them would lie in two groups.
inline FeatureMap MapOfGroups(FeatureMap map, int64_t size, int64_t head_size) {
  if (size % head_size != 0) map.factors = nullptr;
  return map;
}

// One (sequence, head) whose groups are the heads of the calls that it makes.
class GroupedHead {
 public:
  GroupedHead(const AttentionForward& whole, const AttentionBackward* backward, int64_t groups,
              Scratch& scratch)
      : p(whole),
        b(backward),
        g(groups),
        m(whole.shape.features),
        e(whole.shape.value_size),
        d(whole.shape.head_size),
        trigonometric(whole.map.family == Family::trigonometric),
        group_rows(state_features(whole.map.family, m / g)),
        whole_rows(state_features(whole.map.family, m)) {
    int64_t longest = 1;
    for (int64_t n = 0; n < p.shape.batch; ++n)
      longest = std::max({longest, query_rows(p.shape, n).count, key_rows(p.shape, n).count});
    window = std::min(longest, kWindow);
    rows = scratch.floats(window * g * std::max(e, d));
    if (b != nullptr) {
      key_rows_of_groups = scratch.floats(window * g * d);
      value_rows = scratch.floats(window * g * e);
    }
    normalizer = scratch.floats(window * g);
    if (trigonometric) weight_sums = scratch.floats(window * g);
    const int64_t windows = b != nullptr && p.causal ? (longest + window - 1) / window : 1;
    states = scratch.floats((windows + 1) * StateSize());
    gradients = scratch.floats(2 * StateSize());
  }

  void Forward(int64_t sequence, int64_t head, Executor& executor, void* workspace) {
    Choose(sequence, head, executor, workspace);
    const State state = StateAt(0);
    Begin(state);
    if (!p.causal) Absorb(state, 0, keys.count);
    for (int64_t t = 0; t < queries.count; t += window) {
      const int64_t count = std::min(window, queries.count - t);
      AttentionForward call = Part(t, count, p.causal ? t : 0, p.causal ? count : 0);
      call.out = OwnRows(rows, e);
      call.normalizer = normalizer;
      call.initial = call.final = state;
      Run(call);
      executor_->parallel_for(count, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) trigonometric ? MergeWaves(t, i) : MergeRow(t, i);
      });
    }
    if (p.final) FromGroups(state, Whole(p.final));
  }

  void Backward(int64_t sequence, int64_t head, Executor& executor, void* workspace) {
    Choose(sequence, head, executor, workspace);
    if (p.causal)
      CausalWindows();
    else
      BidirectionalWindows();
  }

 private:
  // Rows of a state cut into groups: those of its groups one after the other, each with cosines, sines and a
  // constant of its own in the trigonometric family. The constant is the same in all groups, so a state's is
  // copied to each and taken from the first; gradients that it gets from groups add up.
  int64_t state_rows() const { return g * group_rows; }
  int64_t StateSize() const { return state_rows() * (e + 2); }
  State Parts(float* memory) const {
    return {memory, memory + state_rows() * e, memory + state_rows() * (e + 1)};
  }
  State StateAt(int64_t window_index) const { return Parts(states + window_index * StateSize()); }
  // The share of this head in a state of the call.
  State Whole(const State& state) const {
    const int64_t index = sequence_ * p.shape.heads + head_;
    const auto part = [&](void* data, int64_t size) {
      return data == nullptr ? nullptr : static_cast<float*>(data) + index * size;
    };
    return {part(state.kv, whole_rows * e), part(state.key_sum, whole_rows),
            part(state.log_scale, whole_rows)};
  }
  // The row of the whole state that a row of a state in groups stands for.
  int64_t WholeRow(int64_t row) const {
    const int64_t k = row / group_rows, f = row % group_rows, size = m / g;
    if (f == 2 * size) return 2 * m;
    return f < size ? k * size + f : m + k * size + f - size;
  }
  bool IsConstant(int64_t row) const { return trigonometric && row % group_rows == group_rows - 1; }
  // copy(part of the whole, part in groups, elements of a row) for the parts that both have.
  template <class Copy>
  void ForParts(const State& whole, const State& own, const Copy& copy) const {
    const auto part = [&](void* x, void* y, int64_t size) {
      if (x != nullptr && y != nullptr) copy(static_cast<float*>(x), static_cast<float*>(y), size);
    };
    part(whole.kv, own.kv, e), part(whole.key_sum, own.key_sum, 1), part(whole.log_scale, own.log_scale, 1);
  }
  void ToGroups(const State& whole, const State& own, bool gradient = false) const {
    ForParts(whole, own, [&](const float* from, float* to, int64_t size) {
      for (int64_t r = 0; r < state_rows(); ++r) {
        if (gradient && IsConstant(r) && r >= group_rows)
          std::fill_n(to + r * size, size, 0.0f);
        else
          std::copy_n(from + WholeRow(r) * size, size, to + r * size);
      }
    });
  }
  void FromGroups(const State& own, const State& whole, bool gradient = false) const {
    ForParts(whole, own, [&](float* to, const float* from, int64_t size) {
      for (int64_t r = 0; r < state_rows(); ++r) {
        float* row = to + WholeRow(r) * size;
        if (!IsConstant(r) || r < group_rows)
          std::copy_n(from + r * size, size, row);
        else if (gradient)
          for (int64_t c = 0; c < size; ++c) row[c] += from[r * size + c];
      }
    });
  }
  void Copy(const State& from, const State& to) const {
    std::copy_n(static_cast<const float*>(from.kv), StateSize(), static_cast<float*>(to.kv));
  }
  void Begin(const State& state) const {
    if (p.initial) return ToGroups(Whole(p.initial), state);
    Clear(state, p.map.family == Family::elementwise ? 0.0f : kEmptyLogScale);
  }
  void Clear(const State& state, float log_scale) const {
    std::fill_n(static_cast<float*>(state.kv), state_rows() * (e + 1), 0.0f);
    std::fill_n(static_cast<float*>(state.log_scale), state_rows(), log_scale);
  }

  void Choose(int64_t sequence, int64_t head, Executor& executor, void* workspace) {
    sequence_ = sequence, head_ = head, executor_ = &executor, workspace_ = workspace;
    queries = query_rows(p.shape, sequence), keys = key_rows(p.shape, sequence);
  }

  // Tokens of one head as one sequence whose heads share them.
  View Shared(const View& view, const Rows& side, int64_t first) const {
    const int64_t bytes = view.type == DataType::float32 ? 4 : 2;
    View shared = view;
    shared.data = static_cast<char*>(view.data) + side.at(view, first, head_) * bytes;
    shared.batch_stride = shared.head_stride = 0;
    return shared;
  }
  View OwnRows(float* memory, int64_t size) const { return {memory, DataType::float32, 0, g * size, size}; }
  // A call for queries and keys of a window; its heads are the groups.
  AttentionForward Part(int64_t first_query, int64_t query_count, int64_t first_key,
                        int64_t key_count) const {
    AttentionForward call;
    call.shape.query_tokens = query_count, call.shape.key_tokens = key_count;
    call.shape.heads = g, call.shape.features = m / g;
    call.shape.head_size = d, call.shape.value_size = e;
    call.map = MapOfGroups(p.map, m / g, d);
    call.map.projection += sequence_ * p.map.projection_batch_stride + head_ * p.map.projection_head_stride;
    call.map.projection_batch_stride = 0, call.map.projection_head_stride = m / g * d;
    if (call.map.factors != nullptr) {
      call.map.factors += sequence_ * p.map.factors_batch_stride + head_ * p.map.factors_head_stride;
      call.map.factors_batch_stride = 0, call.map.factors_head_stride = 4 * (m / g);
    }
    if (p.map.offset != nullptr) {
      call.map.offset += sequence_ * p.map.offset_batch_stride + head_ * p.map.offset_head_stride;
      call.map.offset_batch_stride = 0, call.map.offset_head_stride = m / g;
    }
    call.causal = p.causal && key_count > 0 && query_count > 0;
    call.chunk = p.chunk;
    call.query = Shared(p.query, queries, first_query);
    call.key = Shared(p.key, keys, first_key);
    call.value = Shared(p.value, keys, first_key);
    if (p.key_mask != nullptr) call.key_mask = p.key_mask + row_index(keys, first_key, p.shape.key_tokens);
    if (p.query_mask != nullptr)
      call.query_mask = p.query_mask + row_index(queries, first_query, p.shape.query_tokens);
    return call;
  }
  void Run(const AttentionForward& call) const {
    if (trigonometric) return RunPass(ForwardPass, call.shape, WaveGroupsForward{call, weight_sums});
    RunPass(ForwardPass, call.shape, call);
  }
  void Run(const AttentionBackward& call) const {
    if (trigonometric) return RunPass(BackwardPass, call.forward.shape, WaveGroupsBackward{call, m});
    RunPass(BackwardPass, call.forward.shape, call);
  }
  template <class Call>
  void RunPass(Pass (*pass_of)(const Call&), const Shape& shape, const Call& call) const {
    const Pass pass = pass_of(call);
    cpu::ForEachHead(shape, *executor_, pass.work, &call, workspace_, pass.bytes);
  }
  // Adds keys to a state.
  void Absorb(const State& state, int64_t first, int64_t count) const {
    AttentionForward call = Part(0, 0, first, count);
    call.initial = call.final = state;
    Run(call);
  }

  // The output of a row from those of its groups, weighted by their denominators.
  void MergeRow(int64_t first, int64_t i) const {
    float* out = rows + i * g * e;
    const float* share = normalizer + i * g;
    const bool exponential = p.map.family == Family::exponential;
    const float none = exponential ? std::numeric_limits<float>::infinity() : 0.0f;
    float most = -std::numeric_limits<float>::infinity(), total = 0, weight[kMostGroups];
    for (int64_t k = 0; exponential && k < g; ++k) {
      if (share[k] != none) most = std::max(most, share[k]);
    }
    for (int64_t k = 0; k < g; ++k) {
      weight[k] = share[k] == none ? 0.0f : exponential ? std::exp(share[k] - most) : share[k];
      total += weight[k];
    }
    const bool empty = exponential ? total == 0 : vanishes(total);
    for (int64_t c = 0; c < e; ++c) {
      float sum = 0;
      for (int64_t k = 0; k < g; ++k) sum += weight[k] * out[k * e + c];
      out[c] = empty ? 0.0f : sum / total;
    }
    StoreMerged(first + i, empty ? none : exponential ? most + std::log(total) : total, out);
  }
  // The output of a row from the sums of its groups.
  void MergeWaves(int64_t first, int64_t i) const {
    float *out = rows + i * g * e, denominator = 0;
    for (int64_t k = 0; k < g; ++k) denominator += normalizer[i * g + k];
    const float weights = weight_sums[i * g];
    const FlooredDenominator safe = Floored(denominator, weights, m);
    for (int64_t c = 0; c < e; ++c) {
      float sum = 0;
      for (int64_t k = 0; k < g; ++k) sum += out[k * e + c];
      out[c] = weights == 0 ? 0.0f : sum / safe.divisor;
    }
    StoreMerged(first + i, weights == 0 ? 0.0f : safe.normalizer, out);
  }
  void StoreMerged(int64_t token, float merged_normalizer, const float* out) const {
    const int64_t at = row_index(queries, token, p.shape.query_tokens) * p.shape.heads + head_;
    if (p.normalizer != nullptr) static_cast<float*>(p.normalizer)[at] = merged_normalizer;
    StoreRow(p.out, queries.at(p.out, token, head_), e, 1, out);
  }

  // A backward call for a window, without the places for its gradients.
  AttentionBackward Part(const AttentionForward& forward, int64_t first_query, int64_t query_count) {
    AttentionBackward call;
    call.forward = forward;
    call.forward.out = Shared(p.out, queries, first_query);
    call.forward.normalizer = normalizer;
    call.grad_out = Shared(b->grad_out, queries, first_query);
    for (int64_t i = 0; i < query_count; ++i) {
      const int64_t row = row_index(queries, first_query + i, p.shape.query_tokens);
      for (int64_t k = 0; k < g; ++k)
        normalizer[i * g + k] = static_cast<const float*>(p.normalizer)[row * p.shape.heads + head_];
    }
    return call;
  }
  // The sum of the groups' rows.
  void AddRows(float* from, int64_t size, const View& to, const Rows& side, int64_t first, int64_t count) {
    executor_->parallel_for(count, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        float* row = from + i * g * size;
        for (int64_t k = 1; k < g; ++k) {
          for (int64_t c = 0; c < size; ++c) row[c] += row[k * size + c];
        }
        StoreRow(to, side.at(to, first + i, head_), size, 1, row);
      }
    });
  }

  void BidirectionalWindows() {
    const State state = StateAt(0), known = Whole(p.final);
    if (known.kv != nullptr && known.key_sum != nullptr) {
      ToGroups(known, state);
    } else {
      Begin(state);
      Absorb(state, 0, keys.count);
    }
    // The mirror state: what queries and the final state's gradient ask of the keys.
    const State mirror = Parts(gradients), share = Parts(gradients + StateSize());
    Clear(mirror, 0);
    if (b->grad_final) ToGroups(GradientPart(b->grad_final), mirror, true);
    for (int64_t t = 0; t < queries.count; t += window) {
      const int64_t count = std::min(window, queries.count - t);
      AttentionBackward call = Part(Part(t, count, 0, 0), t, count);
      call.forward.initial = call.forward.final = state;
      call.grad_query = OwnRows(rows, d);
      call.grad_initial = share;
      Run(call);
      AddRows(rows, d, b->grad_query, queries, t, count);
      const auto* from = static_cast<const float*>(share.kv);
      auto* to = static_cast<float*>(mirror.kv);
      for (int64_t i = 0; i < state_rows() * (e + 1); ++i) to[i] += from[i];
    }
    for (int64_t t = 0; t < keys.count; t += window)
      KeyWindow(t, std::min(window, keys.count - t), state, mirror);
    if (b->grad_initial) InitialGradient(state, mirror, share);
  }
  // Gradients of a state have no log-scale.
  State GradientPart(const State& gradient) const {
    const State whole = Whole(gradient);
    return {whole.kv, whole.key_sum, nullptr};
  }
  void KeyWindow(int64_t first, int64_t count, const State& state, const State& mirror) {
    AttentionBackward call = Part(Part(0, 0, first, count), 0, 0);
    call.forward.final = state;
    call.grad_final = {mirror.kv, mirror.key_sum, nullptr};
    RunAndAddKeyRows(call, first, count);
  }
  void RunAndAddKeyRows(AttentionBackward& call, int64_t first, int64_t count) {
    call.grad_key = OwnRows(key_rows_of_groups, d);
    call.grad_value = OwnRows(value_rows, e);
    Run(call);
    AddRows(key_rows_of_groups, d, b->grad_key, keys, first, count);
    AddRows(value_rows, e, b->grad_value, keys, first, count);
  }
  void InitialGradient(const State& state, const State& mirror, const State& result) {
    AttentionBackward call = Part(Part(0, 0, 0, 0), 0, 0);
    call.forward.initial = StateAt(1), call.forward.final = state;
    Begin(call.forward.initial);
    call.grad_final = {mirror.kv, mirror.key_sum, nullptr};
    call.grad_initial = result;
    Run(call);
    FromGroups(result, GradientPart(b->grad_initial), true);
  }

  void CausalWindows() {
    const int64_t windows = (queries.count + window - 1) / window;
    const auto count_of = [&](int64_t w) { return std::min(window, queries.count - w * window); };
    Begin(StateAt(0));
    for (int64_t w = 0; w + 1 < windows; ++w) {
      Copy(StateAt(w), StateAt(w + 1));
      Absorb(StateAt(w + 1), w * window, count_of(w));
    }
    State after = Parts(gradients), before = Parts(gradients + StateSize());
    Clear(after, 0);  // what a sequence without tokens hands on
    bool has_after = static_cast<bool>(b->grad_final);
    State final_state = StateAt(windows);
    if (has_after) {
      ToGroups(GradientPart(b->grad_final), after, true);
      ToGroups({nullptr, nullptr, Whole(p.final).log_scale}, final_state);
    }
    for (int64_t w = windows - 1; w >= 0; --w) {
      const int64_t first = w * window, count = count_of(w);
      AttentionBackward call = Part(Part(first, count, first, count), first, count);
      call.forward.initial = StateAt(w);
      if (has_after) {
        call.forward.final = {nullptr, nullptr, final_state.log_scale};
        call.grad_final = {after.kv, after.key_sum, nullptr};
      }
      call.grad_initial = before;
      call.grad_query = OwnRows(rows, d);
      RunAndAddKeyRows(call, first, count);
      AddRows(rows, d, b->grad_query, queries, first, count);
      std::swap(before, after);
      final_state = StateAt(w);
      has_after = true;
    }
    if (b->grad_initial) FromGroups(after, GradientPart(b->grad_initial), true);
  }

  const AttentionForward& p;
  const AttentionBackward* b;
  int64_t g, m, e, d;
  bool trigonometric;
  int64_t group_rows, whole_rows;  // of the state of a group and of the head
  int64_t window;
  float *rows, *key_rows_of_groups = nullptr, *value_rows = nullptr;  // [window, groups, size]
  float *normalizer, *weight_sums = nullptr;                          // [window, groups]
  float *states, *gradients;  // the states before each window; two of their gradients
  int64_t sequence_ = 0, head_ = 0;
  Rows queries, keys;
  Executor* executor_ = nullptr;
  void* workspace_ = nullptr;
};

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
