// SPDX-License-Identifier: Apache-2.0
// Causal linear attention to a window of the past. Sequences are cut into chunks of C tokens; token i sees
// the tokens up to itself in its own chunk and all tokens of the W - 1 chunks before, those of a chunk d
// chunks back weighted by decay^d. The state of a window is merged from the states of its chunks: nothing is
// obtained by subtraction, so what left the window leaves no rounding behind.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "performer/ops/feature_maps.h"

namespace performer::nn {

struct WindowOptions {
  int64_t chunk = 64;  // C, tokens
  int64_t window = 8;  // W, chunks, the own one included; 0: all
  double decay = 1;    // from 0 to 1, of a chunk of distance
};

// Query, key [B, T, H, D] and value [B, T, H, E], with the masks of `inputs`, -> [B, T, H, E]. The decay is
// added to the log-scales of exponential maps and multiplies the sums of the others, where what is so old
// that its weight is below the smallest float counts as 0. Differentiable in query, key and value.
at::Tensor windowed_attention(const ops::AttentionInputs& inputs, const ops::PreparedMap& map,
                              const WindowOptions& options);

// What streamed sequences of a batch keep: at most W + 1 states, or 1 with a window of 0.
struct WindowState {
  ops::State seen;                  // of all tokens that the next token sees beside itself
  ops::State own;                   // of the present chunk alone, where a later chunk will need it
  std::vector<ops::State> earlier;  // of the W - 1 chunks before it, oldest first
  int64_t tokens = 0;               // so far

  WindowState select(const at::Tensor& rows) const;
};

// The next token: query, key [B, H, D], value [B, H, E] -> [B, H, E], as windowed_attention() of all tokens
// so far gives it. `state` moves on. Without gradients.
at::Tensor windowed_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const ops::PreparedMap& map, const WindowOptions& options, WindowState& state);

}  // namespace performer::nn
