// SPDX-License-Identifier: Apache-2.0
// Softmax attention within windows: cost in proportion to T times the window.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace performer::nn {

struct LocalAttentionOptions {
  int64_t window = 256;  // tokens; the last window of a sequence may be shorter
  bool causal = false;
  int64_t look_backward = 1;  // windows before a query's own that it sees
  int64_t look_forward = -1;  // windows after it; -1: 0 when causal, else 1
  double dropout = 0;         // of the attention weights, each call
};

// Rotary angles per position of local heads, half-split: 10000^(-2i / D), i < D / 2, as [D / 2] float32.
// Throws UsageError for an odd head size.
at::Tensor local_rotary_rates(int64_t head_size);

// softmax(q k / sqrt(D)) v over the keys of a query's own window and its neighbours (j <= i when causal), for
// query and key [B, T, H, D], value [B, T, H, E] -> [B, T, H, E]. mask: bool [B, T], true keeps. rates: [D /
// 2] of local_rotary_rates(); none: no rotary positions. Channel i is turned together with channel i + D / 2.
//
// Masked keys and those beyond the ends are not there; a query without any key, or masked itself, gives 0.
// Positions are those in the sequence, so scores depend on the distance of query and key alone.
//
// Throws UsageError for impossible options or shapes.
at::Tensor local_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& rates,
                           const LocalAttentionOptions& options);

// What later tokens of causal sequences still see: turned keys [B, S, H, D] and values [B, S, H, E] of the
// last S tokens, S at most (look_backward + 1) windows; undefined before the first token.
struct LocalAttentionState {
  at::Tensor key, value;
  int64_t length = 0;  // tokens so far
};

// The next T tokens of sequences: the last T rows of local_attention() over all tokens so far, at a cost that
// does not grow with them. Arguments are those of the new tokens; no masks. `state` moves on. Throws
// UsageError unless `options` are causal and without dropout.
at::Tensor continue_local_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                    const std::optional<at::Tensor>& rates,
                                    const LocalAttentionOptions& options, LocalAttentionState& state);

}  // namespace performer::nn
