// SPDX-License-Identifier: Apache-2.0
// Transformer encoders and decoders of pytorch-fast-transformers 0.4.0 over any attention of
// layers_attention.h: post-norm layers, biased projections, an optional final norm; parameter
// names are that library's, so its weights import by name. Each model has its recurrent form as methods of
// its own (step), on the same weights and projections.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "performer/base/fields.h"
#include "performer/references/fast_transformers/layers_attention.h"
#include "performer/references/fast_transformers/masks.h"

namespace performer::references::fast_transformers {

// What an observer is told of each attention, as the library's QKVEvent and AttentionEvent: tensors are those
// of the computation, gradients included. Batch: query [B, L, H, D], key [B, S, H, D], value [B, S, H, E],
// output [B, L, H, E] before the output projection. Recurrent: the same without L and S; key and value are
// undefined in cross-attention.
struct AttentionEvent {
  std::string layer;  // the attention's name in its model, such as "layers.0.attention"
  bool recurrent = false;
  at::Tensor query, key, value;
  at::Tensor
      weights;  // attention matrix [B, H, L, S] of full and exact-topk, batch form only; else undefined
  at::Tensor output;
};
using AttentionObserver = std::function<void(const AttentionEvent&)>;

// Queries, keys and values of each head, an attention, and an output projection, all with biases.
class AttentionLayerImpl : public torch::nn::Module {
 public:
  // d_keys and d_values are sizes of a head, 0: d_model / n_heads; d_model_keys is the width of keys' and
  // values' inputs, 0: d_model. Throws UsageError for sizes that cannot be.
  AttentionLayerImpl(InnerAttentionPtr attention, int64_t d_model, int64_t n_heads, int64_t d_keys = 0,
                     int64_t d_values = 0, int64_t d_model_keys = 0);
  // The same projections, shared, around another attention.
  AttentionLayerImpl(const AttentionLayerImpl& other, InnerAttentionPtr attention);

  // queries [B, L, d_model], keys and values [B, S, d_model_keys] -> [B, L, d_model].
  at::Tensor forward(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                     const AttentionMask& mask, const AttentionMask& query_lengths,
                     const AttentionMask& key_lengths);
  // One more token of self-attention: x [B, d_model] -> [B, d_model].
  at::Tensor step(const at::Tensor& x, AttentionState& state);
  // One query x [B, d_model] to a memory [B, S, d_model_keys]. The memory is read, and its keys and values
  // projected, only when `state` is a fresh one.
  at::Tensor cross_step(const at::Tensor& x, const at::Tensor& memory, const AttentionMask& memory_lengths,
                        AttentionState& state);

  // Calls `observer` in each pass of this layer, under `name`; an empty observer ends that.
  void observe(std::string name, AttentionObserver observer);
  const InnerAttentionPtr& attention() const { return attention_; }

 private:
  at::Tensor heads(const at::Tensor& flat) const { return flat.unflatten(-1, {n_heads_, -1}); }

  int64_t n_heads_;
  InnerAttentionPtr attention_;
  torch::nn::Linear query_{nullptr}, key_{nullptr}, value_{nullptr}, out_{nullptr};
  std::string name_;
  AttentionObserver observer_;
};
TORCH_MODULE(AttentionLayer);

struct LayerOptions {
  int64_t d_model = 0;
  int64_t feed_forward_dimensions = 0;  // 0: 4 d_model
  double dropout = 0.1;
  std::string activation = "relu";  // relu or gelu (exact)
};

// What encoder and decoder layers have beside attentions; copies share the modules.
struct LayerParts {
  double dropout = 0;
  bool gelu = false;
  torch::nn::Linear linear1{nullptr}, linear2{nullptr};
  std::vector<torch::nn::LayerNorm> norms;
};
// Throws UsageError for impossible options.
LayerParts make_layer_parts(const LayerOptions& options, int64_t norms);

class PostNormLayer : public torch::nn::Module {
 public:
  explicit PostNormLayer(LayerParts parts);
  const LayerParts& parts() const { return parts_; }

 protected:
  // norm_i(x + dropout(branch)).
  at::Tensor add_and_norm(size_t norm, const at::Tensor& x, const at::Tensor& branch);
  // norm_last(x + dropout(linear2(dropout(activation(linear1(x)))))).
  at::Tensor feed_forward(const at::Tensor& x);

 private:
  at::Tensor drop(const at::Tensor& x) const;

  LayerParts parts_;
};

// Self-attention and feed-forward part: norm2(y + ff(y)), y = norm1(x + attention(x)).
class TransformerEncoderLayerImpl : public PostNormLayer {
 public:
  TransformerEncoderLayerImpl(AttentionLayer attention, const LayerOptions& options);
  TransformerEncoderLayerImpl(AttentionLayer attention, LayerParts parts);  // two norms

  at::Tensor forward(const at::Tensor& x, const AttentionMask& mask,
                     const AttentionMask& lengths);             // [B, L, d_model]
  at::Tensor step(const at::Tensor& x, AttentionState& state);  // [B, d_model]
  AttentionLayer attention() const { return attention_; }

 private:
  AttentionLayer attention_{nullptr};
};
TORCH_MODULE(TransformerEncoderLayer);

struct DecoderLayerState {
  AttentionState self, cross;
};

// Self-attention, attention to a memory, feed-forward part, each followed by a norm.
class TransformerDecoderLayerImpl : public PostNormLayer {
 public:
  TransformerDecoderLayerImpl(AttentionLayer self_attention, AttentionLayer cross_attention,
                              const LayerOptions& options);
  TransformerDecoderLayerImpl(AttentionLayer self_attention, AttentionLayer cross_attention,
                              LayerParts parts);  // three

