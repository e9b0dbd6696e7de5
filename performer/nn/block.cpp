// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/block.h"

#include <ATen/ATen.h>

#include "performer/nn/initialize.h"
#include "performer/ops/dropout.h"

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

at::Tensor BlockImpl::drop(const at::Tensor& x) const {
  return is_training() ? ops::dropout(x, dropout_) : x;
}

at::Tensor BlockImpl::feed_forward(const at::Tensor& x) {
  return drop(down_(drop(activate(up_(x), activation_))));
}

template <class Attend>
at::Tensor BlockImpl::apply(const at::Tensor& x, Attend&& attend) {
  if (pre_norm_) {
    const at::Tensor middle = x + drop(attend(attention_norm_(x)));
    return middle + feed_forward(ffn_norm_(middle));
  }
  const at::Tensor middle = attention_norm_(x + drop(attend(x)));
  return ffn_norm_(middle + feed_forward(middle));
}

at::Tensor BlockImpl::forward(const at::Tensor& x, const SequenceBatch& batch) {
  return apply(x, [&](const at::Tensor& input) { return attention_(input, batch); });
}

at::Tensor BlockImpl::step(const at::Tensor& x, const at::Tensor& positions, LayerState& state) {
  return apply(x, [&](const at::Tensor& input) { return attention_->step(input, positions, state); });
}

}  // namespace performer::nn
