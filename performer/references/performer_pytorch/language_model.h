// SPDX-License-Identifier: Apache-2.0
// The `PerformerLM` of performer-pytorch: tokens in, logits (or encodings) out, over a PerformerStack.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "performer/nn/position_embeddings.h"
#include "performer/references/performer_pytorch/stack.h"

namespace performer::references::performer_pytorch {

struct PerformerLMOptions {
  PerformerLMOptions() { stack.qkv_bias = stack.out_bias = false; }  // as there

  int64_t vocabulary = 0;  // token ids 0 .. vocabulary - 1; must be given
  int64_t max_length = 0;  // longest sequence in tokens; must be given
  // rotary (a fixed sinusoidal table is added to the embedding as well, as in the reference), rotary-only
  // (none is added), axial, learned, or none
  std::string positions = "rotary";
  std::vector<int64_t> axial_shape = {};  // of axial positions; empty: (ceil(max_length / 64), 64)
  double embedding_dropout = 0;
  bool tied_output = false;  // logits = norm(x) E^T without a bias; else a linear layer with one
  bool output = true;        // false: encodings only, as in the encoder of an encoder-decoder
  PerformerStackOptions stack;
};

void validate(const PerformerLMOptions& options);  // throws UsageError naming the option

struct PerformerLMInputs {
  at::Tensor tokens;                            // int64 [B, T]
  std::optional<at::Tensor> mask = {};          // bool [B, T], true keeps
  std::optional<at::Tensor> context = {};       // [B, S, dim], with stack.cross_attend
  std::optional<at::Tensor> context_mask = {};  // bool [B, S]
};

// Embeddings start as N(0, 0.02^2), other weights as LibTorch's defaults. Tables of fixed positions are
// float32 buffers, as in the reference.
class PerformerLMImpl : public torch::nn::Module {
 public:
  explicit PerformerLMImpl(const PerformerLMOptions& options);

  // Logits [B, T, vocabulary]. UsageError for tokens outside the vocabulary, longer sequences than
  // max_length, inputs that the stack refuses, and for a model without an output layer.
  at::Tensor forward(const PerformerLMInputs& inputs);
  at::Tensor encode(const PerformerLMInputs& inputs);  // after the final norm: [B, T, dim]

  // From now on the embedding of another model, which owns it: it is no parameter of this one any more.
  void share_token_embedding(torch::nn::Embedding other);
  torch::nn::Embedding token_embedding() const { return token_embedding_; }

  PerformerStack stack() const { return stack_; }
  const PerformerLMOptions& options() const { return options_; }

 private:
  void check_tokens(const at::Tensor& tokens) const;
  at::Tensor position_rows(int64_t length);  // [length, dim], or undefined
  at::Tensor embed(const at::Tensor& tokens);
  at::Tensor logits(const at::Tensor& hidden);

  PerformerLMOptions options_;
  torch::nn::Embedding token_embedding_{nullptr};
  at::Tensor position_table_, rotary_table_;  // buffers [max_length, dim] and [max_length, dim_head]
  nn::LearnedPositions learned_positions_{nullptr};
  nn::AxialPositions axial_positions_{nullptr};
  PerformerStack stack_{nullptr};
  torch::nn::LayerNorm final_norm_{nullptr};
  torch::nn::Linear output_{nullptr};  // absent when tied or without output
};
TORCH_MODULE(PerformerLM);

}  // namespace performer::references::performer_pytorch
