// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/block.h"

#include <ATen/ATen.h>

#include "performer/base/error.h"
#include "performer/nn/dense.h"
#include "performer/nn/initialize.h"
#include "performer/nn/token_shift.h"
#include "performer/ops/composed.h"

namespace performer::nn {
namespace {

// layer(x); LibTorch's own forward() is not const.
at::Tensor normalized(const torch::nn::LayerNorm& layer, const at::Tensor& x) {
  return at::layer_norm(x, layer->options.normalized_shape(), layer->weight, layer->bias,
                        layer->options.eps());
}

at::Tensor rows_of(const at::Tensor& tensor, const at::Tensor& rows) {
  return tensor.defined() ? tensor.index_select(0, rows) : tensor;
}

}  // namespace

BlockCache BlockCache::select(const at::Tensor& rows) const {
  return {attention->select(rows), cross ? cross->select(rows) : nullptr, rows_of(attention_token, rows),
          rows_of(ffn_token, rows)};
}

BlockImpl::BlockImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t layer, bool cross)
    : pre_norm_(model.norm == "pre"), dropout_(model.dropout), activation_(model.activation) {
  const auto norm = torch::nn::LayerNormOptions({model.width}).eps(model.norm_epsilon);
  attention_norm_ = register_module("attention_norm", torch::nn::LayerNorm(norm));
  attention_ = register_module("attention", MultiHeadAttention(model, attention, layer));
  if (cross) {
    cross_norm_ = register_module("cross_norm", torch::nn::LayerNorm(norm));
    cross_attention_ =
        register_module("cross_attention", MultiHeadAttention(model, attention, layer, AttentionRole::cross));
  }
  ffn_norm_ = register_module("ffn_norm", torch::nn::LayerNorm(norm));
  up_ = register_module("up", torch::nn::Linear(model.width, model.ffn));
  down_ = register_module("down", torch::nn::Linear(model.ffn, model.width));
  initialize_linear(up_, kDenseBiasStd);
  initialize_linear(down_, kDenseBiasStd);
  if (model.token_shift) shifts_ = stack_shifts(model.objective == "causal");
}

at::Tensor BlockImpl::drop(const at::Tensor& x, const ops::TokenWindow* window) const {
  if (!is_training()) return x;
  return window != nullptr ? ops::dropout(x, dropout_, *window) : ops::dropout(x, dropout_);
}

at::Tensor BlockImpl::feed_forward(const at::Tensor& x, const ops::TokenWindow* window) const {
  return drop(dense(down_, drop(ops::activation(activation_, dense(up_, x)), window)), window);
}

at::Tensor BlockImpl::shifted(const at::Tensor& x, const SequenceBatch& batch) const {
  return shifts_.empty() ? x : shift_tokens(x, shifts_, batch.key_mask, batch.cu_seqlens);
}

at::Tensor BlockImpl::shifted_token(const at::Tensor& x, at::Tensor& last) const {
  if (shifts_.empty()) return x;
  const at::Tensor before = last.defined() ? last : at::zeros_like(x);
  last = x;
  return shift_tokens(at::stack({before, x}, 1), shifts_).select(1, 1);
}

template <class Branch>
at::Tensor BlockImpl::residual(const at::Tensor& x, const torch::nn::LayerNorm& norm, Branch&& branch) const {
  return pre_norm_ ? x + branch(normalized(norm, x)) : normalized(norm, x + branch(x));
}

at::Tensor BlockImpl::forward(const at::Tensor& x, const SequenceBatch& batch, const Context* context) {
  at::Tensor y = residual(x, attention_norm_, [&](const at::Tensor& input) {
    return drop(attention_(shifted(input, batch), batch), nullptr);
  });
  if (context != nullptr) {
    y = residual(y, cross_norm_, [&](const at::Tensor& input) {
      return drop(cross_attention_->attend_to(input, batch, context->encoded, context->batch), nullptr);
    });
  }
  return residual(y, ffn_norm_,
                  [&](const at::Tensor& input) { return feed_forward(shifted(input, batch), nullptr); });
}

ReversibleLayer BlockImpl::reversible_layer(const SequenceBatch& batch) {
  ReversibleLayer layer;
  layer.f = [this, batch](const at::Tensor& x) {
    return drop(attention_(shifted(normalized(attention_norm_, x), batch), batch), nullptr);
  };
  layer.g = [this, batch](const at::Tensor& x) {
    return feed_forward(shifted(normalized(ffn_norm_, x), batch), nullptr);
  };
  layer.used = parameters();
  for (const at::Tensor& buffer : buffers()) layer.used.push_back(buffer);
  return layer;
}

at::Tensor BlockImpl::forward_chunk(const at::Tensor& x, const SequenceBatch& batch,
                                    const ops::TokenWindow& window, const ops::State& initial,
                                    ops::State* final) {
  check<UsageError>(
      shifts_.empty(),
      "a chunk cannot go on from the one before with model.token_shift = true: set it to false");
  const at::Tensor y = residual(x, attention_norm_, [&](const at::Tensor& input) {
    return drop(attention_->forward_chunk(input, batch, initial, final), &window);
  });
  return residual(y, ffn_norm_, [&](const at::Tensor& input) { return feed_forward(input, &window); });
}

BlockCache BlockImpl::begin(int64_t batch, const Context* context) const {
  BlockCache cache;
  cache.attention = attention_->begin(batch);
  if (context != nullptr) cache.cross = cross_attention_->begin_cross(context->encoded, context->batch);
  return cache;
}

at::Tensor BlockImpl::step(const at::Tensor& x, const at::Tensor& positions, BlockCache& cache,
                           const at::Tensor& rotary) const {
  at::Tensor y = residual(x, attention_norm_, [&](const at::Tensor& input) {
    return drop(
        attention_->step(shifted_token(input, cache.attention_token), positions, *cache.attention, rotary),
        nullptr);
  });
  if (cache.cross) {
    y = residual(y, cross_norm_, [&](const at::Tensor& input) {
      return drop(cross_attention_->read(input.unsqueeze(1), *cache.cross).squeeze(1), nullptr);
    });
  }
  return residual(y, ffn_norm_, [&](const at::Tensor& input) {
    return feed_forward(shifted_token(input, cache.ffn_token), nullptr);
  });
}

void BlockImpl::step_reversible(Streams& streams, const at::Tensor& positions, BlockCache& cache,
                                const at::Tensor& rotary) const {
  const at::Tensor attended =
      attention_->step(shifted_token(normalized(attention_norm_, streams.second), cache.attention_token),
                       positions, *cache.attention, rotary);
  streams.first = streams.first + attended;
  streams.second =
      streams.second +
      feed_forward(shifted_token(normalized(ffn_norm_, streams.first), cache.ffn_token), nullptr);
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
