// SPDX-License-Identifier: Apache-2.0
// Attention of the Keras KernelAttention layer (TensorFlow Model Garden 2.19) on projected heads, its
// behaviour kept where it is questionable (docs/kernel_attention.md). Where the reference raises, UsageError.
// Computed in double, results in the type of value. Letters: B, T queries, S keys, H heads, D head size, E
// value size, M features.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace performer::references::keras {

// Sliding sums over dimension 1 of `x`, of `window` entries that end at each position. The reference takes
// differences of cumulative sums, which cancel.
at::Tensor rectangular_window_sum(const at::Tensor& x, int64_t window);
// With weights [window], the last one for the position itself.
at::Tensor weighted_window_sum(const at::Tensor& x, int64_t window, const at::Tensor& weights);

// Each chunk attends to itself, both ways, and to the chunks before it.
struct Window {
  int64_t chunk_length = 1;      // tokens
  int64_t window_length = 3;     // chunks, the own one included
  std::optional<double> decay;   // factor for each chunk of distance
  std::string padding = "none";  // left, right: zeros up to a multiple of chunk_length; none: T must be one.
                                 // Left-padded outputs are not moved back: zero rows first, the last lost
};

// State of a streamed sequence: kv [B, H, E, M] and k_sum [B, H, M]; undefined stands for zeros. A call adds
// its keys and values as one chunk to decay * state; all its queries see the result. No window drops
// anything.
struct Cache {
  at::Tensor kv, k_sum;
};

// query, key [B, T, H, M] of features, value [B, T, H, E] -> [B, T, H, E], denominator + 1e-6. With a cache
// decay must be in [0, 1] and chunk, window and padding play no part.
at::Tensor causal_windowed_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                     const Window& window, Cache* cache = nullptr);

struct AttentionOptions {
  std::string feature_transform = "exp";
  bool is_short_seq = false;  // softmax over keys of phi(q).phi(k), scale on q only; else linear attention,
                              // sqrt(scale) on q and k
  double scale = 1;
  bool scale_by_length = false;  // times ln(sum of the mask) / ln 512 for each example
  std::optional<Window> window;  // excludes is_short_seq
};

// query [B, T, H, D], key [B, S, H, D], value [B, S, H, E] -> [B, T, H, E]. mask [B, S] in the type of query
// (bool and integers raise there) multiplies key features: 1 keeps, in between weighs; in the short path a
// masked key keeps score 0 in the softmax. projection [M, D].
at::Tensor compute_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                             const AttentionOptions& options, const std::optional<at::Tensor>& projection,
                             const std::optional<at::Tensor>& mask, Cache* cache = nullptr);

}  // namespace performer::references::keras
