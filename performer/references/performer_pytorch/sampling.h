// SPDX-License-Identifier: Apache-2.0
// Rules of performer-pytorch 1.1.4 for the next token, questionable behaviour included; logits [B, V] float
// -> [B, V]. The project's own rules are performer/infer/generate.h.
#pragma once

#include <ATen/core/Tensor.h>

namespace performer::references::performer_pytorch {

// The int((1 - threshold) V) largest logits of each row, the others -infinity: a threshold of 0.9 keeps a
// tenth of the vocabulary, and where that is no token all logits are -infinity. Throws UsageError for a
// threshold outside of [0, 1].
at::Tensor keep_top_k(const at::Tensor& logits, double threshold);
// The most probable tokens up to the one with which their probability exceeds 1 - threshold: a threshold of
// 0.9 keeps 10 % of the probability, not 90 %.
at::Tensor keep_top_p(const at::Tensor& logits, double threshold);
// Logits of all tokens found anywhere in `context` (int64, any row of the batch), positive or negative,
// divided by theta: negative ones become more probable.
at::Tensor penalize_repetition(const at::Tensor& logits, const at::Tensor& context, double theta);

}  // namespace performer::references::performer_pytorch
