// SPDX-License-Identifier: Apache-2.0
// Multi-head attention by kernel features with all options of the Keras KernelAttention layer (TensorFlow
// Model Garden 2.19), in two modes: `compatible` computes what that layer computes, its faults included, and
// raises UsageError where it raises; the default computes what was meant. docs/kernel_attention.md lists
// every difference. Sources: Performers (arXiv 2009.14794: exp, relu), linear transformers (2006.16236: elu),
// Chefs' Random Tables (2205.15317: expplus).
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "performer/ops/favor.h"
#include "performer/references/keras/attention.h"
#include "performer/references/keras/kernel_attention_windows.h"

namespace performer::references::keras {

// Names and defaults of the reference, where it has the option.
struct KernelAttentionOptions {
  int64_t query_width = 0;  // last dimension of the queries; required, as are num_heads and key_dim
  int64_t value_width = 0;  // of the values; 0: query_width
  int64_t key_width = 0;    // of the keys; 0: value_width
  int64_t num_heads = 0;
  int64_t key_dim = 0;                // size of a head's queries and keys
  int64_t value_dim = 0;              // size of a head's values; 0: key_dim
  std::vector<int64_t> output_shape;  // last dimensions of the output; none: query_width
  double dropout = 0;                 // of attention outputs, before the output projection
  bool use_bias = true;
  std::string feature_transform = "exp";  // elu, exp, expmod, expplus, identity, relu, square
  int64_t num_random_features = 256;      // 0: no projection, features of the queries and keys themselves
  int64_t seed = 0;
  bool redraw = false;          // compatible: a new projection in every training call; ours: by redraw(index)
  bool is_short_seq = false;    // softmax over keys of phi(q).phi(k)
  int64_t begin_kernel = 0;     // that many first queries use softmax attention and an output projection of
                                // their own
  std::optional<double> scale;  // none: key_dim^(-1/2)
  bool scale_by_length = false;  // times ln(valid keys) / ln 512
  bool use_causal_windowed = false;
  int64_t causal_chunk_length = 1;   // tokens; attention is bidirectional inside a chunk, so 1 for causality
                                     // by token
  int64_t causal_window_length = 3;  // chunks, the own one included; ours: 0 for all
  std::optional<double> causal_window_decay;  // factor for each chunk of distance; ours: 0 to 1
  std::string causal_padding = "none";        // left, right: lengths need not be multiples of the chunk

  bool compatible = false;
  int64_t layer = 0;  // ours: names the projection together with seed, so layers may share a seed
};

// Throws UsageError naming the option for values that are impossible or exclude each other.
void validate(const KernelAttentionOptions& options);

// What is kept between calls that continue a sequence. A fresh one stands for a sequence without tokens.
struct KernelCache {
  references::keras::Cache reference;  // compatible mode

  int64_t chunks = 0;  // seen so far
  int64_t tokens = 0;
  bool closed = false;    // an incomplete last chunk was given (causal_padding right)
  windowed::Sums sums;    // of the last window - 1 chunks, or of all in one
  at::Tensor key, value;  // [B, tokens, H, size] of the latest chunks, where single keys are needed again
  at::Tensor log_weight;  // [B, tokens]
  at::Tensor counts;      // [B, chunks] valid keys of the latest chunks, or of all in one
};

struct KernelAttentionInputs {
  at::Tensor query;                               // [B, T, query_width]
  at::Tensor value;                               // [B, S, value_width]
  std::optional<at::Tensor> key = {};             // [B, S, key_width]; none: value
  std::optional<at::Tensor> attention_mask = {};  // [B, S], 1 keeps: bool or integers, or floats in [0, inf)
                                                  // that weigh keys; compatible: type of the inputs only
  KernelCache* cache = nullptr;                   // windowed only: the call continues this sequence
  std::optional<bool> training = {};              // none: the module's own state
  std::optional<at::Tensor> query_mask = {};  // ours: bool [B, T]; false: zero attention, not in statistics
};

// x [..., in] -> [..., out] by a kernel [in, out] kept in the reference's layout ([width, H, D], [H, E,
// out]).
class HeadDenseImpl : public torch::nn::Module {
 public:
  // `reference_fans`: Glorot limits as Keras computes them for kernels of more than two dimensions.
  HeadDenseImpl(std::vector<int64_t> in, std::vector<int64_t> out, bool bias, bool reference_fans);
  at::Tensor forward(const at::Tensor& x);
  at::Tensor kernel, bias;

