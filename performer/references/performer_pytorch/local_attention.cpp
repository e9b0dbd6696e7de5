// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/local_attention.h"

#include <ATen/ATen.h>

#include "performer/nn/local_windows.h"
#include "performer/ops/dropout.h"

namespace performer::references::performer_pytorch {

using at::Tensor;

Tensor local_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                       const std::optional<Tensor>& mask, const std::optional<Tensor>& rates,
                       const nn::LocalAttentionOptions& options) {
  nn::check_local_arguments(query, key, value, mask, rates, options);
  if (query.size(1) == 0) return at::empty_like(value);
  const nn::LocalWindows windows(options, query.size(1));
  Tensor q = windows.split(query, 0), k = windows.gather(windows.split(key, 0), -1);
  const Tensor v = windows.gather(windows.split(value, 0), -1);
  if (rates) {
    const Tensor positions = at::arange(windows.group, at::TensorOptions(at::kLong).device(query.device()));
    q = nn::rotate_halves(q, positions.narrow(0, windows.group - windows.window, windows.window), *rates);
    k = nn::rotate_halves(k, positions, *rates);
  }
  const Tensor scores = nn::window_scores(q, k);
  const Tensor hidden =
      windows.hidden_keys(options.causal, mask, /*padding_is_hidden=*/false, query.device());
  const Tensor weights =
      scores.masked_fill(hidden, nn::most_negative(scores)).softmax(-1).to(v.scalar_type());
  return windows.join(at::matmul(ops::dropout(weights, options.dropout), v.transpose(2, 3)));
}

}  // namespace performer::references::performer_pytorch
