// SPDX-License-Identifier: Apache-2.0
// Attention over windows of chunks, composed of LibTorch operations and differentiable. Features stay as
// logarithms where the map is exponential and every sum has a log-scale, so nothing overflows, underflows or
// needs an epsilon; nothing is obtained by subtracting sums. Letters: B, N chunks of C tokens, K tokens in a
// window, H heads, M features, E value size.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "performer/ops/favor.h"

namespace performer::references::keras::windowed {

// Stands for log 0: finite, so that differences of two of them are 0 and not NaN.
inline constexpr double kLogZero = -1e30;

// Features of queries or keys, or their logarithms. A factor common to all features of a token is left out of
// the logarithms of queries, where it cancels.
struct Features {
  at::Tensor values;
  bool logarithms = false;
};

// x [B, T, H, D] -> [B, T, H, M], in the type of x (at least float32).
Features features(const at::Tensor& x, const ops::FeatureMap& map, bool is_query);

// ln of the mask, kLogZero where it is 0: bool and integers keep or drop keys, floats in [0, inf) weigh them.
at::Tensor log_weights(const at::Tensor& mask, at::ScalarType type);

// Sums over the keys of each chunk; the true ones are exp(log_scale) times kv and key_sum. Element-wise maps
// have one scale a chunk, [B, N, 1, 1], which cancels in the quotient: decay cannot underflow.
struct Sums {
  at::Tensor kv;         // [B, N, H, M, E]
  at::Tensor key_sum;    // [B, N, H, M]
  at::Tensor log_scale;  // [B, N, H, M] or [B, N, 1, 1]
  bool defined() const { return kv.defined(); }
};

// keys [B, N, C, H, M], value [B, N, C, H, E], log_weight [B, N, C].
Sums chunk_sums(const Features& keys, const at::Tensor& value, const at::Tensor& log_weight);

// Chunks of two runs, one after the other; either may be undefined.
Sums joined(const Sums& before, const Sums& after);
Sums last(const Sums& sums, int64_t chunks);

// For each chunk the sums of the `window` chunks that end there, each multiplied by exp(log_decay) for every
// chunk of distance. By doubling: sums over 2^k chunks are two sums over 2^(k-1), log2(window) steps.
Sums window_sums(const Sums& sums, int64_t window, double log_decay);
// The same over dimension 1 of plain numbers, without decay.
at::Tensor window_sums(const at::Tensor& x, int64_t window);

// Outputs [B, N, C, H, E] of queries [B, N, C, H, M] that see `sums` of their chunk; rows that see no key, or
// whose denominator is below the smallest normal number, are zero.
at::Tensor read_out(const Features& queries, const Sums& sums);

// [B, N, ...] with tokens of the `window` chunks that end at each of the last `count` chunks side by side:
// x [B, N, C, ...] -> [B, count, window C, ...]; chunks before the first are `fill`.
at::Tensor window_tokens(const at::Tensor& x, int64_t window, int64_t count, double fill);

// The same outputs from scores of single keys, for windows so short that sums of M x E would cost more:
// keys [B, N, K, H, M], value [B, N, K, H, E], log_weight [B, N, K].
at::Tensor pair_attention(const Features& queries, const Features& keys, const at::Tensor& value,
                          const at::Tensor& log_weight);

// softmax over keys of scores [B, H, T, S] + log_weight (broadcast to them), times value [B, S, H, E] ->
// [B, T, H, E]. Keys of weight 0 are excluded; rows without a key are zero.
at::Tensor softmax_attention(const at::Tensor& scores, const at::Tensor& log_weight, const at::Tensor& value);

}  // namespace performer::references::keras::windowed
