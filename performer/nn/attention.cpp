// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "performer/base/error.h"
#include "performer/nn/chunk_attention.h"
#include "performer/nn/dense.h"
#include "performer/nn/initialize.h"
#include "performer/nn/positions.h"
#include "performer/nn/sliced_attention.h"
#include "performer/ops/block.h"
#include "performer/ops/linear.h"

namespace performer::nn {
namespace {

constexpr double kNormEpsilon = 1e-6;          // added to the mean square in qk_norm
constexpr int64_t kFewestForOneProduct = 512;  // tokens

// Each head of x [B, T, H, D] at unit root mean square, times gain [H, D]; computed in the gain's precision.
at::Tensor normalize_heads(const at::Tensor& x, const at::Tensor& gain) {
  const at::Tensor precise = x.to(gain.scalar_type());
  const at::Tensor mean_square = precise.square().mean(-1, /*keepdim=*/true);
  return (precise * (mean_square + kNormEpsilon).rsqrt() * gain).to(x.scalar_type());
}

at::Tensor heads_of(const at::Tensor& x, int64_t first, int64_t count) {
  return x.defined() ? x.narrow(-2, first, count) : x;
}

at::Tensor tokens_of(const at::Tensor& x, int64_t count) {
  return x.defined() ? x.narrow(1, 0, count) : x;
}

// The next tokens [B, T, H, D] of streams; `one`: T = 1, for which kinds have a faster way.
template <class Heads>
at::Tensor next_rows(const Attention& kind, const Heads& heads, Cache& cache, bool one) {
  if (!one) return kind.advance(heads.query, heads.key, heads.value, cache);
  const auto token = [](const at::Tensor& x) { return x.defined() ? x.squeeze(1) : x; };
  return kind.step(token(heads.query), token(heads.key), token(heads.value), cache).unsqueeze(1);
}

// Places of the first `count` tokens of each segment, and their bounds.
struct FirstTokens {
  at::Tensor places, bounds;
};
FirstTokens first_tokens(const at::Tensor& cu, int64_t count) {
  const auto all = cu.accessor<int64_t, 1>();
  std::vector<int64_t> places, bounds = {0};
  for (int64_t n = 0; n + 1 < all.size(0); ++n) {
    for (int64_t i = all[n]; i < std::min(all[n] + count, all[n + 1]); ++i) places.push_back(i);
    bounds.push_back(static_cast<int64_t>(places.size()));
  }
  return {at::tensor(places, at::kLong), at::tensor(bounds, at::kLong)};
}

std::vector<std::string> kinds_with_rows() {
  std::vector<std::string> names = kind_names();
  std::erase_if(names, [](const std::string& name) { return !find_kind(name).capabilities.rows; });
  return names;
}

// Which tokens are among the first `count` of their sequence, bool [T].
at::Tensor begins(const std::optional<at::Tensor>& cu, int64_t length, int64_t count) {
  if (!cu) return at::arange(length, at::kLong).lt(count);
  at::Tensor first = at::zeros({length}, at::kBool);
  first.index_fill_(0, first_tokens(*cu, count).places, true);
  return first;
}

}  // namespace

MultiHeadAttentionImpl::Heads MultiHeadAttentionImpl::Heads::part(int64_t first, int64_t count) const {
  return {heads_of(query, first, count), heads_of(key, first, count), heads_of(value, first, count)};
}

MultiHeadAttentionImpl::Heads MultiHeadAttentionImpl::Heads::first_tokens(int64_t count) const {
  return {tokens_of(query, count), tokens_of(key, count), tokens_of(value, count)};
}

// What the parts of a layer have read.
struct MultiHeadAttentionImpl::StreamCache final : Cache {
  std::unique_ptr<Cache> kind, local, exact;  // null where the layer has no such part
  int64_t length = 0;

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<StreamCache>();
    if (kind) selected->kind = kind->select(rows);
    if (local) selected->local = local->select(rows);
    if (exact) selected->exact = exact->select(rows);
    selected->length = length;
    return selected;
  }
};

