// SPDX-License-Identifier: Apache-2.0
// Performer attention as LibTorch operators: performer::favor_attention and performer::favor_step, with CPU,
// Meta and Autograd registrations. Gradients are recomputed; nothing of size T x M is kept.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace performer::ops {

// Feature map of one attention layer (docs/mechanisms.md). `family` is "exponential" or the name of an
// element-wise function
// ("relu", "elu+1", "square", ...).
struct FeatureMap {
  std::string family = "exponential";
  double scale = 1;          // multiplies queries and keys first
  double norm_weight = 0.5;  // eta of exp(u - eta |x|^2); exponential only
  double epsilon = 0;        // added to element-wise features
  std::optional<at::Tensor>
      projection;  // [M, D], [H, M, D] or [B, H, M, D] float32; none: features are the inputs
  std::optional<at::Tensor> offset;  // [M], [H, M] or [B, H, M] float32
};

// The running sums of a layer: kv [B, H, M, E], key_sum [B, H, M], log_scale [B, H, M]; float32 (float64 for
// float64 inputs). True sums are exp(log_scale) * (kv, key_sum).
struct State {
  at::Tensor kv, key_sum, log_scale;
  bool defined() const { return kv.defined(); }
};

// State of a sequence that has no tokens yet.
State empty_state(int64_t batch, int64_t heads, int64_t features, int64_t value_size,
                  const std::string& family, const at::TensorOptions& options);

struct AttentionInputs {
  at::Tensor query, key, value;               // [B, T, H, D], [B, S, H, D], [B, S, H, E]; packed: B = 1
  bool causal = false;                        // needs S == T
  int64_t chunk = 0;                          // tokens handled at a time; 0: the kernel's choice
  std::optional<at::Tensor> key_mask = {};    // bool [B, S], true keeps
  std::optional<at::Tensor> query_mask = {};  // bool [B, T]
  std::optional<at::Tensor> cu_query = {},
                            cu_key =
                                {};   // int64 [N + 1] on CPU: packed segments; cu_key defaults to cu_query
  std::optional<State> initial = {};  // batch N when packed
  bool return_state = false;
};

// Attention output [B, T, H, E] in the type of value, and the final state when asked for (else undefined).
// Differentiable in query, key, value and the initial state's kv and key_sum.
// Errors: c10::Error naming the argument, what was expected and what was found.
std::tuple<at::Tensor, State> favor_attention(const AttentionInputs& inputs, const FeatureMap& map);

// One token of causal attention: query, key [B, H, D], value [B, H, E] -> [B, H, E]; `state` is updated in
// place. Not differentiable.
at::Tensor favor_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, State& state,
                      const FeatureMap& map);

}  // namespace performer::ops
