// SPDX-License-Identifier: Apache-2.0
// Attention kinds that the layers of transformer_layers.h are built over, each in up to three forms: all
// tokens at once, one token of self-attention with a state, one query of cross-attention with a summary of
// the memory. One module has all its forms, so batch and recurrent use share weights and projections. After
// pytorch-fast-transformers 0.4.0, whose kinds keep their numbers; `favor` is our own operator. Letters: B
// batch, L queries, S keys, H heads, D head size, E value size.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "performer/base/fields.h"
#include "performer/ops/favor.h"
#include "performer/references/fast_transformers/attention.h"
#include "performer/references/fast_transformers/masks.h"

namespace performer::references::fast_transformers {

// Options of all kinds; a kind reads its own.
struct InnerAttentionOptions {
  references::fast_transformers::FeatureMapOptions feature_map;  // linear, causal-linear
  double eps = 1e-6;
  double softmax_temp = 0;
  double attention_dropout = 0.1;
  int64_t length_limit = 512;
  int64_t topk = 32;
  int64_t local_context = 0;
  bool compatible = false;
  int64_t max_sequence_length = 1024;
  int64_t aft_parameterization = 64;
  std::string favor_family = "exponential";
  int64_t favor_features = 256;
  std::string favor_projection = "orthogonal";
  std::string favor_row_norm = "chi";
  double favor_epsilon = 0;
  int64_t favor_seed = 0;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("eps", self.eps, "linear, causal-linear: added to the denominator");
    visit("softmax_temp", self.softmax_temp,
          "full, exact-topk, local, favor (exponential): factor of the scores; 0: 1 / sqrt(head size)");
    visit("attention_dropout", self.attention_dropout,
          "full, exact-topk, local: dropout of the attention matrix in training");
    visit("length_limit", self.length_limit,
          "conditional-full: longest sequence that is attended to in full");
    visit("topk", self.topk, "exact-topk: keys that a query keeps");
    visit("local_context", self.local_context,
          "local: keys around a query's own place that it sees; must be given");
    visit(
        "compatible", self.compatible,
        "full, exact-topk, local: what fast-transformers gives for a query that sees no key (NaN; local: the "
        "sum of the values around it by the context) instead of 0");
    visit("max_sequence_length", self.max_sequence_length, "aft-full: tokens that have position weights");
    visit("aft_parameterization", self.aft_parameterization, "aft-full: rank of the position weights");
    visit("favor_family", self.favor_family, "favor: exponential, or an element-wise function such as relu");
    visit("favor_features", self.favor_features, "favor: random features of a head");
    visit("favor_projection", self.favor_projection,
          "favor: orthogonal (Haar), iid, or none (element-wise only)", Choices{"orthogonal", "iid", "none"});
    visit("favor_row_norm", self.favor_row_norm, "favor: lengths of the projection's rows",
          Choices{"chi", "sqrt-d"});
    visit("favor_epsilon", self.favor_epsilon, "favor: added to element-wise features");
    visit("favor_seed", self.favor_seed, "favor: names the projections, together with the layer");
  }
};

// Sizes of the layer around an attention; `layer` names its random draws.
struct AttentionSizes {
  int64_t heads = 1, query_dimensions = 1, value_dimensions = 1, layer = 0;
};

// What one attention keeps of the tokens so far, or of a memory; a kind uses its part. A fresh one stands for
// no tokens.
struct AttentionState {
  references::fast_transformers::LinearState
      linear;  // linear, causal-linear; aft-simple: average and log-sum [B, H, D]
  ops::State favor;
  at::Tensor keys, values;  // full: [B, H, capacity, D], the first `length` filled; cross: [B, S, H, D]
  at::Tensor key_mask;      // full, cross: bool [B, S]
  int64_t length = 0;
  bool defined() const { return linear.defined() || favor.defined() || keys.defined(); }
};

struct InnerInputs {
  at::Tensor query, key, value;  // [B, L, H, D], [B, S, H, D], [B, S, H, E]
  AttentionMask mask;            // [L, S]
  AttentionMask query_lengths;   // [B, L]; only favor looks at it: masked rows are 0
  AttentionMask key_lengths;     // [B, S]
  at::Tensor* weights =
      nullptr;  // receives the attention matrix [B, H, L, S] of kinds that have one (full, exact-topk)
};

class InnerAttention : public torch::nn::Module {
 public:
  explicit InnerAttention(std::string kind) : kind_(std::move(kind)) {}

  // [B, L, H, E]. Throws UsageError for a mask that the kind cannot follow.
  virtual at::Tensor forward(const InnerInputs& inputs) = 0;
  // One more token of causal self-attention: query, key [B, H, D], value [B, H, E] -> [B, H, E]. Throws
  // UsageError for kinds without this form and when the batch size changes. linear, causal-linear and
  // aft-simple carry gradients, favor and full do not.
  virtual at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          AttentionState& state);
  // The summary of a memory: key [B, S, H, D], value [B, S, H, E], key_lengths [B, S].
  virtual AttentionState summarize(const at::Tensor& key, const at::Tensor& value,
                                   const AttentionMask& key_lengths);
  // query [B, H, D] -> [B, H, E].
  virtual at::Tensor cross_step(const at::Tensor& query, const AttentionState& memory);

  // Draws anew where draws are named by an index (favor); feature maps have a schedule of their own.
  virtual void redraw(int64_t /*index*/) {}
  // The module that owns the random projection, null without one: a mirror shares it.
  virtual std::shared_ptr<torch::nn::Module> randomness() const { return nullptr; }
  const std::string& kind() const { return kind_; }

 private:
  std::string kind_;
};
using InnerAttentionPtr = std::shared_ptr<InnerAttention>;

// Makes a kind from its options; `decorated` are the attentions right of the colon of a composition, and
// `shared` a module from randomness() to use instead of drawing, or null.
struct AttentionRequest {
  const InnerAttentionOptions& options;
  AttentionSizes sizes;
  std::vector<InnerAttentionPtr> decorated = {};
  std::shared_ptr<torch::nn::Module> shared = nullptr;
};
using AttentionFactory = std::function<InnerAttentionPtr(const AttentionRequest&)>;

// Kinds: linear, causal-linear, full, conditional-full, favor, aft-simple, aft-full, local, exact-topk, and
// what register_attention() added. Adding a known name replaces it.
std::vector<std::string> attention_kinds();
void register_attention(const std::string& kind, AttentionFactory factory);

// An attention of `type`: a kind, or a composition "OUTER:INNER" (INNER may be several kinds separated by
// commas), such as "conditional-full:linear". Throws UsageError naming the known kinds, and the nearest, for
// an unknown one.
InnerAttentionPtr make_attention(const std::string& type, const InnerAttentionOptions& options,
                                 const AttentionSizes& sizes,
                                 std::shared_ptr<torch::nn::Module> shared = nullptr);

// The factor of the scores: options.softmax_temp or 1 / sqrt(query_dimensions).
double softmax_temperature(const InnerAttentionOptions& options, const AttentionSizes& sizes);

// Which keys each query sees, bool [B or 1, 1, L or 1, S]; undefined when all see all. Throws UsageError when
// the masks do not have the shapes of the inputs.
at::Tensor visible_keys(const InnerInputs& inputs);

// Factories of transformer_layers_baselines.cpp.
InnerAttentionPtr make_aft_simple(const AttentionRequest& request);
InnerAttentionPtr make_aft_full(const AttentionRequest& request);
InnerAttentionPtr make_local(const AttentionRequest& request);
InnerAttentionPtr make_exact_topk(const AttentionRequest& request);

}  // namespace performer::references::fast_transformers
