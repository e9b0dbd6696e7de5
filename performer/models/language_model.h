// SPDX-License-Identifier: Apache-2.0
// A language model over any attention kind: embedding, blocks, final norm, output layer. With its defaults it
// is the protein language model of the Performer papers (protein_lm).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "performer/nn/attention.h"
#include "performer/nn/block.h"
#include "performer/nn/norm.h"
#include "performer/nn/position_embeddings.h"
#include "performer/ops/dropout.h"

namespace performer {

// What the blocks remember of a batch of streamed sequences, and how many tokens each has seen. It holds all
// that streaming needs: the model keeps nothing between calls.
struct DecodeState {
  std::vector<nn::BlockCache> blocks;
  at::Tensor positions;  // int64 [B]

  // A copy that holds the sequences `rows` (int64) of the batch, in that order.
  DecodeState select(const at::Tensor& rows) const;
};

// What a model computes on the way to its logits, each [B, T, width] unless said otherwise.
struct Representations {
  at::Tensor input;                // embedding and positions
  std::vector<at::Tensor> layers;  // output of each block
  at::Tensor output;               // after the final norm, if there is one
  at::Tensor logits;               // [B, T, vocabulary]
  at::Tensor regression;           // [B, T]; undefined without model.regression_head
};

// Parts that a model may have or lack: the encoder of an encoder-decoder has no output layer, its decoder
// has blocks that attend to a context.
struct LanguageModelParts {
  bool output = true;
  bool cross_attention = false;
};

class LanguageModelImpl : public torch::nn::Module {
 public:
  // Validates the configurations; weights are initialised as in protein_lm from LibTorch's generator.
  LanguageModelImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t vocabulary,
                    const LanguageModelParts& parts = {});

  // Logits [B, T, vocabulary]. Throws UsageError for a sequence beyond the learned positions and for tokens
  // outside the vocabulary. `context` is what cross-attention reads, for models that have it.
  at::Tensor forward(const SequenceBatch& batch, const nn::Context* context = nullptr);
  at::Tensor hidden(const SequenceBatch& batch, const nn::Context* context = nullptr);  // final-norm output
                                                                                        // [B, T, width]
  Representations represent(const SequenceBatch& batch);

  // Streaming (causal models, no gradients, no dropout in evaluation mode): feed one token [B] int64 of each
  // sequence, get the logits [B, vocabulary] of the next. Threads may step streams of their own through one
  // model. A state begun before a redraw or an optimizer step keeps the projections of its beginning.
  DecodeState begin(int64_t batch_size, const nn::Context* context = nullptr) const;
  at::Tensor step(const at::Tensor& tokens, DecodeState& state) const;
  // The next T tokens of each sequence at once, [B, T] int64 -> final-norm output [B, T, width]: what
  // hidden() has at these places, up to rounding. `layers`, unless null, becomes the embedding and the output
  // of each block.
  at::Tensor advance(const at::Tensor& tokens, DecodeState& state,
                     std::vector<at::Tensor>* layers = nullptr) const;
  bool streams() const;  // whether begin(), step() and advance() are possible

  // The parts, for those who go through the layers themselves (models/long_sequence.h). embed() is the
  // blocks' input [B, T, width], rotary() as in SequenceBatch and undefined for other positions, normalized()
  // the final norm.
  at::Tensor embed(const SequenceBatch& batch, const ops::TokenWindow* window = nullptr) const;
  at::Tensor rotary(const at::Tensor& positions) const;  // [B, T, 1, D / 2]
  const std::vector<nn::Block>& blocks() const { return blocks_; }
  at::Tensor normalized(const at::Tensor& x) const;
  at::Tensor logits(const at::Tensor& hidden) const;  // of what normalized() gives

  // Draw number `index` of every layer's projection; called at optimizer-step boundaries only.
  void redraw(int64_t index);
  int64_t redraw_index() const { return redraw_index_; }
  // `observer` sees every layer's queries, keys and values in the forward passes that follow; an empty one
  // ends that.
  using LayerObserver = std::function<void(int64_t layer, const at::Tensor& query, const at::Tensor& key,
                                           const at::Tensor& value)>;
  void observe_attention(const LayerObserver& observer);
  // The attention of a layer, from 0 on, for studies of what observers see.
  nn::MultiHeadAttention attention(int64_t layer) const;
  // Called after every optimizer step: running statistics of the attention kinds move on.
  void after_step();
  // The running statistics of all layers (nn::Attention::statistics).
  std::vector<at::Tensor> statistics() const;
  // Recompute each block in the backward pass instead of keeping its intermediates. Same gradients, dropout
  // included. Blocks with cross-attention and reversible ones are not affected.
  void set_checkpoint_activations(bool on) { checkpoint_activations_ = on; }

  int64_t parameter_count() const;
  int64_t vocabulary() const { return vocabulary_; }
  const ModelConfig& model_config() const { return model_; }
  const AttentionConfig& attention_config() const { return attention_; }

 private:
  void initialize();
  void check_batch(const at::Tensor& tokens, const at::Tensor& positions) const;
  SequenceBatch with_rotary(SequenceBatch batch) const;
  at::Tensor run_block(nn::Block& block, const at::Tensor& x, const SequenceBatch& batch,
                       const nn::Context* context);
  at::Tensor through_blocks(const at::Tensor& x, const SequenceBatch& batch, const nn::Context* context,
                            std::vector<at::Tensor>* outputs);
  at::Tensor through_reversible_blocks(const at::Tensor& x, const SequenceBatch& batch,
                                       std::vector<at::Tensor>* outputs);
  void check_context(const nn::Context* context) const;
  at::Tensor next_hidden(const at::Tensor& tokens, DecodeState& state, std::vector<at::Tensor>* layers) const;
  double output_scale() const;

  ModelConfig model_;
  AttentionConfig attention_;
  int64_t vocabulary_;
  LanguageModelParts parts_;
  int64_t redraw_index_ = 0;
  bool checkpoint_activations_ = false;
  torch::nn::Embedding embedding_{nullptr};
  at::Tensor learned_positions_;  // [max_length, width], undefined for other positions
  nn::AxialPositions axial_positions_{nullptr};
  at::Tensor rotary_rates_;  // buffer [head size / 2], undefined without model.rotary_stored
  nn::Norm embedding_norm_{nullptr};
  std::vector<nn::Block> blocks_;
  nn::Norm final_norm_{nullptr};
  torch::nn::Linear output_dense_{nullptr};  // of model.output_head = transform, with its norm
  nn::Norm output_norm_{nullptr};
  torch::nn::Linear output_{nullptr};      // absent when tied, or without an output
  at::Tensor tied_bias_;                   // [vocabulary], defined when tied
  torch::nn::Linear regression_{nullptr};  // absent without model.regression_head
};
TORCH_MODULE(LanguageModel);

}  // namespace performer
