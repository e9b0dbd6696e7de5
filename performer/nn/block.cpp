// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/block.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include "performer/base/error.h"
#include "performer/nn/dense.h"
#include "performer/nn/initialize.h"
#include "performer/nn/token_shift.h"
#include "performer/ops/linear.h"

namespace performer::nn {
namespace {

// Of what only matrix products read: under autocast they would convert it.
at::ScalarType product_type(const at::Tensor& x) {
  const bool casts = x.scalar_type() == at::kFloat && at::autocast::is_autocast_enabled(x.device().type());
  return casts ? at::autocast::get_autocast_dtype(x.device().type()) : x.scalar_type();
}
at::Tensor normalized(const Norm& layer, const at::Tensor& x) {
  return layer->forward_as(x, product_type(x));
}

at::Tensor rows_of(const at::Tensor& tensor, const at::Tensor& rows) {
  return tensor.defined() ? tensor.index_select(0, rows) : tensor;
}

}  // namespace

BlockCache BlockCache::select(const at::Tensor& rows) const {
  return {attention->select(rows), cross ? cross->select(rows) : nullptr, rows_of(attention_token, rows),
          rows_of(ffn_token, rows)};
}

BlockImpl::BlockImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t layer, bool cross,
                     const std::shared_ptr<SharedWeights>& shared)
    : pre_norm_(model.norm == "pre"), dropout_(model.dropout), activation_(model.activation) {
  attention_norm_ = register_module("attention_norm", Norm(model));
  attention_ =
      register_module("attention", MultiHeadAttention(model, attention, layer, AttentionRole::self, shared));
  if (cross) {
    cross_norm_ = register_module("cross_norm", Norm(model));
    cross_attention_ = register_module(
        "cross_attention", MultiHeadAttention(model, attention, layer, AttentionRole::cross, shared));
  }
  ffn_norm_ = register_module("ffn_norm", Norm(model));
  const auto linear = [&](const char* name, int64_t in, int64_t out) {
    return register_module(name, torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(model.ffn_bias)));
  };
  up_ = linear("up", model.width, model.ffn);
  down_ = linear("down", model.ffn, model.width);
  if (model.ffn_gate) gate_ = linear("gate", model.width, model.ffn);
  initialize_linear(up_, kDenseBiasStd);
  initialize_linear(down_, kDenseBiasStd);
  if (gate_) initialize_linear(gate_, kDenseBiasStd);
  if (model.token_shift) shifts_ = stack_shifts(model.objective == "causal");
}

ops::Dropping BlockImpl::dropping(const ops::TokenWindow* window) const {
  return {is_training() ? dropout_ : 0, window != nullptr ? *window : ops::TokenWindow{}};
}

at::Tensor BlockImpl::drop(const at::Tensor& x, const ops::TokenWindow& window) const {
  return is_training() ? ops::dropout(x, dropout_, window) : x;
}

at::Tensor BlockImpl::gated(const at::Tensor& x, const ops::TokenWindow* window) const {
  const at::Tensor gates = ops::activate(activation_, ops::linear(x, gate_->weight), gate_->bias, {});
  const at::Tensor y = gates * dense(up_, x);
  const ops::Dropping drops = dropping(window);
  return ops::dropout(y, drops.probability, drops.window);
}

at::Tensor BlockImpl::inner(const at::Tensor& x, const ops::TokenWindow* window) const {
  const at::Tensor active =
      gate_ ? gated(x, window)
            : ops::activate(activation_, ops::linear(x, up_->weight), up_->bias, dropping(window));
  return ops::linear(active, down_->weight);
}

at::Tensor BlockImpl::feed_forward(const at::Tensor& x, const ops::TokenWindow& window) const {
  const at::Tensor y = inner(x, &window);
  return drop(down_->bias.defined() ? y + down_->bias.to(y.scalar_type()) : y, window);
}

at::Tensor BlockImpl::shifted(const at::Tensor& x, const SequenceBatch& batch) const {
  return shifts_.empty() ? x : shift_tokens(x, shifts_, batch.key_mask, batch.cu_seqlens);
}

at::Tensor BlockImpl::shifted_next(const at::Tensor& x, at::Tensor& last) const {
  if (shifts_.empty()) return x;
  const at::Tensor tokens = x.dim() == 2 ? x.unsqueeze(1) : x;
  const at::Tensor before = last.defined() ? last.unsqueeze(1) : at::zeros_like(tokens.narrow(1, 0, 1));
  last = tokens.select(1, -1);
  const at::Tensor shifted = shift_tokens(at::cat({before, tokens}, 1), shifts_).narrow(1, 1, tokens.size(1));
  return x.dim() == 2 ? shifted.squeeze(1) : shifted;
}

template <class Branch>
at::Tensor BlockImpl::residual(const at::Tensor& x, const Norm& norm, const at::Tensor& bias,
                               const ops::TokenWindow* window, Branch&& branch) const {
  if (pre_norm_) return ops::add_branch(x, branch(normalized(norm, x)), bias, dropping(window));
  return norm->forward_as(ops::add_branch(x, branch(x), bias, dropping(window)), x.scalar_type());
}

