// SPDX-License-Identifier: Apache-2.0
#include "performer/models/token_dropout.h"

#include <ATen/ATen.h>

#include "performer/base/error.h"

namespace performer {
namespace {

// Tokens are masked in training at this rate: 15 % are chosen, of which 80 % become MASK.
constexpr double kTrainedShare = 0.15 * 0.8;

// The share of hidden tokens in the sequence of each token; hidden bool [B, T] -> float64 [B, T] or [B, 1].
at::Tensor shares(const at::Tensor& hidden, const SequenceBatch& batch) {
  const at::Tensor counted = hidden.to(at::kDouble);
  if (!batch.cu_seqlens) {
    if (!batch.key_mask) return counted.mean(1, /*keepdim=*/true);
    const at::Tensor seen = batch.key_mask->to(at::kDouble);
    return (counted * seen).sum(1, /*keepdim=*/true) / seen.sum(1, /*keepdim=*/true).clamp_min(1);
  }
  const at::Tensor bounds = batch.cu_seqlens->to(hidden.device());
  const at::Tensor sizes = bounds.diff();
  const at::Tensor sums = at::cat({at::zeros({1}, counted.options()), counted[0].cumsum(0)});
  const at::Tensor share = sums.index_select(0, bounds).diff() / sizes.clamp_min(1).to(at::kDouble);
  return share.repeat_interleave(sizes).unsqueeze(0);
}

}  // namespace

at::Tensor drop_masked_tokens(const at::Tensor& x, const SequenceBatch& batch, int64_t mask) {
  check<UsageError>(!batch.tokens.is_floating_point(),
                    "a model with model.token_dropout = true counts its masks: give it tokens, not "
                    "distributions over tokens");
  const at::Tensor hidden = batch.tokens == mask;
  // A sequence of masks alone has nothing left to scale.
  const at::Tensor kept = (1 - shares(hidden, batch)).clamp_min(1e-6);
  const at::Tensor scale = ((1 - kTrainedShare) / kept).to(x.scalar_type()).unsqueeze(-1);
  return x.masked_fill(hidden.unsqueeze(-1), 0) * scale;
}

}  // namespace performer
