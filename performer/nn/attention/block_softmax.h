// SPDX-License-Identifier: Apache-2.0
// Exact softmax attention over chosen pairs of queries and keys, which come in blocks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace performer::nn {

// N blocks of C queries with S keys each: row numbers of one sequence, from 0; the number of its tokens
// stands for "no token". A query is in a tile at most once. `hidden` is bool and broadcasts to [N, C, S]: the
// keys that a query does not see. Of what is no token, keys must be hidden from all tokens; what such queries
// see does not matter.
struct BlockTile {
  at::Tensor query_rows, key_rows;  // int64 [N, C] and [N, S]
  at::Tensor hidden;
};

// Which pairs attend. Between the forward and the backward pass it must not change.
class BlockPattern {
 public:
  virtual ~BlockPattern() = default;
  // Calls `visit` for the tiles of one head of one row of the batch. A pair that is not hidden is in one tile
  // only. Called from several threads at once.
  virtual void visit(int64_t row, int64_t head, const std::function<void(const BlockTile&)>& visit) const = 0;
};

// Attention weights of C queries and S keys that a tile should hold, so that it stays in the cache.
inline constexpr int64_t kTileWeights = int64_t{1} << 17;

struct BlockSoftmax {
  at::Tensor rows;  // [B, T, H, E] in the type of value; 0 where a query sees no key
  at::Tensor seen;  // bool [B, T, H]: whether it sees any
};

// softmax(scale q k) v over the pairs of the pattern; query, key [B, T, H, D], value [B, T, H, E].
//
// Kept for the backward pass: inputs, output and two numbers a row. The weights are computed again there, a
// tile at a time, so that memory grows with T and not with the number of pairs. Computed in float32 (float64
// for float64), also under autocast. Gradients of gradients do not exist.
BlockSoftmax block_softmax(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           double scale, const std::shared_ptr<const BlockPattern>& pattern);

}  // namespace performer::nn
