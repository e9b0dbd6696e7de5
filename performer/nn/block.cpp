// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/block.h"

#include <ATen/ATen.h>

#include "performer/nn/initialize.h"

namespace performer::nn {
namespace {

at::Tensor activate(const at::Tensor& x, const std::string& name) {
  if (name == "relu") return at::relu(x);
  return at::gelu(x, name == "gelu-tanh" ? "tanh" : "none");
}

}  // namespace

BlockImpl::BlockImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t layer)
    : pre_norm_(model.norm == "pre"), dropout_(model.dropout), activation_(model.activation) {
  const auto norm = torch::nn::LayerNormOptions({model.width}).eps(model.norm_epsilon);
  attention_norm_ = register_module("attention_norm", torch::nn::LayerNorm(norm));
  attention_ = register_module("attention", MultiHeadAttention(model, attention, layer));
  ffn_norm_ = register_module("ffn_norm", torch::nn::LayerNorm(norm));
  up_ = register_module("up", torch::nn::Linear(model.width, model.ffn));
  down_ = register_module("down", torch::nn::Linear(model.ffn, model.width));
  initialize_linear(up_, kDenseBiasStd);
  initialize_linear(down_, kDenseBiasStd);
}

at::Tensor BlockImpl::drop(const at::Tensor& x, const ops::TokenWindow* window) const {
  if (!is_training()) return x;
  return window != nullptr ? ops::dropout(x, dropout_, *window) : ops::dropout(x, dropout_);
}

at::Tensor BlockImpl::feed_forward(const at::Tensor& x, const ops::TokenWindow* window) {
  return drop(down_(drop(activate(up_(x), activation_), window)), window);
}

template <class Attend>
at::Tensor BlockImpl::apply(const at::Tensor& x, const ops::TokenWindow* window, Attend&& attend) {
  if (pre_norm_) {
    const at::Tensor middle = x + drop(attend(attention_norm_(x)), window);
    return middle + feed_forward(ffn_norm_(middle), window);
  }
  const at::Tensor middle = attention_norm_(x + drop(attend(x), window));
  return ffn_norm_(middle + feed_forward(middle, window));
}

at::Tensor BlockImpl::forward(const at::Tensor& x, const SequenceBatch& batch) {
  return apply(x, nullptr, [&](const at::Tensor& input) { return attention_(input, batch); });
}

at::Tensor BlockImpl::forward_chunk(const at::Tensor& x, const SequenceBatch& batch,
                                    const ops::TokenWindow& window, const ops::State& initial,
                                    ops::State* final) {
  return apply(x, &window, [&](const at::Tensor& input) {
    return attention_->forward_chunk(input, batch, initial, final);
  });
}

at::Tensor BlockImpl::step(const at::Tensor& x, const at::Tensor& positions, LayerState& state,
                           const at::Tensor& rotary) {
  return apply(x, nullptr,
               [&](const at::Tensor& input) { return attention_->step(input, positions, state, rotary); });
}

}  // namespace performer::nn
