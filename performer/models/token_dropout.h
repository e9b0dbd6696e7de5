// SPDX-License-Identifier: Apache-2.0
// The token dropout of ESM (Rives et al. 2021; fair-esm and transformers' EsmEmbeddings).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "performer/nn/sequence_batch.h"

namespace performer {

// Embeddings x [B, T, width] of a batch in which MASK has none: rows of the token `mask` become 0, the others
// are multiplied by (1 - 0.15 * 0.8) / (1 - share of `mask` among the sequence's tokens). So a sequence
// without any mask is multiplied by 0.88. Throws UsageError for soft tokens.
at::Tensor drop_masked_tokens(const at::Tensor& x, const SequenceBatch& batch, int64_t mask);

}  // namespace performer
