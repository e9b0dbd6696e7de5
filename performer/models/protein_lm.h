// SPDX-License-Identifier: Apache-2.0
// The protein language model of the Performer papers (protein_lm): embedding, blocks, final norm, output
// layer.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "performer/nn/attention.h"
#include "performer/nn/block.h"
#include "performer/ops/dropout.h"

namespace performer {

// State of a batch of streamed sequences: one entry a layer, and how many tokens each has seen.
struct DecodeState {
  std::vector<nn::LayerState> layers;
  at::Tensor positions;  // int64 [B]
};

// What a model computes on the way to its logits, each [B, T, width] unless said otherwise.
struct Representations {
  at::Tensor input;                // embedding and positions
  std::vector<at::Tensor> layers;  // output of each block
  at::Tensor output;               // after the final norm
  at::Tensor logits;               // [B, T, vocabulary]
  at::Tensor regression;           // [B, T]; undefined without model.regression_head
};

class ProteinLMImpl : public torch::nn::Module {
 public:
  // Validates the configurations; weights are initialised as in protein_lm from LibTorch's generator.
  ProteinLMImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t vocabulary);

  // Logits [B, T, vocabulary]. Throws UsageError for a sequence beyond the learned positions and for tokens
  // outside the vocabulary.
  at::Tensor forward(const SequenceBatch& batch);
  at::Tensor hidden(const SequenceBatch& batch);  // final-norm output [B, T, width]
  Representations represent(const SequenceBatch& batch);

  // Logits [B, C, vocabulary] of the tokens start .. start + C - 1 of each row of a batch, as forward() of
  // the whole gives them, dropout included when the generator is in the same state. `chunk` holds these
  // tokens with their masks and segments; `initial` what the chunk before left, a state a layer, or nothing
  // when no sequence goes on from there; `final`, unless null, becomes what this one leaves. Causal models of
  // FAVOR kinds only; gradients flow into `initial`. nn::MultiHeadAttentionImpl::forward_chunk describes the
  // states.
  at::Tensor forward_chunk(const SequenceBatch& chunk, const ops::TokenWindow& window,
                           const std::vector<ops::State>& initial, std::vector<ops::State>* final);

  // Streaming (causal models, no gradients, no dropout in evaluation mode): feed one token [B] int64 of each
  // sequence, get the logits [B, vocabulary] of the next.
  DecodeState begin(int64_t batch_size) const;
  at::Tensor step(const at::Tensor& tokens, DecodeState& state);

  // Draw number `index` of every layer's projection; called at optimizer-step boundaries only.
  void redraw(int64_t index);
  int64_t redraw_index() const { return redraw_index_; }
  // `observer` sees every layer's queries, keys and values in the forward passes that follow; an empty one
  // ends that.
  using LayerObserver = std::function<void(int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                           const at::Tensor& value)>;
  void observe_attention(const LayerObserver& observer);
  // Running moments of every layer whose map has them; called after an optimizer step.
  void update_statistics();
  // Recompute each block in the backward pass instead of keeping its intermediates. Same gradients, dropout
  // included.
  void set_checkpoint_activations(bool on) { checkpoint_activations_ = on; }

  int64_t parameter_count() const;
  int64_t vocabulary() const { return vocabulary_; }
  const ModelConfig& model_config() const { return model_; }
  const AttentionConfig& attention_config() const { return attention_; }

 private:
  void initialize();
  void check_batch(const at::Tensor& tokens, const at::Tensor& positions) const;
  at::Tensor embed(const at::Tensor& tokens, const at::Tensor& positions,
                   const ops::TokenWindow* window = nullptr);
  at::Tensor rotary(const at::Tensor& positions) const;  // [B, T, 1, D / 2], undefined for other positions
  SequenceBatch with_rotary(SequenceBatch batch) const;
  at::Tensor run_block(nn::Block& block, const at::Tensor& x, const SequenceBatch& batch);
  at::Tensor logits(const at::Tensor& hidden);

  ModelConfig model_;
  AttentionConfig attention_;
  int64_t vocabulary_;
  int64_t redraw_index_ = 0;
  bool checkpoint_activations_ = false;
  torch::nn::Embedding embedding_{nullptr};
  at::Tensor learned_positions_;  // [max_length, width], undefined for other positions
  std::vector<nn::Block> blocks_;
  torch::nn::LayerNorm final_norm_{nullptr};
  torch::nn::Linear output_{nullptr};      // absent when tied
  at::Tensor tied_bias_;                   // [vocabulary], defined when tied
  torch::nn::Linear regression_{nullptr};  // absent without model.regression_head
};
TORCH_MODULE(ProteinLM);

}  // namespace performer
