// SPDX-License-Identifier: Apache-2.0
// Multi-head attention over any attention kind.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include <functional>
#include <memory>
#include <optional>

#include "performer/nn/config.h"
#include "performer/nn/linear_attention.h"
#include "performer/nn/sequence_batch.h"
#include "performer/ops/favor.h"

namespace performer::nn {

// What a layer keeps between tokens of a streamed sequence: FAVOR kinds a constant-size state, exact
// attention its keys and values, identity nothing. A fresh one stands for a sequence without tokens.
struct LayerState {
  ops::State favor;
  at::Tensor keys, values;  // [B, H, capacity, D], of which the first `length` tokens are filled
  int64_t length = 0;
};

// Called with what attention sees in a forward pass: queries and keys [B, T, H, D] (normalised and turned by
// their positions; undefined for kind identity) and values.
using HeadsObserver =
    std::function<void(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value)>;

// Queries, keys and values of each head, attention of one of the kinds of attention_kinds()
// (docs/mechanisms.md), and an output projection. Weights are Xavier-uniform, biases (an option) zero, as in
// protein_lm.
class MultiHeadAttentionImpl : public torch::nn::Module {
 public:
  // `layer` names the random projections, together with attention.seed.
  MultiHeadAttentionImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t layer);

  // x [B, T, width] -> [B, T, width]; masks and segments from `batch`. Masked keys are not seen; masked rows
  // attend to nothing and give out(0).
  at::Tensor forward(const at::Tensor& x, const SequenceBatch& batch);
  // One token: x [B, width], positions [B] int64 -> [B, width]; `state` is updated. Causal models only.
  // `rotary` as in SequenceBatch, of positions [B, 1].
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, LayerState& state,
                  const at::Tensor& rotary = {});
  // Consecutive tokens of a batch, x [B, C, width] -> [B, C, width], with the masks and segments of these
  // tokens alone in `batch`. `initial` is the state that the chunk before left, undefined when no sequence
  // goes on from there: a state for each row, or when packed one, of the first segment. `final`, unless null,
  // becomes the state after the chunk, of each row or of the last segment. Causal models of FAVOR kinds only.
  // Differentiable in x and in kv and key_sum of `initial`.
  at::Tensor forward_chunk(const at::Tensor& x, const SequenceBatch& batch, const ops::State& initial,
                           ops::State* final);

  // Replaces the random projection in place by draw number `index`; does nothing for kinds without one.
  void redraw(int64_t index);
  // Running moments of maps that have them take in the last training batch; call after an optimizer step.
  void update_statistics();
  void observe(HeadsObserver observer) { observer_ = std::move(observer); }
  const AttentionConfig& config() const { return attention_; }

 private:
  struct Heads {
    at::Tensor query, key, value;  // [B, T, H, D]
  };
  Heads project(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary);
  at::Tensor attend(const Heads& heads, const SequenceBatch& batch);  // [B, T, H, D]

  ModelConfig model_;
  AttentionConfig attention_;
  int64_t head_size_;
  torch::nn::Linear query_{nullptr}, key_{nullptr}, value_{nullptr}, out_{nullptr};
  at::Tensor query_gain_, key_gain_;  // [H, D], undefined without qk_norm
  at::Tensor temperature_;            // [H], undefined without learned_temperature
  HeadsObserver observer_;
  LinearAttention linear_{nullptr};  // favor-* kinds and presets
};
TORCH_MODULE(MultiHeadAttention);

}  // namespace performer::nn
