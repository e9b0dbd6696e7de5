// SPDX-License-Identifier: Apache-2.0
// Performer attention as LibTorch operators: performer::favor_attention and performer::favor_step, and the
// algebra of their states, performer::merge_states and performer::key_state. Python reaches them as
// torch.ops.performer.* once the library is loaded. Gradients are recomputed; nothing of size T x M is kept.
//
// Errors of all functions: c10::ValueError or c10::TypeError (in Python ValueError and TypeError) naming the
// argument, what was expected and what was found.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace performer::ops {

// Feature map of one attention layer (docs/mechanisms.md). `family` is "exponential", "trigonometric" (by the
// kernels alone; ops/trigonometric.h has it for every device, and says what its states hold) or the name of
// an element-wise function ("relu", "elu+1", "square", ...).
struct FeatureMap {
  std::string family = "exponential";
  double scale = 1;          // multiplies queries and keys first
  double norm_weight = 0.5;  // eta of exp(u - eta |x|^2); not in element-wise families
  double epsilon = 0;        // added to element-wise features
  // [M, D], [H, M, D] or [B, H, M, D] float32; none: features are the inputs
  std::optional<at::Tensor> projection;
  std::optional<at::Tensor> offset;  // [M], [H, M] or [B, H, M] float32
  // Of the projection, where it is made of Hadamard draws: hadamard_factors() of ops/projection.h. Only
  // favor_step reads them, which then multiplies by transforms; favor_attention finds them by itself where it
  // has tokens enough.
  std::optional<at::Tensor> factors;
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
  at::Tensor query, key, value;             // [B, T, H, D], [B, S, H, D], [B, S, H, E]; packed: B = 1
  bool causal = false;                      // needs S == T
  int64_t chunk = 0;                        // tokens handled at a time, at most 256; 0: the backend's choice
  std::optional<at::Tensor> key_mask = {};  // bool [B, S], true keeps
  std::optional<at::Tensor> query_mask = {};  // bool [B, T]
  // int64 [N + 1] on the CPU: bounds of packed segments; cu_key defaults to cu_query
  std::optional<at::Tensor> cu_query = {}, cu_key = {};
  std::optional<State> initial = {};  // batch N when packed
  bool return_state = false;
  // Who computes: "cpu" (this project's kernels), "composed" (LibTorch operations, on every device), or
  // empty: the fastest that serves the device.
  std::string backend = {};
};

// Attention output [B, T, H, E] in the type of value, and the final state when asked for (else undefined).
// Differentiable in query, key, value and the initial state's kv and key_sum.
std::tuple<at::Tensor, State> favor_attention(const AttentionInputs& inputs, const FeatureMap& map);

// One token of causal attention: query, key [B, H, D], value [B, H, E] -> [B, H, E]; `state` is updated in
// place. Not differentiable.
at::Tensor favor_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, State& state,
                      const FeatureMap& map, const std::string& backend = {});

// Keys and values whose state is wanted: what cross-attention keeps of its context.
struct KeyInputs {
  at::Tensor key, value;                    // [B, S, H, D], [B, S, H, E]; packed: B = 1
  std::optional<at::Tensor> key_mask = {};  // bool [B, S], true keeps
  std::optional<at::Tensor> cu_key = {};    // int64 [N + 1] on the CPU: bounds of packed segments
  std::optional<State> initial = {};        // of earlier keys; batch N when packed
  int64_t chunk = 0;                        // as in AttentionInputs
  std::string backend = {};
};

// The state after all of the keys. Queries attend to it by favor_attention with it as the initial state, with
// no keys (S = 0) and without `causal`. Differentiable in key, value and the initial state's kv and key_sum.
State key_state(const KeyInputs& inputs, const FeatureMap& map);

// The state of the tokens of both: each feature of both is brought to the larger log-scale, and they are
// added. Associative, and an empty state changes nothing. Differentiable in the kv and key_sum of both.
State merge_states(const State& a, const State& b);

}  // namespace performer::ops