MultiHeadAttentionImpl::MultiHeadAttentionImpl(const ModelConfig& model, const AttentionConfig& attention,
                                               int64_t layer, AttentionRole role,
                                               const std::shared_ptr<SharedWeights>& shared)
    : model_(model), attention_(attention), role_(role) {
  validate(model, attention);
  can_ = capabilities_of(attention);
  if (role == AttentionRole::self) {
    local_heads_ = attention.local_heads;
    begin_kernel_ = attention.begin_kernel;
  } else {
    require(attention.kind, can_.cross, "cross-attention", "choose exact or a favor-* kind");
    model_.positions = "none";
  }
  head_size_ = performer::head_size(model);
  kv_heads_ = performer::kv_heads(model);
  const int64_t inner = model.heads * head_size_;
  const auto linear = [&](const char* name, int64_t in, int64_t out) {
    torch::nn::Linear made(torch::nn::LinearOptions(in, out).bias(model.attention_bias));
    initialize_linear(made, 0);
    return register_module(name, made);
  };
  query_ = linear("query", model.width, inner);
  if (can_.own_keys) key_ = linear("key", model.width, kv_heads_ * head_size_);
  value_ = linear("value", model.width, kv_heads_ * head_size_);
  out_ = linear("out", inner, model.width);
  if (attention.qk_norm) {
    query_gain_ = register_parameter("query_gain", at::ones({model.heads, head_size_}));
    if (can_.own_keys) key_gain_ = register_parameter("key_gain", at::ones({kv_heads_, head_size_}));
  }
  if (attention.learned_temperature)
    temperature_ = register_parameter("temperature", at::ones({model.heads}));
  make_kinds(layer, shared);
}

void MultiHeadAttentionImpl::make_kinds(int64_t layer, const std::shared_ptr<SharedWeights>& shared) {
  if (global_heads() > 0) {
    kind_ = register_module(
        "kind", make_attention(attention_, {global_heads(), head_size_, causal(), layer, shared}));
  }
  if (local_heads_ > 0) {
    AttentionConfig local;
    local.kind = "local";
    local.set("window", attention_.local_window);
    local_ = register_module("local", make_attention(local, {local_heads_, head_size_, causal(), layer}));
  }
  if (begin_kernel_ > 0 && kind_) {
    AttentionConfig exact;
    exact.kind = "exact";
    exact_ = register_module("exact", make_attention(exact, {global_heads(), head_size_, causal(), layer}));
  }
}

void MultiHeadAttentionImpl::redraw(int64_t index) {
  if (kind_) kind_->redraw(index);
}

void MultiHeadAttentionImpl::after_step() {
  if (kind_) kind_->after_step();
}

std::vector<at::Tensor> MultiHeadAttentionImpl::borrowed() const {
  return kind_ ? kind_->borrowed() : std::vector<at::Tensor>();
}

at::Tensor MultiHeadAttentionImpl::project_out(const at::Tensor& heads) const {
  return dense(out_, heads.flatten(-2));
}

at::Tensor MultiHeadAttentionImpl::queries_of(const at::Tensor& x) const {
  at::Tensor query = split(dense(query_, x));
  if (query_gain_.defined()) query = normalize_heads(query, query_gain_);
  if (temperature_.defined()) query = (query * temperature_.unsqueeze(-1)).to(query.scalar_type());
  return query;
}

at::Tensor MultiHeadAttentionImpl::keys_of(const at::Tensor& x) const {
  const at::Tensor key = split(dense(key_, x));
  return key_gain_.defined() ? normalize_heads(key, key_gain_) : key;
}

at::Tensor MultiHeadAttentionImpl::turns(const at::Tensor& positions, const at::Tensor& rotary,
                                         at::ScalarType type) const {
  if (model_.positions != "rotary") return {};
  if (rotary.defined()) return rotary;
  check<UsageError>(
      !model_.rotary_stored,
      "with model.rotary_stored = true a layer cannot turn by positions alone: give it the table "
      "of the model's rates (SequenceBatch::rotary)");
  return rotary_table(positions, head_size_, type, model_.rotary_base);
}

at::Tensor MultiHeadAttentionImpl::turned_queries(const at::Tensor& x, const at::Tensor& positions,
                                                  const at::Tensor& rotary) const {
  const at::Tensor query = queries_of(x);
  const at::Tensor table = turns(positions, rotary, query.scalar_type());
  return table.defined() ? rotate(query, table) : query;
}

