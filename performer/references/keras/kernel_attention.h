// SPDX-License-Identifier: Apache-2.0
// The Keras KernelAttention layer (TensorFlow Model Garden 2.19): multi-head attention by kernel features
// with all its options. It computes what that layer computes, its faults included, and raises UsageError
// where it raises; docs/kernel_attention.md lists the faults and what of the core does what was meant.
// Sources: Performers (arXiv 2009.14794: exp, relu), linear transformers (2006.16236: elu), Chefs' Random
// Tables (2205.15317: expplus).
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "performer/references/keras/attention.h"

namespace performer::references::keras {

// Names and defaults are the layer's, where it has the option.
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
  bool redraw = false;           // a new projection in every training call
  bool is_short_seq = false;     // softmax over keys of phi(q).phi(k)
  int64_t begin_kernel = 0;      // that many first queries use softmax attention and an output projection of
                                 // their own
  std::optional<double> scale;   // none: key_dim^(-1/2)
  bool scale_by_length = false;  // times ln(valid keys) / ln 512
  bool use_causal_windowed = false;
  int64_t causal_chunk_length = 1;   // tokens; attention is bidirectional inside a chunk, so 1 for causality
                                     // by token
  int64_t causal_window_length = 3;  // chunks, the own one included
  std::optional<double> causal_window_decay;  // factor for each chunk of distance
  std::string causal_padding = "none";        // left, right: lengths need not be multiples of the chunk
};

// Throws UsageError naming the option for values that are impossible or exclude each other.
void validate(const KernelAttentionOptions& options);

struct KernelAttentionInputs {
  at::Tensor query;                               // [B, T, query_width]
  at::Tensor value;                               // [B, S, value_width]
  std::optional<at::Tensor> key = {};             // [B, S, key_width]; none: value
  std::optional<at::Tensor> attention_mask = {};  // [B, S] in the type of the inputs, 1 keeps
  Cache* cache = nullptr;                         // windowed only: the call continues this sequence
  std::optional<bool> training = {};              // none: the module's own state
};

// x [..., in] -> [..., out] by a kernel [in, out] kept in the layer's layout ([width, H, D], [H, E, out]).
class HeadDenseImpl : public torch::nn::Module {
 public:
  // Starts Glorot-uniform as in Keras, which takes the last two dimensions of a kernel as in and out and all
  // others as a receptive field, also for [width, H, D], where they are not one.
  HeadDenseImpl(std::vector<int64_t> in, std::vector<int64_t> out, bool bias);
  at::Tensor forward(const at::Tensor& x);
  at::Tensor kernel, bias;

 private:
  int64_t in_dims_;
};
TORCH_MODULE(HeadDense);

// Parameters: query, key, value, attention_output and, with begin_kernel, attention_output_softmax, each with
// kernel and bias. Buffer projection: [M, D], for all heads.
class KernelAttentionImpl : public torch::nn::Module {
 public:
  explicit KernelAttentionImpl(const KernelAttentionOptions& options);

  // -> [B, T, output_shape]. Throws UsageError for inputs that do not fit and for what the layer refuses.
  at::Tensor forward(const KernelAttentionInputs& inputs);

  // With options.redraw: the next training call uses draw `index`, the one after it the following.
  void redraw(int64_t index);
  // Where training calls take draw `index` from, [M, D]; by default redrawn_projection().
  void set_redraw_source(std::function<at::Tensor(int64_t index)> source);

  const KernelAttentionOptions& options() const { return options_; }
  at::Tensor projection() const { return projection_; }  // undefined without random features

 private:
  // Attention outputs [B, T, H, E]: the first rows by softmax, the others by kernel features.
  struct Parts {
    at::Tensor softmax, kernel;  // undefined when there are none
  };

  void check_inputs(const KernelAttentionInputs& inputs) const;
  void check_cache(bool training) const;
  at::Tensor draw(int64_t index) const;
  std::optional<at::Tensor> projection_for(bool training);
  AttentionOptions attention_options() const;
  Parts attend(const KernelAttentionInputs& inputs, bool training);

  KernelAttentionOptions options_;
  double scale_;
  std::vector<int64_t> output_shape_;
  HeadDense query_{nullptr}, key_{nullptr}, value_{nullptr}, output_{nullptr}, output_softmax_{nullptr};
  at::Tensor projection_;
  at::Tensor draws_;  // with redraw: int64, number of the next draw
  std::function<at::Tensor(int64_t)> redraw_source_;
};
TORCH_MODULE(KernelAttention);

// Weights of the layer by its names: the last two components of "w.query.kernel" or "layer/query/kernel:0",
// and "W" [M, D] for the projection. Layouts are the same. Throws InputError as import_weights() does.
void import_kernel_attention(KernelAttention& layer, const std::map<std::string, at::Tensor>& weights);

}  // namespace performer::references::keras