  at::Tensor forward(const at::Tensor& x, const at::Tensor& memory, const AttentionMask& x_mask,
                     const AttentionMask& x_lengths, const AttentionMask& memory_mask,
                     const AttentionMask& memory_lengths);
  at::Tensor step(const at::Tensor& x, const at::Tensor& memory, const AttentionMask& memory_lengths,
                  DecoderLayerState& state);
  AttentionLayer self_attention() const { return self_; }
  AttentionLayer cross_attention() const { return cross_; }

 private:
  AttentionLayer self_{nullptr}, cross_{nullptr};
};
TORCH_MODULE(TransformerDecoderLayer);

using OptionalMask = std::optional<AttentionMask>;  // nothing: all ones

class TransformerEncoderImpl : public torch::nn::Module {
 public:
  // `norm` is applied last unless null.
  explicit TransformerEncoderImpl(std::vector<TransformerEncoderLayer> layers,
                                  torch::nn::LayerNorm norm = nullptr);

  // x [B, L, d_model]; mask [L, L], lengths [B, L].
  at::Tensor forward(const at::Tensor& x, const OptionalMask& mask = {}, const OptionalMask& lengths = {});
  // One more token of every sequence: x [B, d_model] -> [B, d_model], as forward() with a triangular mask
  // gives it. `state` starts empty.
  at::Tensor step(const at::Tensor& x, std::vector<AttentionState>& state);

  void observe(const AttentionObserver& observer);  // of all attentions
  const std::vector<TransformerEncoderLayer>& layers() const { return layers_; }
  const torch::nn::LayerNorm& norm() const { return norm_; }

 private:
  std::vector<TransformerEncoderLayer> layers_;
  torch::nn::LayerNorm norm_{nullptr};
};
TORCH_MODULE(TransformerEncoder);

class TransformerDecoderImpl : public torch::nn::Module {
 public:
  explicit TransformerDecoderImpl(std::vector<TransformerDecoderLayer> layers,
                                  torch::nn::LayerNorm norm = nullptr);

  // x [B, L, d_model], memory [B, S, d_model]; x_mask [L, L], x_lengths [B, L], memory_mask [L, S],
  // memory_lengths [B, S].
  at::Tensor forward(const at::Tensor& x, const at::Tensor& memory, const OptionalMask& x_mask = {},
                     const OptionalMask& x_lengths = {}, const OptionalMask& memory_mask = {},
                     const OptionalMask& memory_lengths = {});
  // One more token: x [B, d_model] -> [B, d_model]. The memory is read in the first step of a sequence only,
  // for a summary that `state` keeps; later steps may pass anything.
  at::Tensor step(const at::Tensor& x, const at::Tensor& memory, std::vector<DecoderLayerState>& state,
                  const OptionalMask& memory_lengths = {});

  void observe(const AttentionObserver& observer);
  const std::vector<TransformerDecoderLayer>& layers() const { return layers_; }
  const torch::nn::LayerNorm& norm() const { return norm_; }

 private:
  std::vector<TransformerDecoderLayer> layers_;
  torch::nn::LayerNorm norm_{nullptr};
};
TORCH_MODULE(TransformerDecoder);

// Everything a model is built from, with the library's defaults. d_model is value_dimensions * n_heads.
struct TransformerOptions {
  int64_t n_layers = 4;
  int64_t n_heads = 4;
  int64_t query_dimensions = 64;
  int64_t value_dimensions = 64;
  int64_t feed_forward_dimensions = 1024;
  double dropout = 0.1;
  std::string activation = "relu";
  bool final_normalization = true;
  std::string attention_type = "full";        // of encoders, and of decoders' self-attention
  std::string cross_attention_type = "full";  // of decoders
  InnerAttentionOptions attention, cross_attention;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("n_layers", self.n_layers, "layers");
    visit("n_heads", self.n_heads, "attention heads");
    visit("query_dimensions", self.query_dimensions, "size of a query or key of one head");
    visit("value_dimensions", self.value_dimensions,
          "size of a value of one head; the model is n_heads times as wide");
    visit("feed_forward_dimensions", self.feed_forward_dimensions, "inner size of the feed-forward part");
    visit("dropout", self.dropout, "after each attention and twice in the feed-forward part");
    visit("activation", self.activation, "of the feed-forward part: relu or gelu", Choices{"relu", "gelu"});
    visit("final_normalization", self.final_normalization, "a norm after the last layer");
    visit("attention_type", self.attention_type,
          "kind of self-attention, or a composition such as conditional-full:linear");
    visit("cross_attention_type", self.cross_attention_type, "kind of a decoder's attention to the memory");
  }
};

// Throws UsageError naming the option for unknown kinds and impossible sizes. Layers name their random draws
// 0, 1, ...; cross-attentions count on from n_layers.
TransformerEncoder make_transformer_encoder(const TransformerOptions& options);
TransformerDecoder make_transformer_decoder(const TransformerOptions& options);

// The model with attention of another kind on the same parameters, which are shared, not copied: train with
// one, run with the other. Random projections are shared as well where both kinds have one
// (fast-transformers' make_mirror shares parameters only, so that its two forms use different projections).
// `options` must describe the model but for the kinds.
TransformerEncoder mirror(const TransformerEncoder& model, const TransformerOptions& options);
TransformerDecoder mirror(const TransformerDecoder& model, const TransformerOptions& options);

}  // namespace performer::references::fast_transformers
