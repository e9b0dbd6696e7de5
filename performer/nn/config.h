// SPDX-License-Identifier: Apache-2.0
// What a Performer is made of: the [model] and [attention] sections of a configuration.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "performer/base/fields.h"

namespace performer {

// The section [attention]: the kind, what the layer around it does, and the kind's own options
// (performer/nn/attention/kind.h), which stand beside the other keys: attention.features, for example.
struct AttentionConfig {
  std::string kind = "favor-relu";
  int64_t local_heads = 0;
  int64_t local_window = 128;
  int64_t begin_kernel = 0;
  int64_t redraw_every = 1000;
  int64_t seed = 0;
  bool qk_norm = false;
  bool learned_temperature = false;
  // Options of the kind that are not at their defaults, by name.
  std::map<std::string, FieldValue> options = {};

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("kind", self.kind,
          "what attention computes: favor-relu, favor-softmax, exact, local, identity or another kind of "
          "`performer info --kinds`; docs/mechanisms.md describes each");
    visit("local_heads", self.local_heads,
          "the last heads that use exact attention within windows (kind local) beside the others");
    visit("local_window", self.local_window,
          "tokens of a window of the local heads; a query sees its own window and the neighbouring ones");
    visit("begin_kernel", self.begin_kernel,
          "tokens at the beginning of a sequence whose queries use exact attention; later ones use the kind");
    visit("redraw_every", self.redraw_every,
          "optimizer steps between redraws of random projections; 1: in each, 0: never");
    visit("seed", self.seed, "names the projections, together with layer, head and redraw index");
    visit("qk_norm", self.qk_norm,
          "normalise queries and keys of each head to unit root mean square, with learned gains");
    visit("learned_temperature", self.learned_temperature, "learned factor on the queries of each head");
  }
  // Sets an option of the kind: set("features", 64).
  template <class T>
  AttentionConfig& set(const std::string& name, const T& value) {
    if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, double>)
      options[name] = value;
    else if constexpr (std::is_integral_v<T>)
      options[name] = static_cast<int64_t>(value);
    else
      options[name] = std::string(value);
    return *this;
  }
};

// The keys of [attention] with their present values: the common ones and those of the chosen kind.
std::vector<FieldInfo> list_fields(const std::string& section, const AttentionConfig& config);
// Sets a key. A new kind drops the options that it does not have. Throws UsageError with the nearest known
// name for an unknown key, kind or choice.
void set_field(const std::string& section, AttentionConfig& config, const std::string& name,
               const std::string& text);
// Throws UsageError for options that the kind does not have, of another type or outside of their choices.
void check_options(const AttentionConfig& config);

