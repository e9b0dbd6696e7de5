// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/attention.h"

#include <ATen/ATen.h>

#include "performer/base/error.h"
#include "performer/nn/chunk_attention.h"
#include "performer/nn/exact_attention.h"
#include "performer/nn/initialize.h"
#include "performer/nn/positions.h"

namespace performer::nn {
namespace {

constexpr double kNormEpsilon = 1e-6;  // added to the mean square in qk_norm

// Each head of x [B, T, H, D] at unit root mean square, times gain [H, D]; computed in the gain's precision.
at::Tensor normalize_heads(const at::Tensor& x, const at::Tensor& gain) {
  const at::Tensor precise = x.to(gain.scalar_type());
  const at::Tensor mean_square = precise.square().mean(-1, /*keepdim=*/true);
  return (precise * (mean_square + kNormEpsilon).rsqrt() * gain).to(x.scalar_type());
}

}  // namespace

MultiHeadAttentionImpl::MultiHeadAttentionImpl(const ModelConfig& model, const AttentionConfig& attention,
                                               int64_t layer)
    : model_(model), attention_(attention) {
  validate(model, attention);
  head_size_ = performer::head_size(model);
  const int64_t inner = model.heads * head_size_;
  const auto linear = [&](const char* name, int64_t in, int64_t out) {
    torch::nn::Linear made(torch::nn::LinearOptions(in, out).bias(model.attention_bias));
    initialize_linear(made, 0);
    return register_module(name, made);
  };
  query_ = linear("query", model.width, inner);
  key_ = linear("key", model.width, inner);
  value_ = linear("value", model.width, inner);
  out_ = linear("out", inner, model.width);
  if (attention.qk_norm) {
    query_gain_ = register_parameter("query_gain", at::ones({model.heads, head_size_}));
    key_gain_ = register_parameter("key_gain", at::ones({model.heads, head_size_}));
  }
  if (attention.learned_temperature)
    temperature_ = register_parameter("temperature", at::ones({model.heads}));
  if (is_favor(attention) || is_preset(attention)) {
    linear_ = register_module(
        "linear", LinearAttention(attention, model.heads, head_size_, model.objective == "causal", layer));
  }
}

void MultiHeadAttentionImpl::redraw(int64_t index) {
  if (linear_) linear_->redraw(index);
}

void MultiHeadAttentionImpl::update_statistics() {
  if (linear_) linear_->update_statistics();
}

MultiHeadAttentionImpl::Heads MultiHeadAttentionImpl::project(const at::Tensor& x,
                                                              const at::Tensor& positions,
                                                              const at::Tensor& rotary) {
  const auto split = [&](const at::Tensor& flat) { return flat.unflatten(-1, {model_.heads, head_size_}); };
  Heads heads{{}, {}, split(value_(x))};
  if (attention_.kind == "identity") return heads;
  heads.query = split(query_(x));
  heads.key = split(key_(x));
  if (query_gain_.defined()) {
    heads.query = normalize_heads(heads.query, query_gain_);
    heads.key = normalize_heads(heads.key, key_gain_);
  }
  if (temperature_.defined()) {
    heads.query = (heads.query * temperature_.unsqueeze(-1)).to(heads.key.scalar_type());
  }
  if (model_.positions == "rotary") {
    const at::Tensor table =
        rotary.defined() ? rotary : rotary_table(positions, head_size_, heads.query.scalar_type());
    heads.query = rotate(heads.query, table);
    heads.key = rotate(heads.key, table);
  }
  return heads;
}

at::Tensor MultiHeadAttentionImpl::attend(const Heads& heads, const SequenceBatch& batch) {
  const bool causal = model_.objective == "causal";
  if (attention_.kind == "exact") return exact_attention(heads.query, heads.key, heads.value, causal, batch);
  if (attention_.kind == "identity") {
    if (!batch.key_mask) return heads.value;
    return heads.value.masked_fill(batch.key_mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
  }
  return linear_->forward(heads.query, heads.key, heads.value, batch);
}

at::Tensor MultiHeadAttentionImpl::forward(const at::Tensor& x, const SequenceBatch& batch) {
  const Heads heads = project(x, batch.positions, batch.rotary);
  if (observer_) observer_(heads.query, heads.key, heads.value);
  return out_(attend(heads, batch).flatten(-2));
}

at::Tensor MultiHeadAttentionImpl::step(const at::Tensor& x, const at::Tensor& positions, LayerState& state,
                                        const at::Tensor& rotary) {
  check<UsageError>(model_.objective == "causal",
                    "only a causal model can be fed one token at a time; this one has "
                    "model.objective = {}",
                    model_.objective);
  const Heads row = project(x.unsqueeze(1), positions.unsqueeze(1), rotary);
  if (attention_.kind == "identity") return out_(row.value.squeeze(1).flatten(-2));
  const at::Tensor query = row.query.squeeze(1), key = row.key.squeeze(1), value = row.value.squeeze(1);
  if (attention_.kind == "exact") {
    return out_(exact_step(query, key, value, state.keys, state.values, state.length).flatten(-2));
  }
  return out_(linear_->step(query, key, value, state.favor).flatten(-2));
}

at::Tensor MultiHeadAttentionImpl::forward_chunk(const at::Tensor& x, const SequenceBatch& batch,
                                                 const ops::State& initial, ops::State* final) {
  check<UsageError>(
      model_.objective == "causal" && is_favor(attention_),
      "only causal attention of a favor-* kind has a state that one chunk can leave to the next; "
      "this model has model.objective = {} and attention.kind = {}",
      model_.objective, attention_.kind);
  const Heads heads = project(x, batch.positions, batch.rotary);
  const auto attend = [&](const ops::AttentionInputs& inputs) { return linear_->continue_from(inputs); };
  return out_(attend_chunk(attend, {heads.query, heads.key, heads.value}, batch, initial, final).flatten(-2));
}

}  // namespace performer::nn
