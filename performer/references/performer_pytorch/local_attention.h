// SPDX-License-Identifier: Apache-2.0
// Softmax attention within windows as local-attention 1.11.2 computes it, for the local heads of
// performer-pytorch. The project's own form is performer/nn/local_attention.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "performer/nn/local_attention.h"

namespace performer::references::performer_pytorch {

// Arguments and result of nn::local_attention(), with which it agrees when causal and without mask.
// Elsewhere:
// - Positions count from the first key of the windows that a query sees, and queries take the last of these
//   positions: with look_forward they are turned as if they stood look_forward windows later.
// - The sequence is padded to whole windows by zero keys and values, which take part unless a mask is given
// or
//   attention is causal.
// - Beyond the ends stand windows of keys and values -1, whose scores, like those of all hidden keys, are the
//   most negative number: a query whose keys are all hidden averages the values of all windows it looks at,
//   the -1 and the future included.
// - Masked queries are computed like others.
// Throws UsageError for impossible options or shapes.
at::Tensor local_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& rates,
                           const nn::LocalAttentionOptions& options);

}  // namespace performer::references::performer_pytorch
