// SPDX-License-Identifier: Apache-2.0
// One Transformer block: attention and a feed-forward part with residuals, norms before (pre) or after
// (post).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include "performer/nn/attention.h"

namespace performer::nn {

class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t layer);

  at::Tensor forward(const at::Tensor& x, const SequenceBatch& batch);  // [B, T, width] -> same
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, LayerState& state);  // [B, width]
  void redraw(int64_t index) { attention_->redraw(index); }

 private:
  at::Tensor feed_forward(const at::Tensor& x);
  template <class Attend>
  at::Tensor apply(const at::Tensor& x, Attend&& attend);

  at::Tensor drop(const at::Tensor& x) const;  // in training mode only

  bool pre_norm_;
  double dropout_;
  std::string activation_;
  MultiHeadAttention attention_{nullptr};
  torch::nn::LayerNorm attention_norm_{nullptr}, ffn_norm_{nullptr};
  torch::nn::Linear up_{nullptr}, down_{nullptr};
};
TORCH_MODULE(Block);

}  // namespace performer::nn