at::Tensor MultiHeadAttentionImpl::turned_keys(const at::Tensor& x, const at::Tensor& positions,
                                               const at::Tensor& rotary) const {
  if (!can_.own_keys) return turned_queries(x, positions, rotary);
  const at::Tensor key = keys_of(x);
  const at::Tensor table = turns(positions, rotary, key.scalar_type());
  return for_all_heads(table.defined() ? rotate(key, table) : key);
}

at::Tensor MultiHeadAttentionImpl::values_of(const at::Tensor& x) const {
  return for_all_heads(split(dense(value_, x)));
}

at::Tensor MultiHeadAttentionImpl::for_all_heads(const at::Tensor& shared) const {
  return kv_heads_ == model_.heads ? shared : shared.repeat_interleave(model_.heads / kv_heads_, -2);
}

// One product instead of three reads x once, and its gradient needs no sum of three. Joining the weights is a
// copy of them, which a few tokens do not pay for.
at::Tensor MultiHeadAttentionImpl::project_at_once(const at::Tensor& x) const {
  const at::Tensor weight = at::cat({query_->weight, key_->weight, value_->weight});
  if (!query_->bias.defined()) return ops::linear(x, weight);
  return ops::linear(x, weight, at::cat({query_->bias, key_->bias, value_->bias}));
}

MultiHeadAttentionImpl::Heads MultiHeadAttentionImpl::project(const at::Tensor& x,
                                                              const at::Tensor& positions,
                                                              const at::Tensor& rotary) const {
  if (!can_.reads_queries && local_heads_ == 0 && begin_kernel_ == 0)
    return {{}, {}, for_all_heads(split(dense(value_, x)))};
  const bool turns_last = !query_gain_.defined() && !temperature_.defined() && kv_heads_ == model_.heads;
  if (can_.own_keys && turns_last && x.size(0) * x.size(1) >= kFewestForOneProduct &&
      ops::splits_in_place(x)) {
    const at::Tensor projected = project_at_once(x);
    const ops::ProjectedHeads parts =
        ops::split_projection(projected, turns(positions, rotary, projected.scalar_type()), model_.heads);
    return {parts.query, parts.key, parts.value};
  }
  Heads heads{queries_of(x), can_.own_keys ? keys_of(x) : at::Tensor(), split(dense(value_, x))};
  const at::Tensor table = turns(positions, rotary, heads.query.scalar_type());
  if (table.defined()) {
    heads.query = rotate(heads.query, table);
    if (can_.own_keys) heads.key = rotate(heads.key, table);
  }
  return {heads.query, can_.own_keys ? for_all_heads(heads.key) : heads.query, for_all_heads(heads.value)};
}

ops::AttentionInputs MultiHeadAttentionImpl::inputs_of(const Heads& heads, const SequenceBatch& batch) const {
  ops::AttentionInputs inputs;
  inputs.query = heads.query;
  inputs.key = heads.key;
  inputs.value = heads.value;
  inputs.causal = causal();
  inputs.key_mask = batch.key_mask;
  inputs.query_mask = batch.key_mask;
  inputs.cu_query = batch.cu_seqlens;
  return inputs;
}

at::Tensor MultiHeadAttentionImpl::attend_exactly_first(const at::Tensor& out,
                                                        const ops::AttentionInputs& inputs) {
  ops::AttentionInputs first = inputs;
  at::Tensor places;
  if (inputs.cu_query) {
    const FirstTokens tokens = first_tokens(*inputs.cu_query, begin_kernel_);
    places = tokens.places;
    first.cu_query = tokens.bounds;
    first.cu_key = causal() ? tokens.bounds : *inputs.cu_query;
  } else {
    places = at::arange(std::min(begin_kernel_, out.size(1)), at::kLong);
    if (inputs.query_mask) first.query_mask = inputs.query_mask->index_select(1, places);
  }
  first.query = inputs.query.index_select(1, places);
  if (causal()) {  // later keys are not seen
    first.key = inputs.key.index_select(1, places);
    first.value = inputs.value.index_select(1, places);
    if (inputs.key_mask) first.key_mask = inputs.key_mask->index_select(1, places);
  }
  return out.index_copy(1, places, exact_->forward(first).to(out.scalar_type()));
}

