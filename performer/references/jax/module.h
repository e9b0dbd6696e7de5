// SPDX-License-Identifier: Apache-2.0
// google-research's MultiHeadDotProductFastAttention (performer/fast_attention/jax/attention_module.py):
// multi-head attention around any attention of jax/attention.h, for weights trained there.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>

#include "performer/references/jax/attention.h"

namespace performer::references::jax {

struct FastAttentionModuleOptions {
  int64_t heads = 8;           // num_heads
  int64_t query_size = 512;    // features of inputs_q
  int64_t key_value_size = 0;  // features of inputs_kv; 0: as inputs_q
  int64_t qkv_features = 0;    // queries, keys and values of all heads together; 0: query_size
  int64_t out_features = 0;    // 0: query_size
  bool use_bias = true;        // of all four projections
  // attention_fn: what make_fast_softmax_attention or make_fast_generalized_attention would be given;
  // head_size is set here. (dropout_rate has no meaning without an attention matrix, and decode is not
  // implemented there either.)
  std::variant<references::jax::SoftmaxAttentionOptions, references::jax::GeneralizedAttentionOptions>
      attention = {};
};

class FastAttentionModuleImpl : public torch::nn::Module {
 public:
  // Weights N(0, 1/fan_in), biases zero. The projection is a buffer, unless the attention draws anew at every
  // call or has none. Throws UsageError when heads do not divide qkv_features.
  explicit FastAttentionModuleImpl(const FastAttentionModuleOptions& options);

  // inputs_q [B, axes..., query_size], inputs_kv [B, axes..., key_value_size] -> [B, axes..., out_features].
  // mask_k [B, key axes...] or without the batch, bool or weights, multiplies the values alone: masked keys
  // stay in the denominator and in the maximum, so outputs shrink. Causal if the attention is unidirectional,
  // which needs one axis.
  at::Tensor forward(const at::Tensor& inputs_q, const at::Tensor& inputs_kv,
                     const std::optional<at::Tensor>& mask_k = {});

  // Copies weights in the reference's layout: query/key/value `kernel` [features, H, head] and `bias` [H,
  // head], out `kernel` [H, head, features] and `bias`, by names like "query/kernel", and "projection" [M,
  // head] when the module has one. Throws InputError naming what is missing or of another shape; then nothing
  // is copied.
  void import_flax(const std::map<std::string, at::Tensor>& weights);

  const FastAttentionModuleOptions& options() const { return options_; }

 private:
  FastAttentionModuleOptions options_;
  int64_t head_size_ = 0;
  torch::nn::Linear query_{nullptr}, key_{nullptr}, value_{nullptr}, out_{nullptr};
  at::Tensor projection_;  // buffer [M, head_size]
};
TORCH_MODULE(FastAttentionModule);

}  // namespace performer::references::jax
