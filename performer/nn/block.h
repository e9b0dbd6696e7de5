// SPDX-License-Identifier: Apache-2.0
// One Transformer block: attention and a feed-forward part with residuals, norms before (pre) or after
// (post).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include "performer/nn/attention.h"
#include "performer/ops/dropout.h"

namespace performer::nn {

class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t layer);

  at::Tensor forward(const at::Tensor& x, const SequenceBatch& batch);  // [B, T, width] -> same
  // The tokens of a chunk, x [B, C, width] -> same, as forward() of the whole batch gives them, dropout
  // included; states as in MultiHeadAttentionImpl::forward_chunk.
  at::Tensor forward_chunk(const at::Tensor& x, const SequenceBatch& batch, const ops::TokenWindow& window,
                           const ops::State& initial, ops::State* final);
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, LayerState& state,
                  const at::Tensor& rotary = {});  // [B, width]
  void redraw(int64_t index) { attention_->redraw(index); }
  void observe_attention(HeadsObserver observer) { attention_->observe(std::move(observer)); }
  void update_statistics() { attention_->update_statistics(); }

 private:
  // `window` is null for a whole batch.
  at::Tensor feed_forward(const at::Tensor& x, const ops::TokenWindow* window);
  template <class Attend>
  at::Tensor apply(const at::Tensor& x, const ops::TokenWindow* window, Attend&& attend);

  at::Tensor drop(const at::Tensor& x, const ops::TokenWindow* window) const;  // in training mode only

  bool pre_norm_;
  double dropout_;
  std::string activation_;
  MultiHeadAttention attention_{nullptr};
  torch::nn::LayerNorm attention_norm_{nullptr}, ffn_norm_{nullptr};
  torch::nn::Linear up_{nullptr}, down_{nullptr};
};
TORCH_MODULE(Block);

}  // namespace performer::nn