at::Tensor MultiHeadAttentionImpl::attend(const Heads& heads, const SequenceBatch& batch) {
  require(attention_.kind, !batch.slices || (can_.chunks && local_heads_ == 0 && begin_kernel_ == 0),
          "state in this layer through which the slices of a sequence see each other",
          "use a kind with a state of constant size (favor-softmax), without local heads and begin_kernel");
  std::vector<at::Tensor> parts;
  if (kind_) {
    const ops::AttentionInputs inputs = inputs_of(local_ ? heads.part(0, global_heads()) : heads, batch);
    const at::Tensor out =
        batch.slices ? attend_sliced(*kind_, inputs, *batch.slices) : kind_->forward(inputs);
    parts.push_back(exact_ ? attend_exactly_first(out, inputs) : out);
  }
  if (local_) parts.push_back(local_->forward(inputs_of(heads.part(global_heads(), local_heads_), batch)));
  return parts.size() == 1 ? parts[0] : at::cat(parts, 2);
}

at::Tensor MultiHeadAttentionImpl::rows(const Heads& heads, const SequenceBatch& batch,
                                        const RowRange& range) {
  require(attention_.kind, !kind_ || can_.rows, "rows of a matrix of attention to show",
          fmt::format("those that have are {}", fmt::join(kinds_with_rows(), ", ")));
  std::vector<at::Tensor> parts;
  if (kind_) {
    const ops::AttentionInputs inputs = inputs_of(local_ ? heads.part(0, global_heads()) : heads, batch);
    parts.push_back(kind_->rows(inputs, range));
    if (exact_) {
      const at::Tensor first = begins(inputs.cu_query, heads.value.size(1), begin_kernel_)
                                   .narrow(0, range.first, range.count)
                                   .view({1, 1, -1, 1});
      parts[0] = at::where(first, exact_->rows(inputs, range), parts[0]);
    }
  }
  if (local_)
    parts.push_back(local_->rows(inputs_of(heads.part(global_heads(), local_heads_), batch), range));
  return parts.size() == 1 ? parts[0] : at::cat(parts, 1);
}

at::Tensor MultiHeadAttentionImpl::forward(const at::Tensor& x, const SequenceBatch& batch) {
  const Heads heads = project(x, batch.positions, batch.rotary);
  if (observer_) observer_(heads.query, heads.key, heads.value);
  return project_out(attend(heads, batch));
}

at::Tensor MultiHeadAttentionImpl::attend_to(const at::Tensor& x, const SequenceBatch& batch,
                                             const at::Tensor& context, const SequenceBatch& context_batch) {
  check<UsageError>(role_ == AttentionRole::cross, "this layer is not a cross-attention layer");
  const Heads heads{queries_of(x), for_all_heads(keys_of(context)),
                    for_all_heads(split(dense(value_, context)))};
  ops::AttentionInputs inputs = inputs_of(heads, batch);
  inputs.key_mask = context_batch.key_mask;
  inputs.cu_key = context_batch.cu_seqlens;
  return project_out(kind_->forward(inputs));
}

std::unique_ptr<Cache> MultiHeadAttentionImpl::begin(int64_t batch) const {
  require(attention_.kind, causal() && can_.streams, "streaming, one token at a time, in this model",
          "use model.objective = causal and a kind that streams");
  auto cache = std::make_unique<StreamCache>();
  if (kind_) cache->kind = kind_->begin(batch);
  if (local_) cache->local = local_->begin(batch);
  if (exact_) cache->exact = exact_->begin(batch);
  return cache;
}

at::Tensor MultiHeadAttentionImpl::attend_next(const Heads& heads, StreamCache& cache, bool one) const {
  at::Tensor out = next_rows(*kind_, heads, *cache.kind, one);
  if (!cache.exact) return out;
  const int64_t length = heads.value.size(1), first = std::min(begin_kernel_ - cache.length, length);
  const at::Tensor exact =
      next_rows(*exact_, heads.first_tokens(first), *cache.exact, one).to(out.scalar_type());
  if (cache.length + first >= begin_kernel_) cache.exact = nullptr;  // no later query reads it
  return first == length ? exact : at::cat({exact, out.narrow(1, first, length - first)}, 1);
}