struct ModelConfig {
  std::string objective = "causal";
  int64_t layers = 4;
  int64_t width = 128;
  int64_t heads = 4;
  int64_t head_size = 0;
  int64_t ffn = 512;
  int64_t max_length = 8192;
  std::string norm = "pre";
  double norm_epsilon = 1e-6;
  std::string norm_type = "layer";
  bool embedding_norm = false;
  bool final_norm = true;
  std::string positions = "rotary";
  std::string axial_axes = "64";
  bool added_positions = false;
  double rotary_base = 10000;
  bool rotary_stored = false;
  double embedding_scale = 1;
  bool token_dropout = false;
  std::string activation = "gelu-tanh";
  bool ffn_gate = false;
  bool ffn_bias = true;
  double dropout = 0.1;
  int64_t kv_heads = 0;
  bool attention_bias = false;
  std::string output_head = "linear";
  double output_scale = 0;
  bool tied_output = false;
  bool regression_head = false;
  bool reversible = false;
  bool token_shift = false;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("objective", self.objective, "causal (next token) or masked (hidden tokens)",
          Choices{"causal", "masked"});
    visit("layers", self.layers, "Transformer blocks");
    visit("width", self.width, "size of the residual stream");
    visit("heads", self.heads, "attention heads");
    visit("head_size", self.head_size, "size of a head; 0: width / heads");
    visit("ffn", self.ffn, "inner size of the feed-forward part");
    visit("max_length", self.max_length,
          "longest sequence that learned, added and axial positions cover; other positions have no limit");
    visit("norm", self.norm, "pre or post: where the layer norms stand", Choices{"pre", "post"});
    visit("norm_epsilon", self.norm_epsilon, "added to the variance in layer norms");
    visit("norm_type", self.norm_type, "layer (mean and variance) or rms (root mean square, without bias)",
          Choices{"layer", "rms"});
    visit("embedding_norm", self.embedding_norm, "a norm of the sum of embedding and positions, as in BERT");
    visit("final_norm", self.final_norm, "a norm after the last block");
    visit("positions", self.positions,
          "rotary, sinusoidal, learned, axial (learned, as a sum of smaller tables), or none",
          Choices{"rotary", "sinusoidal", "learned", "axial", "none"});
    visit("axial_axes", self.axial_axes,
          "axial positions: sizes of the axes behind the first, which is as long as max_length needs; 64x3 "
          "for images of width 64 with three channels");
    visit("added_positions", self.added_positions,
          "rotary positions: a learned table is added to the embeddings as well, as in performer-pytorch");
    visit("rotary_base", self.rotary_base,
          "rotary positions: pair i of a head turns by base^(-2i / head size)");
    visit("rotary_stored", self.rotary_stored,
          "rotary positions: the rates are numbers of the weights file, which imported models may need");
    visit("embedding_scale", self.embedding_scale, "factor on the embeddings of tokens");
    visit("token_dropout", self.token_dropout,
          "masked models: MASK has no embedding, and the others are scaled by (1 - 0.12) / (1 - share of "
          "MASK), "
          "as in ESM-2");
    visit("activation", self.activation, "gelu-tanh, gelu, relu or silu",
          Choices{"gelu-tanh", "gelu", "relu", "silu"});
    visit("ffn_gate", self.ffn_gate,
          "a gated feed-forward part, down(activation(gate x) * up x); SwiGLU with activation silu");
    visit("ffn_bias", self.ffn_bias, "biases in the feed-forward part");
    visit("dropout", self.dropout,
          "after the embedding, the attention output and twice in the feed-forward part");
    visit(
        "kv_heads", self.kv_heads,
        "heads of keys and values, each shared by as many query heads (grouped-query attention); 0: as many "
        "as heads");
    visit("attention_bias", self.attention_bias, "biases in the four projections of attention");
    visit(
        "output_head", self.output_head,
        "linear, or transform: a dense layer, the activation and a norm before the output layer, as in BERT",
        Choices{"linear", "transform"});
    visit("output_scale", self.output_scale,
          "factor on what the output layer reads; 0: 1 / sqrt(width) where it is tied, else 1");
    visit("tied_output", self.tied_output, "output layer shares the embedding's weights");
    visit("regression_head", self.regression_head,
          "a number for each token beside the logits, for users of the library");
    visit("reversible", self.reversible,
          "reversible blocks: activations are computed again in the backward pass, so that memory does not "
          "grow with the number of layers (needs model.norm = pre)");
    visit("token_shift", self.token_shift,
          "half of the features that attention and feed-forward parts read come from the previous token "
          "(masked models: a third each from both neighbours)");
  }
};

// Throws UsageError naming the key for impossible sizes (width not divisible by heads, 0 features, odd head
// size with rotary positions, dropout outside [0, 1) ...) and for options that contradict each other.
void validate(const ModelConfig& model, const AttentionConfig& attention);

int64_t head_size(const ModelConfig& model);  // model.head_size, or width / heads
int64_t kv_heads(const ModelConfig& model);   // model.kv_heads, or heads
// Whether positions end at model.max_length (learned, axial and added ones do).
bool limits_length(const ModelConfig& model);
// Far above anything trained, and low enough that no product of two sizes overflows.
inline constexpr int64_t kLargestSize = int64_t{1} << 24;

}  // namespace performer