 private:
  int64_t in_dims_;
};
TORCH_MODULE(HeadDense);

// Parameters: query, key, value, attention_output and, with begin_kernel, attention_output_softmax, each with
// kernel and bias. Buffer projection: [M, D] in compatible mode, [H, M, D] in ours.
class KernelAttentionImpl : public torch::nn::Module {
 public:
  explicit KernelAttentionImpl(const KernelAttentionOptions& options);

  // -> [B, T, output_shape]. Throws UsageError for inputs that do not fit and options that the mode refuses.
  at::Tensor forward(const KernelAttentionInputs& inputs);

  // Replaces the projection by draw `index`, when options.redraw. In compatible mode the next training call
  // uses that draw, the one after it the following.
  void redraw(int64_t index);
  // Where compatible training calls take draw `index` from, [M, D]; by default redrawn_projection().
  void set_redraw_source(std::function<at::Tensor(int64_t index)> source);

  // expplus, ours: the statistic of these inputs, the mean of |x + y|^2 over scaled queries x and keys y,
  // [H], averaged over examples; and its use from now on instead of each call's own, which windows and caches
  // need since it reaches beyond the present token. A buffer, so saved with the model.
  at::Tensor measure_statistics(const KernelAttentionInputs& inputs);
  void freeze_statistics(const at::Tensor& statistics);

  const KernelAttentionOptions& options() const { return options_; }
  at::Tensor projection() const { return projection_; }  // undefined without random features

 private:
  struct Heads {
    at::Tensor query, key, value;  // [B, T or S, H, size]
  };
  // What attention of our own needs besides heads.
  struct Call {
    const KernelAttentionInputs& inputs;
    at::Tensor log_weight;     // [B, S]
    at::Tensor length_factor;  // [B, 1, 1, 1] of scale_by_length, undefined without
    at::Tensor key_keep;       // bool [B, S]; undefined without a mask or with weights
  };
  // Attention outputs [B, T, H, E]: the first rows by softmax, the others by kernel features.
  struct Parts {
    at::Tensor softmax, kernel;  // undefined when there are none
  };

  Heads project(const KernelAttentionInputs& inputs);
  Parts compatible_attention(const Heads& heads, const KernelAttentionInputs& inputs, bool training);
  void check_compatible_cache(bool training) const;
  void check_inputs(const KernelAttentionInputs& inputs) const;

  Call prepare(const Heads& heads, const KernelAttentionInputs& inputs) const;
  Parts attention(const Heads& heads, const Call& call) const;
  at::Tensor long_attention(const Heads& heads, const Call& call) const;
  at::Tensor short_attention(const Heads& heads, const Call& call) const;
  Parts windowed_attention(const Heads& heads, const Call& call) const;
  ops::FeatureMap feature_map(const Heads& scaled, const Call* call) const;
  at::Tensor moment(const Heads& scaled, const Call& call) const;
  at::Tensor draw(int64_t index) const;

  KernelAttentionOptions options_;
  double scale_;
  std::vector<int64_t> output_shape_;
  HeadDense query_{nullptr}, key_{nullptr}, value_{nullptr}, output_{nullptr}, output_softmax_{nullptr};
  at::Tensor projection_;
  at::Tensor draws_;       // compatible with redraw: int64, number of the next draw
  at::Tensor statistics_;  // ours with expplus: [H], negative while not frozen
  std::function<at::Tensor(int64_t)> redraw_source_;
};
TORCH_MODULE(KernelAttention);

// Weights of the reference by its names: the last two components of "w.query.kernel" or
// "layer/query/kernel:0", and "W" [M, D] for the projection, which all heads then share. Layouts are the
// same. Throws InputError as import_weights() does.
void import_kernel_attention(KernelAttention& layer, const std::map<std::string, at::Tensor>& weights);

}  // namespace performer::references::keras
