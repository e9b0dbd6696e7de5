// SPDX-License-Identifier: Apache-2.0
// One Transformer block: attention and a feed-forward part with residuals, norms before (pre) or after
// (post).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include <memory>

#include "performer/nn/attention.h"
#include "performer/nn/norm.h"
#include "performer/nn/reversible.h"
#include "performer/ops/block.h"

namespace performer::nn {

// What a block remembers of the streamed sequences of a batch.
struct BlockCache {
  std::unique_ptr<Cache> attention, cross;  // cross: null unless the block has cross-attention
  at::Tensor attention_token, ffn_token;    // [B, width]: what token shift reads of the last token

  BlockCache select(const at::Tensor& rows) const;
};

// What a decoder's block attends to beside its own sequence.
struct Context {
  at::Tensor encoded;   // [B, S, width]
  SequenceBatch batch;  // its masks
};

class BlockImpl : public torch::nn::Module {
 public:
  // With `cross` the block attends to a context between its two other parts.
  BlockImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t layer, bool cross = false,
            const std::shared_ptr<SharedWeights>& shared = nullptr);

  // x [B, T, width] -> same. `context` is for blocks with cross-attention.
  at::Tensor forward(const at::Tensor& x, const SequenceBatch& batch, const Context* context = nullptr);
  // The block as two branches of a reversible layer (model.reversible). Batch and context are kept by value.
  ReversibleLayer reversible_layer(const SequenceBatch& batch);

  // The tokens of a chunk, x [B, C, width] -> same, as forward() of the whole batch gives them, dropout
  // included; states as in MultiHeadAttentionImpl::forward_chunk. Not for token shift and cross-attention.
  at::Tensor forward_chunk(const at::Tensor& x, const SequenceBatch& batch, const ops::TokenWindow& window,
                           const ops::State& initial, ops::State* final);

  // Streaming, see LanguageModelImpl::step(): one token of each sequence, x [B, width] -> same, or T of them,
  // x [B, T, width] -> same; in evaluation mode.
  BlockCache begin(int64_t batch, const Context* context = nullptr) const;
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, BlockCache& cache,
                  const at::Tensor& rotary = {}) const;
  // The same of a reversible layer: both streams move on.
  void step_reversible(Streams& streams, const at::Tensor& positions, BlockCache& cache,
                       const at::Tensor& rotary = {}) const;

  // All parameters that forward() reads: its own ones, and those of other layers that it shares.
  std::vector<at::Tensor> read_parameters() const;

  // A long sequence of a bidirectional model, piece by piece, as in MultiHeadAttentionImpl: x [1, C, width]
  // -> same. Not for token shift and cross-attention.
  bool reads_pieces() const;
  void take_in(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
               std::unique_ptr<Cache>& context) const;
  at::Tensor read_piece(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
                        const Cache& context) const;
  // The same of a slice of it.
  bool has_state() const;
  ops::State add_to_state(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
                          const ops::State& before) const;
  at::Tensor read_state(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
                        const ops::State& state) const;

  void redraw(int64_t index);
  void after_step();
  void observe_attention(HeadsObserver observer) { attention_->observe(std::move(observer)); }
  MultiHeadAttention attention() const { return attention_; }

 private:
  // The feed-forward part; inner() is it without its last bias and dropout. `window` is null for a whole
  // batch.
  at::Tensor feed_forward(const at::Tensor& x, const ops::TokenWindow& window) const;
  at::Tensor inner(const at::Tensor& x, const ops::TokenWindow* window) const;
  at::Tensor gated(const at::Tensor& x, const ops::TokenWindow* window) const;  // what `down` reads
  at::Tensor shifted(const at::Tensor& x, const SequenceBatch& batch) const;
  // Streamed tokens [B, width] or [B, T, width]; `last` [B, width] is the token before them, and moves on.
  at::Tensor shifted_next(const at::Tensor& x, at::Tensor& last) const;
  // x + drop(branch(norm(x)) + bias), or norm(x + drop(branch(x) + bias)) with model.norm = post. `bias` may
  // be undefined.
  template <class Branch>
  at::Tensor residual(const at::Tensor& x, const Norm& norm, const at::Tensor& bias,
                      const ops::TokenWindow* window, Branch&& branch) const;

  // The block in evaluation mode around an attention that is given: x [B, T, width] -> same.
  template <class Attend>
  at::Tensor around(const at::Tensor& x, Attend&& attend) const;
  at::Tensor drop(const at::Tensor& x, const ops::TokenWindow& window) const;  // in training mode only
  ops::Dropping dropping(const ops::TokenWindow* window) const;

  bool pre_norm_;
  double dropout_;
  std::string activation_;
  std::vector<int64_t> shifts_;  // none without token shift
  MultiHeadAttention attention_{nullptr}, cross_attention_{nullptr};
  Norm attention_norm_{nullptr}, cross_norm_{nullptr}, ffn_norm_{nullptr};
  torch::nn::Linear up_{nullptr}, down_{nullptr}, gate_{nullptr};  // no gate without model.ffn_gate
};
TORCH_MODULE(Block);

}  // namespace performer::nn
