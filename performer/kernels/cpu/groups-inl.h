// SPDX-License-Identifier: Apache-2.0
// A few long heads spread over threads: each head's features in groups that are worked on side by side.
//
// Features are independent of each other. A group of them is a head of its own that shares queries, keys and
// values: outputs of groups merge as states do (by their denominators), gradients add up. The contract of
// kernels/favor.h says all of that already: heads with a head stride of 0, a projection and a state cut into
// equal parts. Whether heads are grouped, and how, depends on shapes alone, so results do not depend on the
// number of threads. Tokens are handled in windows, which bounds the memory for the groups' own rows.
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
  // Denominators of groups must not cancel each other.
  if (p.map.family == Family::trigonometric) return 1;
  if (p.map.family == Family::elementwise && (!IsNonnegative(p.map.function) || p.map.epsilon < 0)) return 1;
  for (int64_t groups = kMostGroups; groups > 1; --groups) {
    if (s.features % groups == 0 && s.features / groups >= kLeastGroup) return groups;
  }
  return 1;
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
        d(whole.shape.head_size) {
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
        for (int64_t i = begin; i < end; ++i) MergeRow(t, i);
      });
    }
    if (p.final) CopyState(state, Whole(p.final));
  }

  void Backward(int64_t sequence, int64_t head, Executor& executor, void* workspace) {
    Choose(sequence, head, executor, workspace);
    if (p.causal)
      CausalWindows();
    else
      BidirectionalWindows();
  }

 private:
  int64_t StateSize() const { return m * (e + 2); }
  static State Parts(float* memory, int64_t m, int64_t e) {
    return {memory, memory + m * e, memory + m * (e + 1)};
  }
  State StateAt(int64_t window_index) const { return Parts(states + window_index * StateSize(), m, e); }
  // The share of this head in a state of the call: cut into groups it lies as it is.
  State Whole(const State& state) const {
    const int64_t index = sequence_ * p.shape.heads + head_;
    const auto part = [&](void* data, int64_t size) {
      return data == nullptr ? nullptr : static_cast<float*>(data) + index * size;
    };
    return {part(state.kv, m * e), part(state.key_sum, m), part(state.log_scale, m)};
  }
  void CopyState(const State& from, const State& to) const {
    const auto copy = [](const void* x, void* y, int64_t count) {
      if (x != nullptr && y != nullptr) std::memcpy(y, x, sizeof(float) * static_cast<size_t>(count));
    };
    copy(from.kv, to.kv, m * e), copy(from.key_sum, to.key_sum, m), copy(from.log_scale, to.log_scale, m);
  }
  void Begin(const State& state) const {
    if (p.initial) return CopyState(Whole(p.initial), state);
    Clear(state, p.map.family == Family::exponential ? kEmptyLogScale : 0.0f);
  }
  void Clear(const State& state, float log_scale) const {
    std::fill_n(static_cast<float*>(state.kv), m * (e + 1), 0.0f);
    std::fill_n(static_cast<float*>(state.log_scale), m, log_scale);
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
    call.map = p.map;
    call.map.projection += sequence_ * p.map.projection_batch_stride + head_ * p.map.projection_head_stride;
    call.map.projection_batch_stride = 0, call.map.projection_head_stride = m / g * d;
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
    const Pass pass = ForwardPass(call);
    cpu::ForEachHead(call.shape, *executor_, pass.work, &call, workspace_, pass.bytes);
  }
  void Run(const AttentionBackward& call) const {
    const Pass pass = BackwardPass(call);
    cpu::ForEachHead(call.forward.shape, *executor_, pass.work, &call, workspace_, pass.bytes);
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
    const int64_t token = first + i;
    if (p.normalizer != nullptr) {
      const int64_t at = row_index(queries, token, p.shape.query_tokens) * p.shape.heads + head_;
      static_cast<float*>(p.normalizer)[at] = empty ? none : exponential ? most + std::log(total) : total;
    }
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
    State state = Whole(p.final);
    if (state.kv == nullptr || state.key_sum == nullptr) {
      state = StateAt(0);
      Begin(state);
      Absorb(state, 0, keys.count);
    }
    // The mirror state: what queries and the final state's gradient ask of the keys.
    const State mirror = Parts(gradients, m, e), share = Parts(gradients + StateSize(), m, e);
    Clear(mirror, 0);
    if (b->grad_final) CopyState({Whole(b->grad_final).kv, Whole(b->grad_final).key_sum, nullptr}, mirror);
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
      for (int64_t i = 0; i < m * (e + 1); ++i) to[i] += from[i];
    }
    for (int64_t t = 0; t < keys.count; t += window)
      KeyWindow(t, std::min(window, keys.count - t), state, mirror);
    if (b->grad_initial) InitialGradient(state, mirror);
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
  void InitialGradient(const State& state, const State& mirror) {
    AttentionBackward call = Part(Part(0, 0, 0, 0), 0, 0);
    call.forward.initial = Whole(p.initial), call.forward.final = state;
    call.grad_final = {mirror.kv, mirror.key_sum, nullptr};
    call.grad_initial = Whole(b->grad_initial);
    Run(call);
  }

  void CausalWindows() {
    const int64_t windows = (queries.count + window - 1) / window;
    const auto count_of = [&](int64_t w) { return std::min(window, queries.count - w * window); };
    Begin(StateAt(0));
    for (int64_t w = 0; w + 1 < windows; ++w) {
      CopyState(StateAt(w), StateAt(w + 1));
      Absorb(StateAt(w + 1), w * window, count_of(w));
    }
    State after = Parts(gradients, m, e), before = Parts(gradients + StateSize(), m, e);
    bool has_after = static_cast<bool>(b->grad_final);
    if (has_after) CopyState({Whole(b->grad_final).kv, Whole(b->grad_final).key_sum, nullptr}, after);
    State final_state = Whole(p.final);
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
    if (b->grad_initial) CopyState({after.kv, after.key_sum, nullptr}, Whole(b->grad_initial));
  }

  const AttentionForward& p;
  const AttentionBackward* b;
  int64_t g, m, e, d, window;
  float *rows, *key_rows_of_groups = nullptr, *value_rows = nullptr;  // [window, groups, size]
  float* normalizer;                                                  // [window, groups]
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