at::Tensor MultiHeadAttentionImpl::step(const at::Tensor& x, const at::Tensor& positions, Cache& cache,
                                        const at::Tensor& rotary) const {
  const at::NoGradGuard no_grad;
  const bool one = x.dim() == 2;
  auto& own = dynamic_cast<StreamCache&>(cache);
  const Heads heads =
      one ? project(x.unsqueeze(1), positions.unsqueeze(1), rotary) : project(x, positions, rotary);
  std::vector<at::Tensor> parts;
  if (kind_) parts.push_back(attend_next(local_ ? heads.part(0, global_heads()) : heads, own, one));
  if (local_) parts.push_back(next_rows(*local_, heads.part(global_heads(), local_heads_), *own.local, one));
  own.length += heads.value.size(1);
  const at::Tensor out = project_out(parts.size() == 1 ? parts[0] : at::cat(parts, 2));
  return one ? out.squeeze(1) : out;
}

bool MultiHeadAttentionImpl::reads_pieces() const {
  return role_ == AttentionRole::self && !causal() && can_.grows && local_heads_ == 0 && begin_kernel_ == 0;
}

void MultiHeadAttentionImpl::take_in(const at::Tensor& x, const at::Tensor& positions,
                                     const at::Tensor& rotary, std::unique_ptr<Cache>& context) const {
  const at::NoGradGuard no_grad;
  require(
      attention_.kind, reads_pieces(), "context in this layer that is made piece by piece",
      "use a masked model of favor-softmax, favor-relu, exact or auto, without local heads and begin_kernel");
  const at::Tensor key = turned_keys(x, positions, rotary), value = values_of(x);
  if (context) {
    kind_->extend(key, value, *context);
  } else {
    context = kind_->begin_cross(key, value, std::nullopt);
  }
}

at::Tensor MultiHeadAttentionImpl::read_piece(const at::Tensor& x, const at::Tensor& positions,
                                              const at::Tensor& rotary, const Cache& context) const {
  const at::NoGradGuard no_grad;
  return project_out(kind_->read(turned_queries(x, positions, rotary), context));
}

bool MultiHeadAttentionImpl::has_state() const {
  return role_ == AttentionRole::self && can_.chunks && local_heads_ == 0 && begin_kernel_ == 0;
}

ops::State MultiHeadAttentionImpl::add_to_state(const at::Tensor& x, const at::Tensor& positions,
                                                const at::Tensor& rotary, const ops::State& before) const {
  const at::NoGradGuard no_grad;
  require(attention_.kind, has_state(), "state in this layer that stands for the tokens of a slice",
          "use a kind with a state of constant size (favor-softmax), without local heads and begin_kernel");
  return add_keys(*kind_, turned_keys(x, positions, rotary), values_of(x), before);
}

at::Tensor MultiHeadAttentionImpl::read_state(const at::Tensor& x, const at::Tensor& positions,
                                              const at::Tensor& rotary, const ops::State& state) const {
  const at::NoGradGuard no_grad;
  return project_out(nn::read_state(*kind_, turned_queries(x, positions, rotary), state));
}

std::unique_ptr<Cache> MultiHeadAttentionImpl::begin_cross(const at::Tensor& context,
                                                           const SequenceBatch& context_batch) const {
  check<UsageError>(role_ == AttentionRole::cross && !context_batch.cu_seqlens,
                    "only a cross-attention layer keeps a context, and only one in rows, not in segments");
  const at::NoGradGuard no_grad;
  return kind_->begin_cross(for_all_heads(keys_of(context)), for_all_heads(split(dense(value_, context))),
                            context_batch.key_mask);
}

at::Tensor MultiHeadAttentionImpl::read(const at::Tensor& x, const Cache& cache) const {
  const at::NoGradGuard no_grad;
  return project_out(kind_->read(queries_of(x), cache));
}

at::Tensor MultiHeadAttentionImpl::forward_chunk(const at::Tensor& x, const SequenceBatch& batch,
                                                 const ops::State& initial, ops::State* final) {
  check<UsageError>(causal(), "with model.objective = {} tokens see later ones, so no chunk leaves a state",
                    model_.objective);
  require(attention_.kind, can_.chunks && local_heads_ == 0 && begin_kernel_ == 0,
          "state in this layer that one chunk can leave to the next",
          "use a kind with a state of constant size (favor-softmax), without local heads and begin_kernel");
  const Heads heads = project(x, batch.positions, batch.rotary);
  const auto attend = [&](const ops::AttentionInputs& inputs) { return kind_->continue_from(inputs); };
  return project_out(attend_chunk(attend, {heads.query, heads.key, heads.value}, batch, initial, final));
}

}  // namespace performer::nn
