// SPDX-License-Identifier: Apache-2.0
// Sparse attention whose pairs depend on positions alone: the kinds `sparse` and `global`.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "performer/nn/attention/block_softmax.h"
#include "performer/nn/attention/exact.h"
#include "performer/nn/attention/kind.h"

namespace performer::nn {

// Blocks of queries, each query in one of them, with the keys that they may see, as positions in a sequence;
// -1 stands for no token. Which of these pairs are seen says PositionLayout::visible() for `part`.
struct PositionBlocks {
  int part = 0;
  int64_t queries = 0, keys = 0;  // in a block
  std::vector<int64_t> query_positions, key_positions;

  int64_t count() const { return static_cast<int64_t>(query_positions.size()) / queries; }
};

// Which positions of a sequence see which.
class PositionLayout {
 public:
  virtual ~PositionLayout() = default;
  // The blocks of a sequence of `tokens` >= 1 tokens. A pair that is seen is in one block, of one part.
  virtual std::vector<PositionBlocks> blocks(int64_t tokens, int64_t head) const = 0;
  // Bool: whether queries at positions i [N, C, 1] see keys at positions j [N, 1, S], both int32, in the
  // blocks of a part; a new tensor that broadcasts to [N, C, S]. What it says of -1 does not matter.
  virtual at::Tensor visible(int part, const at::Tensor& i, const at::Tensor& j) const = 0;
  // Causal: the positions that a query at position i sees, its own one among them, each once.
  virtual std::vector<int64_t> seen_by(int64_t i, int64_t head) const = 0;
};

// Positions first .. first + count - 1, with -1 for those outside of 0 .. tokens - 1.
void append_range(std::vector<int64_t>& positions, int64_t first, int64_t count, int64_t tokens);

// Blocks of `size` queries, each with the keys of its own block, of `back` blocks before and of `forward`
// after it.
PositionBlocks neighbouring_blocks(int part, int64_t tokens, int64_t size, int64_t back, int64_t forward);

// Softmax attention over the pairs of a layout. Streams keep all keys and values, and read those that the
// layout lets a token see.
class PositionAttention final : public Attention {
 public:
  explicit PositionAttention(std::shared_ptr<const PositionLayout> layout) : layout_(std::move(layout)) {}

  at::Tensor forward(const ops::AttentionInputs& inputs) override;
  at::Tensor rows(const ops::AttentionInputs& inputs, const RowRange& range) override;
  std::unique_ptr<Cache> begin(int64_t batch) const override;
  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  Cache& cache) const override;

 private:
  std::shared_ptr<const PositionLayout> layout_;
};

}  // namespace performer::nn
