// SPDX-License-Identifier: Apache-2.0
// The backend "composed": attention of LibTorch operations, for every device, a chunk of tokens at a time.
// Nothing here has the size of T x M; the backward pass computes features again, as the kernels do: once
// forwards, for the queries and what stays within a chunk, and once backwards, for the keys and values.
#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "performer/ops/favor/call.h"
#include "performer/ops/favor/composed_family.h"

namespace performer::ops {
namespace {

using at::Tensor;
using composed::ChunkGradients;
using composed::Family;
using composed::Keys;
using composed::Part;
using composed::Queries;
using composed::Sums;

constexpr int64_t kComposedChunk = 128;

// Tokens handled at a time. What an operation costs on an accelerator is mostly its start: chunks are as long
// there as one tensor of their features may be large, 64 MiB in float32.
int64_t tokens_at_a_time(const Call& call) {
  if (call.chunk > 0) return call.chunk;
  if (call.query.is_cpu()) return kComposedChunk;
  constexpr int64_t kElements = int64_t{1} << 24, kLongest = 16384;
  const int64_t row = std::max<int64_t>(1, call.query.size(0) * call.heads * call.features);
  return std::clamp(kElements / row, kComposedChunk, kLongest);
}

// Sums stay in their own type under autocast.
struct WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

// One sequence batch, or one packed segment: views of the call's tensors.
struct Sequence {
  Tensor query, key, value, key_mask, query_mask, projection, offset;
  State initial;
};

// The part of each side that belongs to a segment.
struct Range {
  int64_t query_first = 0, query_count = 0, key_first = 0, key_count = 0;
  Tensor of_queries(const Tensor& x) const { return x.defined() ? x.narrow(1, query_first, query_count) : x; }
  Tensor of_keys(const Tensor& x) const { return x.defined() ? x.narrow(1, key_first, key_count) : x; }
};

// A state's or a constant's entry for sequence n; constants may be shared by all.
Tensor entry(const Tensor& x, int64_t n) {
  return x.defined() && x.size(0) > 1 ? x.narrow(0, n, 1) : x;
}
State entry(const State& state, int64_t n) {
  return {entry(state.kv, n), entry(state.key_sum, n), entry(state.log_scale, n)};
}

// Calls work(range, n) for the whole batch (n = -1), or for each packed segment n.
template <class Work>
void for_each_segment(const Call& call, const Work& work) {
  if (!call.packed()) {
    work(Range{0, call.query_tokens, 0, call.key_tokens}, -1);
    return;
  }
  const int64_t *queries = call.cu_query.const_data_ptr<int64_t>(),
                *keys = call.cu_key.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < call.sequences; ++n)
    work(Range{queries[n], queries[n + 1] - queries[n], keys[n], keys[n + 1] - keys[n]}, n);
}

Sequence sequence_of(const Call& call, const Range& range, int64_t n) {
  Sequence s{range.of_queries(call.query),
             range.of_keys(call.key),
             range.of_keys(call.value),
             range.of_keys(call.key_mask),
             range.of_queries(call.query_mask),
             call.projection,
             call.offset,
             call.initial};
  if (n < 0) return s;
  s.projection = entry(s.projection, n);
  s.offset = entry(s.offset, n);
  s.initial = entry(s.initial, n);
  return s;
}

// Loads chunks of one sequence, and walks over them.
class Walk {
 public:
  Walk(const Call& call, Sequence sequence)
      : call_(call),
        s_(std::move(sequence)),
        type_(call.sum_options.dtype().toScalarType()),
        chunk_(tokens_at_a_time(call)),
        exponential_(call.map.family == kernels::Family::exponential),
        family_(exponential_ ? composed::exponential_family()
                             : composed::elementwise_family(call.map.function, call.map.epsilon)) {
    if (s_.projection.defined()) projection_ = s_.projection.to(type_);
    if (s_.offset.defined()) offset_ = s_.offset.to(type_).unsqueeze(2);
  }

  void forward(Tensor out, Tensor normalizer, const State& final) {
    Sums sums = start();
    if (!call_.causal) absorb_keys(sums);
    for_each_chunk(s_.query, [&](int64_t first, int64_t count) {
      const Tensor u = arguments(scaled(s_.query, first, count));
      Part part = family_->read(u, sums);
      if (call_.causal) {
        const Keys keys = load_keys(first, count);
        part = family_->merge(part, family_->read_causal(u, keys));
        family_->absorb(sums, keys);
      }
      Tensor rows, denominators;
      family_->finish(part, mask_of(s_.query_mask, first, count), rows, denominators);
      out.narrow(1, first, count).copy_(rows.transpose(1, 2));
      normalizer.narrow(1, first, count).copy_(denominators.transpose(1, 2));
    });
    if (!final.defined()) return;
    final.kv.copy_(sums.kv);
    final.key_sum.copy_(sums.last);
    final.log_scale.copy_(sums.scale);
  }

