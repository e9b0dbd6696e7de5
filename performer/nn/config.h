// SPDX-License-Identifier: Apache-2.0
// What a Performer is made of: the [model] and [attention] sections of a configuration.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "performer/base/fields.h"

namespace performer {

// What attention.kind may be: favor-softmax and favor-MAP for every other own map
// (performer/ops/feature_maps.h), the presets of the reference systems (performer/compat/presets.h), exact,
// and identity.
std::vector<std::string> attention_kinds();

struct AttentionConfig {
  std::string kind = "favor-relu";
  int64_t features = 256;
  std::string projection = "auto";
  std::string row_norm = "chi";
  bool shared_projection = false;
  double epsilon = -1;
  int64_t redraw_every = 1000;
  int64_t seed = 0;
  bool qk_norm = false;
  bool learned_temperature = false;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit(
        "kind", self.kind,
        "favor-softmax and other favor-* maps, exact, identity (attention replaced by its values: the upper "
        "bound of speed), or a preset that reproduces a reference system; docs/mechanisms.md describes each",
        attention_kinds());
    visit("features", self.features, "random features M of a projected map");
    visit("projection", self.projection,
          "orthogonal, iid, hadamard, givens, simplex, none (features are the inputs themselves), or auto: "
          "orthogonal, and none for element-wise maps as in the released protein models",
          Choices{"auto", "orthogonal", "iid", "hadamard", "givens", "simplex", "none"});
    visit(
        "row_norm", self.row_norm,
        "lengths of the projection's rows: chi (of a Gaussian vector) or sqrt-d (regularised kernel, SMREG)",
        Choices{"chi", "sqrt-d"});
    visit("shared_projection", self.shared_projection,
          "one projection for all heads of a layer, not one for each");
    visit("epsilon", self.epsilon,
          "added to element-wise features; -1: 1e-3 for favor-relu, else 0. Maps of softmax need none");
    visit("redraw_every", self.redraw_every,
          "optimizer steps between redraws of the projection; 1: in each, 0: never");
    visit("seed", self.seed, "names the projections, together with layer, head and redraw index");
    visit("qk_norm", self.qk_norm,
          "normalise queries and keys of each head to unit root mean square, with learned gains");
    visit("learned_temperature", self.learned_temperature, "learned factor on the queries of each head");
  }
};

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
  std::string positions = "rotary";
  std::string activation = "gelu-tanh";
  double dropout = 0.1;
  bool attention_bias = false;
  bool tied_output = false;
  bool regression_head = false;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("objective", self.objective, "causal (next residue) or masked (hidden residues)",
          Choices{"causal", "masked"});
    visit("layers", self.layers, "Transformer blocks");
    visit("width", self.width, "size of the residual stream");
    visit("heads", self.heads, "attention heads");
    visit("head_size", self.head_size, "size of a head; 0: width / heads");
    visit("ffn", self.ffn, "inner size of the feed-forward part");
    visit("max_length", self.max_length,
          "longest sequence that learned positions cover; other positions have no limit");
    visit("norm", self.norm, "pre or post: where the layer norms stand", Choices{"pre", "post"});
    visit("norm_epsilon", self.norm_epsilon, "added to the variance in layer norms");
    visit("positions", self.positions, "rotary, sinusoidal, learned, or none",
          Choices{"rotary", "sinusoidal", "learned", "none"});
    visit("activation", self.activation, "gelu-tanh, gelu or relu", Choices{"gelu-tanh", "gelu", "relu"});
    visit("dropout", self.dropout,
          "after the embedding, the attention output and twice in the feed-forward part");
    visit("attention_bias", self.attention_bias, "biases in the four projections of attention");
    visit("tied_output", self.tied_output, "output layer shares the embedding's weights");
    visit("regression_head", self.regression_head,
          "a number for each residue beside the logits, for users of the library");
  }
};

// Throws UsageError naming the key for impossible sizes (width not divisible by heads, 0 features, odd head
// size with rotary positions, dropout outside [0, 1) ...) and for options that contradict each other.
void validate(const ModelConfig& model, const AttentionConfig& attention);

// What the defaults -1, 0 and "auto" stand for.
int64_t head_size(const ModelConfig& model);       // model.head_size, or width / heads
bool is_favor(const AttentionConfig& attention);   // one of our own maps
bool is_preset(const AttentionConfig& attention);  // the behaviour of a reference system
std::string map_name(
    const AttentionConfig& attention);  // of a favor-* kind, as ops::FeatureMapOptions has it

}  // namespace performer