at::Tensor BlockImpl::forward(const at::Tensor& x, const SequenceBatch& batch, const Context* context) {
  at::Tensor y = residual(x, attention_norm_, {}, &batch.window,
                          [&](const at::Tensor& input) { return attention_(shifted(input, batch), batch); });
  if (context != nullptr) {
    y = residual(y, cross_norm_, {}, &batch.window, [&](const at::Tensor& input) {
      return cross_attention_->attend_to(input, batch, context->encoded, context->batch);
    });
  }
  return residual(y, ffn_norm_, down_->bias, &batch.window,
                  [&](const at::Tensor& input) { return inner(shifted(input, batch), &batch.window); });
}

ReversibleLayer BlockImpl::reversible_layer(const SequenceBatch& batch) {
  ReversibleLayer layer;
  layer.f = [this, batch](const at::Tensor& x) {
    return drop(attention_(shifted(normalized(attention_norm_, x), batch), batch), batch.window);
  };
  layer.g = [this, batch](const at::Tensor& x) {
    return feed_forward(shifted(normalized(ffn_norm_, x), batch), batch.window);
  };
  layer.used = read_parameters();
  for (const at::Tensor& buffer : buffers()) layer.used.push_back(buffer);
  return layer;
}

at::Tensor BlockImpl::forward_chunk(const at::Tensor& x, const SequenceBatch& batch,
                                    const ops::TokenWindow& window, const ops::State& initial,
                                    ops::State* final) {
  check<UsageError>(
      shifts_.empty(),
      "a chunk cannot go on from the one before with model.token_shift = true: set it to false");
  const at::Tensor y = residual(x, attention_norm_, {}, &window, [&](const at::Tensor& input) {
    return attention_->forward_chunk(input, batch, initial, final);
  });
  return residual(y, ffn_norm_, down_->bias, &window,
                  [&](const at::Tensor& input) { return inner(input, &window); });
}

BlockCache BlockImpl::begin(int64_t batch, const Context* context) const {
  BlockCache cache;
  cache.attention = attention_->begin(batch);
  if (context != nullptr) cache.cross = cross_attention_->begin_cross(context->encoded, context->batch);
  return cache;
}

at::Tensor BlockImpl::step(const at::Tensor& x, const at::Tensor& positions, BlockCache& cache,
                           const at::Tensor& rotary) const {
  at::Tensor y = residual(x, attention_norm_, {}, nullptr, [&](const at::Tensor& input) {
    return attention_->step(shifted_next(input, cache.attention_token), positions, *cache.attention, rotary);
  });
  if (cache.cross) {
    y = residual(y, cross_norm_, {}, nullptr, [&](const at::Tensor& input) {
      return x.dim() == 2 ? cross_attention_->read(input.unsqueeze(1), *cache.cross).squeeze(1)
                          : cross_attention_->read(input, *cache.cross);
    });
  }
  return residual(y, ffn_norm_, down_->bias, nullptr, [&](const at::Tensor& input) {
    return inner(shifted_next(input, cache.ffn_token), nullptr);
  });
}

void BlockImpl::step_reversible(Streams& streams, const at::Tensor& positions, BlockCache& cache,
                                const at::Tensor& rotary) const {
  const at::Tensor attended =
      attention_->step(shifted_next(normalized(attention_norm_, streams.second), cache.attention_token),
                       positions, *cache.attention, rotary);
  streams.first = streams.first + attended;
  streams.second =
      streams.second + feed_forward(shifted_next(normalized(ffn_norm_, streams.first), cache.ffn_token), {});
}

template <class Attend>
at::Tensor BlockImpl::around(const at::Tensor& x, Attend&& attend) const {
  const at::Tensor y = residual(x, attention_norm_, {}, nullptr, attend);
  return residual(y, ffn_norm_, down_->bias, nullptr,
                  [&](const at::Tensor& input) { return inner(input, nullptr); });
}

bool BlockImpl::reads_pieces() const {
  return attention_->reads_pieces() && shifts_.empty() && !cross_attention_;
}

void BlockImpl::take_in(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
                        std::unique_ptr<Cache>& context) const {
  attention_->take_in(pre_norm_ ? normalized(attention_norm_, x) : x, positions, rotary, context);
}

at::Tensor BlockImpl::read_piece(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
                                 const Cache& context) const {
  return around(
      x, [&](const at::Tensor& input) { return attention_->read_piece(input, positions, rotary, context); });
}

bool BlockImpl::has_state() const {
  return attention_->has_state() && shifts_.empty() && !cross_attention_;
}

ops::State BlockImpl::add_to_state(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
                                   const ops::State& before) const {
  return attention_->add_to_state(pre_norm_ ? normalized(attention_norm_, x) : x, positions, rotary, before);
}

at::Tensor BlockImpl::read_state(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
                                 const ops::State& state) const {
  return around(
      x, [&](const at::Tensor& input) { return attention_->read_state(input, positions, rotary, state); });
}

std::vector<at::Tensor> BlockImpl::read_parameters() const {
  std::vector<at::Tensor> all = parameters();
  for (const auto* part : {&attention_, &cross_attention_}) {
    if (part->is_empty()) continue;
    const std::vector<at::Tensor> borrowed = (*part)->borrowed();
    all.insert(all.end(), borrowed.begin(), borrowed.end());
  }
  return all;
}

void BlockImpl::redraw(int64_t index) {
  attention_->redraw(index);
  if (cross_attention_) cross_attention_->redraw(index);
}

void BlockImpl::after_step() {
  attention_->after_step();
  if (cross_attention_) cross_attention_->after_step();
}

}  // namespace performer::nn
