// SPDX-License-Identifier: Apache-2.0
// Causal linear attention of a chunk: consecutive tokens of rows or of packed segments, some of which began
// before the chunk or go on behind it.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <tuple>

#include "performer/nn/sequence_batch.h"
#include "performer/ops/favor.h"

namespace performer::nn {

// Causal attention of whole segments from an optional state: output, and the final state when asked for.
using StatefulAttention = std::function<std::tuple<at::Tensor, ops::State>(const ops::AttentionInputs&)>;

struct ChunkHeads {
  at::Tensor query, key, value;  // [B, C, H, D], value [B, C, H, E]
};

// `attend` over the tokens of a chunk -> [B, C, H, E]. `batch` holds the chunk's own mask or segments;
// `initial`, when defined, is the state [B, ...] of the rows so far, or when packed the state [1, ...] of the
// first segment so far. `final`, unless null, becomes the state after the chunk, of the rows or of the last
// segment. A segment that neither began earlier nor goes on costs no state.
at::Tensor attend_chunk(const StatefulAttention& attend, const ChunkHeads& heads, const SequenceBatch& batch,
                        const ops::State& initial, ops::State* final);

}  // namespace performer::nn
