// SPDX-License-Identifier: Apache-2.0
// What attention within windows is made of: sequences cut into windows of W tokens, each with its neighbours.
// nn::local_attention is made of these parts, and so are forms of it that reproduce another system.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "performer/nn/local_attention.h"

namespace performer::nn {

// Sizes of one call: `count` windows of `window` tokens, each seeing `group` = (back + 1 + forward) window
// keys.
struct LocalWindows {
  int64_t window, back, forward, tokens, count, group;

  LocalWindows(const LocalAttentionOptions& options, int64_t length);
  // x [B, T, ...] -> [B, count, window, ...], the last window filled up with `value`.
  at::Tensor split(const at::Tensor& x, double value) const;
  // [B, count, window, ...] -> [B, count, group, ...]: each window with its neighbours, `value` beyond the
  // ends.
  at::Tensor gather(const at::Tensor& windows, double value) const;
  // Weighted values [B, count, H, window, E] as rows [B, T, H, E].
  at::Tensor join(const at::Tensor& windows) const;
  // Keys that a query must not see, bool, broadcast to [B, count, 1, window, group]: those beyond the ends,
  // later ones when causal, masked ones (mask [B, T], true keeps), and with `padding_is_hidden` those that
  // only fill up the last window.
  at::Tensor hidden_keys(bool causal, const std::optional<at::Tensor>& mask, bool padding_is_hidden,
                         at::Device device) const;
};

// x [..., P, H, D] turned by the angles positions[p] * rates [D / 2]: channel i together with channel i + D
// / 2.
at::Tensor rotate_halves(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rates);
// q k / sqrt(D) as [B, N, H, W, S] of query [B, N, W, H, D] and key [B, N, S, H, D]; in float32 for float16,
// which has no numbers for large ones.
at::Tensor window_scores(const at::Tensor& query, const at::Tensor& key);
// The most negative finite number of a tensor's type, which stands for the score of a key that is not seen.
double most_negative(const at::Tensor& scores);
// Throws UsageError for options and shapes that local_attention() cannot work with.
void check_local_arguments(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& rates,
                           const LocalAttentionOptions& options);

}  // namespace performer::nn