  // The gradients are views to write to; `mirror` starts with the gradient of the final state.
  void backward(const Tensor& grad_out, const Tensor& out, const Tensor& normalizer, Sums mirror,
                const BackwardResults& into) {
    const auto queries_at = [&](int64_t first, int64_t count) {
      return load_queries(grad_out, out, normalizer, first, count);
    };
    Sums sums = start();
    if (!call_.causal) absorb_keys(sums);
    for_each_chunk(s_.query, [&](int64_t first, int64_t count) {
      const Queries queries = queries_at(first, count);
      Tensor of_queries = family_->query_gradient(queries, sums);
      if (call_.causal) {
        const Keys keys = load_keys(first, count);
        const ChunkGradients own = family_->causal_gradient(queries, keys);
        of_queries = of_queries + own.query;
        store_rows(into.key, pulled_back(own.key, s_.key, first, count, true), first);
        store_rows(into.value, own.value.transpose(1, 2), first);
        family_->absorb(sums, keys);
      } else {
        family_->absorb(mirror, queries);
      }
      store_rows(into.query, pulled_back(of_queries, s_.query, first, count, false), first);
    });
    for_each_chunk_backwards(s_.key, [&](int64_t first, int64_t count) {
      const ChunkGradients earlier = family_->key_gradient(load_keys(first, count), mirror);
      const auto add = [&](const Tensor& target, const Tensor& rows) {
        store_rows(target, call_.causal ? target.narrow(1, first, count) + rows : rows, first);
      };
      add(into.key, pulled_back(earlier.key, s_.key, first, count, true));
      add(into.value, earlier.value.transpose(1, 2));
      if (call_.causal) family_->absorb(mirror, queries_at(first, count));
    });
    if (!into.kv.defined()) return;
    const Tensor factor = family_->initial_factor(s_.initial.log_scale, mirror);
    into.kv.copy_(mirror.kv * factor.unsqueeze(-1));
    into.key_sum.copy_(mirror.last * factor);
  }

  // The mirror of no queries at all, or of the given gradient of the final state.
  Sums mirror_of(const State& gradient) const {
    if (!gradient.defined()) return nothing();
    return {gradient.kv, gradient.key_sum,
            exponential_ ? -gradient.log_scale : at::zeros_like(gradient.log_scale)};
  }

 private:
  template <class Body>
  void for_each_chunk(const Tensor& tokens, const Body& body) const {
    for (int64_t first = 0; first < tokens.size(1); first += chunk_)
      body(first, std::min(chunk_, tokens.size(1) - first));
  }
  template <class Body>
  void for_each_chunk_backwards(const Tensor& tokens, const Body& body) const {
    for (int64_t first = (tokens.size(1) - 1) / chunk_ * chunk_; first >= 0 && tokens.size(1) > 0;
         first -= chunk_)
      body(first, std::min(chunk_, tokens.size(1) - first));
  }

  Sums nothing() const {
    const int64_t batch = s_.query.size(0);
    const std::vector<int64_t> sums{batch, call_.heads, call_.features};
    return {at::zeros({batch, call_.heads, call_.features, call_.value_size}, call_.sum_options),
            at::zeros(sums, call_.sum_options), at::full(sums, family_->empty_scale(), call_.sum_options)};
  }
  Sums start() const {
    if (!s_.initial.defined()) return nothing();
    const Tensor& scale = s_.initial.log_scale;
    return {s_.initial.kv, s_.initial.key_sum, exponential_ ? scale : at::zeros_like(scale)};
  }

