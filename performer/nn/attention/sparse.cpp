// SPDX-License-Identifier: Apache-2.0
// The factorised attention of the Sparse Transformer (Child et al. 2019, arXiv 1904.10509, section 4.2), both
// of whose patterns one head attends to together.
#include <ATen/ATen.h>

#include <algorithm>

#include "performer/base/error.h"
#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/position_pattern.h"

namespace performer::nn {
namespace {

constexpr int64_t kColumnBlock = 128;  // queries of a column at a time
constexpr int64_t kSharedBlocks = 8;   // blocks that have the same summary tokens before them in one list

struct SparseOptions {
  std::string pattern = "strided";
  int64_t stride = 128;
  int64_t summary = 8;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("pattern", self.pattern,
          "strided: the last `stride` tokens, and every token whose distance is a multiple of it; fixed: the "
          "own block of `stride` tokens, and the summary tokens of the other blocks",
          Choices{"strided", "fixed"});
    visit("stride", self.stride, "stride, or tokens of a block; near the root of the length");
    visit("summary", self.summary,
          "fixed only: tokens of each block that other blocks see: the last ones for the first head, those "
          "before them for the next head, and so on");
  }
};

// Sees its neighbours up to `stride` tokens away (part 0), and farther tokens of its own column, those at a
// distance of a multiple of `stride` (part 1).
class StridedLayout final : public PositionLayout {
 public:
  StridedLayout(int64_t stride, bool causal) : stride_(stride), causal_(causal) {}

  std::vector<PositionBlocks> blocks(int64_t tokens, int64_t) const override {
    std::vector<PositionBlocks> all = {neighbouring_blocks(0, tokens, stride_, 1, causal_ ? 0 : 1)};
    const int64_t column = (tokens + stride_ - 1) / stride_;  // tokens of a column, or one more
    for (int64_t first = 0; column > 2 && first < column; first += kColumnBlock) {
      const int64_t queries = std::min(kColumnBlock, column - first);
      PositionBlocks part{1, queries, causal_ ? first + queries : column, {}, {}};
      for (int64_t offset = 0; offset < stride_; ++offset) {
        append_column(part.query_positions, offset, first, queries, tokens);
        append_column(part.key_positions, offset, 0, part.keys, tokens);
      }
      all.push_back(std::move(part));
    }
    return all;
  }

  at::Tensor visible(int part, const at::Tensor& i, const at::Tensor& j) const override {
    const at::Tensor distance = causal_ ? i - j : (i - j).abs_();
    if (part == 1) return distance.gt(stride_);
    return causal_ ? distance.ge(0).logical_and_(distance.le(stride_)) : distance.le(stride_);
  }

  std::vector<int64_t> seen_by(int64_t i, int64_t) const override {
    std::vector<int64_t> seen;
    for (int64_t j = i % stride_; j < i - stride_; j += stride_) seen.push_back(j);
    for (int64_t j = std::max<int64_t>(0, i - stride_); j <= i; ++j) seen.push_back(j);
    return seen;
  }

 private:
  void append_column(std::vector<int64_t>& positions, int64_t offset, int64_t first, int64_t count,
                     int64_t tokens) const {
    for (int64_t n = first; n < first + count; ++n) {
      const int64_t position = n * stride_ + offset;
      positions.push_back(position < tokens ? position : -1);
    }
  }

  int64_t stride_;
  bool causal_;
};

// Sees its own block (part 0), and the summary tokens of the other blocks (part 1). Heads take turns at the
// tokens of a block, as the paper's section 4.2 recommends.
class FixedLayout final : public PositionLayout {
 public:
  FixedLayout(int64_t block, int64_t summary, bool causal)
      : block_(block), summary_(summary), causal_(causal) {}

  std::vector<PositionBlocks> blocks(int64_t tokens, int64_t head) const override {
    std::vector<PositionBlocks> all = {neighbouring_blocks(0, tokens, block_, 0, 0)};
    const int64_t count = (tokens + block_ - 1) / block_;
    for (int64_t first = 0; count > 1 && first < count; first += kSharedBlocks) {
      const int64_t end = std::min(first + kSharedBlocks, count);
      PositionBlocks part{1, block_, (causal_ ? end : count) * summary_, {}, {}};
      for (int64_t n = first; n < end; ++n) {
        append_range(part.query_positions, n * block_, block_, tokens);
        for (int64_t other = 0; other < (causal_ ? end : count); ++other) {
          append_range(part.key_positions, first_summary(other, head), summary_, tokens);
        }
      }
      all.push_back(std::move(part));
    }
    return all;
  }

  at::Tensor visible(int part, const at::Tensor& i, const at::Tensor& j) const override {
    if (part == 0) return causal_ ? j.le(i) : j.ge(0);
    const at::Tensor of_query = i.div(block_, "floor"), of_key = j.div(block_, "floor");
    return causal_ ? of_key.lt(of_query) : of_key.ne(of_query);
  }

  std::vector<int64_t> seen_by(int64_t i, int64_t head) const override {
    std::vector<int64_t> seen;
    const int64_t own = i / block_;
    for (int64_t other = 0; other < own; ++other)
      append_range(seen, first_summary(other, head), summary_, i + 1);
    append_range(seen, own * block_, i + 1 - own * block_, i + 1);
    return seen;
  }

 private:
  int64_t first_summary(int64_t block, int64_t head) const {
    return (block + 1) * block_ - summary_ * (1 + head % (block_ / summary_));
  }

  int64_t block_, summary_;
  bool causal_;
};

void validate_sparse(const AttentionConfig& config, const AttentionShape&) {
  const auto own = read_options<SparseOptions>(config);
  check<UsageError>(own.stride >= 1 && own.stride <= kLargestSize,
                    "attention.stride must be between 1 and {}, not {}", kLargestSize, own.stride);
  check<UsageError>(own.pattern != "fixed" || (own.summary >= 1 && own.summary <= own.stride),
                    "attention.summary must be between 1 and attention.stride ({}), not {}", own.stride,
                    own.summary);
}

}  // namespace

AttentionKind sparse_kind() {
  AttentionKind kind;
  kind.name = "sparse";
  kind.summary =
      "exact softmax attention to near tokens and a regular choice of far ones (Sparse Transformer)";
  kind.cost =
      "time in proportion to T (stride + T / stride), with the pattern fixed T (stride + summary T / "
      "stride); memory of a training step in proportion to T; a stream keeps all keys and values";
  kind.group = KindGroup::baseline;
  kind.capabilities.streams = true;
  kind.capabilities.rows = true;
  kind.options = kind_options<SparseOptions>();
  kind.validate = validate_sparse;
  kind.make = [](const AttentionConfig& config, const AttentionShape& shape) -> std::shared_ptr<Attention> {
    const auto own = read_options<SparseOptions>(config);
    if (own.pattern == "strided")
      return std::make_shared<PositionAttention>(std::make_shared<StridedLayout>(own.stride, shape.causal));
    return std::make_shared<PositionAttention>(
        std::make_shared<FixedLayout>(own.stride, own.summary, shape.causal));
  };
  return kind;
}

}  // namespace performer::nn
