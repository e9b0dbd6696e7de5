// SPDX-License-Identifier: Apache-2.0
// Causal linear attention to a window of the past. Sequences are cut into chunks of C tokens; token i sees the
// tokens up to itself in its own chunk and all tokens of the W - 1 chunks before, those of a chunk d chunks
// back weighted by decay^d. Sums of a window are sums of its chunks: nothing is obtained by subtraction, so
// what left the window leaves no rounding behind.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "performer/nn/chunk_attention.h"
#include "performer/ops/favor.h"

namespace performer::nn {

struct WindowOptions {
  int64_t chunk = 64;  // C, tokens
  int64_t window = 8;  // W, chunks, the own one included; 0: all
  double decay = 1;    // from 0 to 1, of a chunk of distance

  // Whether anything of earlier chunks is seen (0^0 = 1: with a decay of 0 only the own chunk counts).
  bool sees_earlier_chunks() const { return window != 1 && decay > 0; }
};

// Query, key [B, T, H, D] and value [B, T, H, E], with the masks of `inputs`, -> [B, T, H, E]. `attend` is
// causal linear attention that goes on from a state. `exponential`: its state has log-scales, which the decay
// is added to; otherwise it multiplies the sums, and what is so old that its weight is below the smallest
// float counts as 0. Differentiable where `attend` is.
at::Tensor windowed_attention(const StatefulAttention& attend, bool exponential,
                              const ops::AttentionInputs& inputs, const WindowOptions& options);

// What streamed sequences of a batch keep: at most W + 1 states, or 1 with window = 0.
struct WindowState {
  ops::State seen;                  // of all tokens that the next token sees beside itself
  ops::State own;                   // of the present chunk alone; not kept with window 0 or 1
  std::vector<ops::State> earlier;  // of the W - 1 chunks before it, oldest first
  int64_t tokens = 0;               // so far

  WindowState select(const at::Tensor& rows) const;
};
// To be called before each token: where a chunk begins, `seen` becomes the state of the chunks before it. The
// caller then takes the token into `seen` and, when keeps_own(), into `own`.
void begin_token(WindowState& state, bool exponential, const WindowOptions& options);
bool keeps_own(const WindowOptions& options);

}  // namespace performer::nn