  // Rows [B, H, C, D] in the type of sums, times the map's scale.
  Tensor scaled(const Tensor& rows, int64_t first, int64_t count) const {
    return rows.narrow(1, first, count).transpose(1, 2).to(type_) * call_.map.scale;
  }
  // u without the term of the norm, which queries leave out.
  Tensor arguments(const Tensor& x) const {
    const Tensor u = projection_.defined() ? at::matmul(x, projection_.transpose(-1, -2)) : x;
    return offset_.defined() ? u + offset_ : u;
  }
  static Tensor mask_of(const Tensor& mask, int64_t first, int64_t count) {
    return mask.defined() ? mask.narrow(1, first, count).unsqueeze(1) : mask;
  }
  Keys load_keys(int64_t first, int64_t count) const {
    const Tensor x = scaled(s_.key, first, count);
    Keys keys{arguments(x), s_.value.narrow(1, first, count).transpose(1, 2).to(type_),
              mask_of(s_.key_mask, first, count)};
    if (exponential_) keys.u = keys.u - x.square().sum(-1, /*keepdim=*/true) * call_.map.norm_weight;
    return keys;
  }
  Queries load_queries(const Tensor& grad_out, const Tensor& out, const Tensor& normalizer, int64_t first,
                       int64_t count) const {
    const auto rows = [&](const Tensor& x) { return x.narrow(1, first, count).transpose(1, 2).to(type_); };
    const Tensor grad = rows(grad_out);
    return {arguments(scaled(s_.query, first, count)), rows(normalizer), grad, (grad * rows(out)).sum(-1)};
  }
  void absorb_keys(Sums& sums) const {
    for_each_chunk(s_.key,
                   [&](int64_t first, int64_t count) { family_->absorb(sums, load_keys(first, count)); });
  }

  // The gradient of rows [B, C, H, D] from that of their u.
  Tensor pulled_back(const Tensor& du, const Tensor& rows, int64_t first, int64_t count, bool key) const {
    Tensor dx = projection_.defined() ? at::matmul(du, projection_) : du;
    if (exponential_ && key)
      dx = dx - scaled(rows, first, count) * (du.sum(-1, /*keepdim=*/true) * (2 * call_.map.norm_weight));
    return (dx * call_.map.scale).transpose(1, 2);
  }
  static void store_rows(const Tensor& target, const Tensor& rows, int64_t first) {
    target.narrow(1, first, rows.size(1)).copy_(rows);
  }

  const Call& call_;
  Sequence s_;
  at::ScalarType type_;
  int64_t chunk_;
  bool exponential_;
  std::unique_ptr<Family> family_;
  Tensor projection_, offset_;
};

void composed_forward(const Call& call, ForwardResults& results) {
  const WithoutAutocast precise;
  for_each_segment(call, [&](const Range& range, int64_t n) {
    State final = results.final;
    if (final.defined() && n >= 0)
      final = {final.kv.narrow(0, n, 1), final.key_sum.narrow(0, n, 1), final.log_scale.narrow(0, n, 1)};
    Walk(call, sequence_of(call, range, n))
        .forward(range.of_queries(results.out), range.of_queries(results.normalizer), final);
  });
}

// Gradients of keys and values are sums of two passes: half-precision ones are added up in float32 first.
void composed_backward(const BackwardCall& backward, BackwardResults& results) {
  const WithoutAutocast precise;
  const Call& call = backward.call;
  const at::ScalarType type = call.sum_options.dtype().toScalarType();
  const auto precise_copy = [&](const Tensor& x) {
    return x.scalar_type() == type ? x : at::empty(x.sizes(), call.sum_options);
  };
  const BackwardResults sums{results.query, precise_copy(results.key), precise_copy(results.value),
                             results.kv, results.key_sum};
  for_each_segment(call, [&](const Range& range, int64_t n) {
    const auto own = [&](const Tensor& x) { return x.defined() && n >= 0 ? x.narrow(0, n, 1) : x; };
    Walk walk(call, sequence_of(call, range, n));
    const Sums mirror =
        walk.mirror_of({own(backward.grad_kv), own(backward.grad_key_sum), own(backward.final.log_scale)});
    walk.backward(range.of_queries(backward.grad_out), range.of_queries(backward.out),
                  range.of_queries(backward.normalizer), mirror,
                  {range.of_queries(sums.query), range.of_keys(sums.key), range.of_keys(sums.value),
                   own(sums.kv), own(sums.key_sum)});
  });
  if (!sums.key.is_same(results.key)) results.key.copy_(sums.key);
  if (!sums.value.is_same(results.value)) results.value.copy_(sums.value);
}

void composed_step(const Call& call, State& state, Tensor& out) {
  Call token = call;
  token.initial = state;
  ForwardResults results{out, at::empty({out.size(0), 1, call.heads}, call.sum_options), call.new_state()};
  composed_forward(token, results);
  state.kv.copy_(results.final.kv);
  state.key_sum.copy_(results.final.key_sum);
  state.log_scale.copy_(results.final.log_scale);
}

const RegisterBackend registered_composed({"composed", [](const c10::Device&) { return true; },
                                           composed_forward, composed_backward, composed_step},
                                          /*rank=*/0);

}  // namespace
}  // namespace performer::ops
