// SPDX-License-Identifier: Apache-2.0
// The C++ side of the schemas of favor_attention and favor_step. Private to this layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace performer::ops {

// (out, normalizer, kv, key_sum, log_scale); the state parts have no elements unless return_state.
using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// Of query, key, value, and the initial state's kv and key_sum (no elements without one).
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The arguments that favor_attention and its backward share, in schema order.
#define PERFORMER_FAVOR_PARAMETERS                                                                 \
  const at::Tensor &query, const at::Tensor &key, const at::Tensor &value,                         \
      const std::optional<at::Tensor>&projection, const std::optional<at::Tensor>&offset,          \
      const std::optional<at::Tensor>&key_mask, const std::optional<at::Tensor>&query_mask,        \
      const std::optional<at::Tensor>&cu_query, const std::optional<at::Tensor>&cu_key,            \
      const std::optional<at::Tensor>&initial_kv, const std::optional<at::Tensor>&initial_key_sum, \
      const std::optional<at::Tensor>&initial_log_scale, c10::string_view family, double scale,    \
      double norm_weight, double epsilon, bool causal, int64_t chunk, bool return_state,           \
      c10::string_view backend
#define PERFORMER_FAVOR_NAMES                                                                              \
  query, key, value, projection, offset, key_mask, query_mask, cu_query, cu_key, initial_kv,               \
      initial_key_sum, initial_log_scale, std::string(family), scale, norm_weight, epsilon, causal, chunk, \
      return_state, std::string(backend)
inline constexpr int kFavorParameters = 20;  // the number of them

struct Arguments {
  at::Tensor query, key, value;
  std::optional<at::Tensor> projection = {}, offset = {}, key_mask = {}, query_mask = {}, cu_query = {},
                            cu_key = {};
  std::optional<at::Tensor> initial_kv = {}, initial_key_sum = {}, initial_log_scale = {};
  std::string family = {};
  double scale = 1, norm_weight = 0.5, epsilon = 0;
  bool causal = false;
  int64_t chunk = 0;
  bool return_state = false;
  std::string backend = {};
  std::optional<at::Tensor> factors = {};  // of favor_step alone
};

using ForwardSignature = Results(PERFORMER_FAVOR_PARAMETERS);
using BackwardSignature = Gradients(const at::Tensor& grad_out, const at::Tensor& out,
                                    const at::Tensor& normalizer, const std::optional<at::Tensor>& grad_kv,
                                    const std::optional<at::Tensor>& grad_key_sum,
                                    const std::optional<at::Tensor>& final_kv,
                                    const std::optional<at::Tensor>& final_key_sum,
                                    const std::optional<at::Tensor>& final_log_scale,
                                    PERFORMER_FAVOR_PARAMETERS);
using StepSignature = at::Tensor(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                 at::Tensor& kv, at::Tensor& key_sum, at::Tensor& log_scale,
                                 const std::optional<at::Tensor>& projection,
                                 const std::optional<at::Tensor>& offset, c10::string_view family,
                                 double scale, double norm_weight, double epsilon, c10::string_view backend,
                                 const std::optional<at::Tensor>& factors);

}  // namespace performer::ops
