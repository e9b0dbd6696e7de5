// SPDX-License-Identifier: Apache-2.0
// The attentions that the layers of pytorch-fast-transformers 0.4.0 (layers.h) are built over, each in up to
// three forms: all tokens at once, one token of self-attention with a state, one query of cross-attention
// with a summary of the memory. One module has all its forms, so batch and recurrent use share weights and
// projections. Letters: B batch, L queries, S keys, H heads, D head size, E value size.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "performer/base/fields.h"
#include "performer/references/fast_transformers/attention.h"
#include "performer/references/fast_transformers/masks.h"

namespace performer::references::fast_transformers {

// Options of all kinds; a kind reads its own.
struct InnerAttentionOptions {
  FeatureMapOptions feature_map;  // linear, causal-linear
  double eps = 1e-6;
  double softmax_temp = 0;
  double attention_dropout = 0.1;
  int64_t length_limit = 512;
  int64_t topk = 32;
  int64_t local_context = 0;
  int64_t max_sequence_length = 1024;
  int64_t aft_parameterization = 64;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("eps", self.eps, "linear, causal-linear: added to the denominator");
    visit("softmax_temp", self.softmax_temp,
          "full, exact-topk, local: factor of the scores; 0: 1 / sqrt(head size)");
    visit("attention_dropout", self.attention_dropout,
          "full, exact-topk, local: dropout of the attention matrix in training");
    visit("length_limit", self.length_limit,
          "conditional-full: longest sequence that is attended to in full");
    visit("topk", self.topk, "exact-topk: keys that a query keeps");
    visit("local_context", self.local_context,
          "local: keys around a query's own place that it sees; must be given");
    visit("max_sequence_length", self.max_sequence_length, "aft-full: tokens that have position weights");
    visit("aft_parameterization", self.aft_parameterization, "aft-full: rank of the position weights");
  }
};

// Sizes of the layer around an attention; `layer` names its random draws.
struct AttentionSizes {
  int64_t heads = 1, query_dimensions = 1, value_dimensions = 1, layer = 0;
};

// What one attention keeps of the tokens so far, or of a memory; a kind uses its part. A fresh one stands for
// no tokens.
struct AttentionState {
  LinearState linear;       // linear, causal-linear; aft-simple: average and log-sum [B, H, D]
  at::Tensor keys, values;  // full: [B, H, capacity, D], the first `length` filled; cross: [B, S, H, D]
  at::Tensor key_mask;      // full, cross: bool [B, S]
  int64_t length = 0;
  bool defined() const { return linear.defined() || keys.defined(); }
};

struct InnerInputs {
  at::Tensor query, key, value;  // [B, L, H, D], [B, S, H, D], [B, S, H, E]
  AttentionMask mask;            // [L, S]
  AttentionMask query_lengths;   // [B, L]; no kind of the library looks at it
  AttentionMask key_lengths;     // [B, S]
  // Receives the attention matrix [B, H, L, S] of kinds that have one (full, exact-topk).
  at::Tensor* weights = nullptr;
};

class InnerAttention : public torch::nn::Module {
 public:
  explicit InnerAttention(std::string kind) : kind_(std::move(kind)) {}

  // [B, L, H, E]. Throws UsageError for a mask that the kind cannot follow.
  virtual at::Tensor forward(const InnerInputs& inputs) = 0;
  // One more token of causal self-attention: query, key [B, H, D], value [B, H, E] -> [B, H, E]. Throws
  // UsageError for kinds without this form and when the batch size changes. linear, causal-linear and
  // aft-simple carry gradients, full does not.
  virtual at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          AttentionState& state);
  // The summary of a memory: key [B, S, H, D], value [B, S, H, E], key_lengths [B, S].
  virtual AttentionState summarize(const at::Tensor& key, const at::Tensor& value,
                                   const AttentionMask& key_lengths);
  // query [B, H, D] -> [B, H, E].
  virtual at::Tensor cross_step(const at::Tensor& query, const AttentionState& memory);

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

// Kinds: linear, causal-linear, full, conditional-full, aft-simple, aft-full, local, exact-topk, and what
// register_attention() added. Adding a known name replaces it. A query that sees no key gets NaN from full
// and exact-topk, and from local the sum of the values around it divided by the context, as in the library.
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

// Factories of layers_baselines.cpp.
InnerAttentionPtr make_aft_simple(const AttentionRequest& request);
InnerAttentionPtr make_aft_full(const AttentionRequest& request);
InnerAttentionPtr make_local(const AttentionRequest& request);
InnerAttentionPtr make_exact_topk(const AttentionRequest& request);

}  // namespace performer::references::fast_transformers
