// SPDX-License-Identifier: Apache-2.0
#include "performer/data/share.h"

#include <gtest/gtest.h>

#include <numeric>

#include "performer/base/error.h"

namespace performer::data {
namespace {

Batch rows_of(int64_t rows, int64_t width) {
  Batch batch;
  batch.rows = rows;
  batch.width = width;
  batch.inputs.resize(static_cast<size_t>(rows * width));
  std::iota(batch.inputs.begin(), batch.inputs.end(), 0);
  batch.targets = batch.inputs;
  batch.weights.assign(batch.inputs.size(), 1);
  batch.positions = batch.inputs;
  batch.valid.assign(batch.inputs.size(), 1);
  return batch;
}

Batch packed_of(const std::vector<int64_t>& bounds) {
  Batch batch = rows_of(1, bounds.back());
  batch.valid.clear();
  batch.cu_seqlens = bounds;
  return batch;
}

// All shares of a batch, put together again, are the batch.
TEST(Share, SharesOfRowsMakeTheBatch) {
  const Batch whole = rows_of(5, 7);
  for (const int64_t parts : {1, 2, 3, 5}) {
    for (const int64_t slices : {1, 2, 3}) {
      std::vector<int64_t> seen(whole.inputs.size(), 0);
      for (int64_t part = 0; part < parts; ++part) {
        for (int64_t slice = 0; slice < slices; ++slice) {
          const SharedBatch shared = share_of(whole, {part, parts, slice, slices});
          const Batch& batch = shared.batch;
          ASSERT_EQ(std::ssize(batch.inputs), batch.rows * batch.width);
          ASSERT_EQ(batch.valid.size(), batch.inputs.size());
          for (int64_t row = 0; row < batch.rows; ++row) {
            for (int64_t column = 0; column < batch.width; ++column) {
              const int64_t place = (shared.row + row) * shared.length + shared.begin + column;
              EXPECT_EQ(batch.inputs[static_cast<size_t>(row * batch.width + column)], place);
              ++seen[static_cast<size_t>(place)];
            }
          }
        }
      }
      EXPECT_EQ(seen, std::vector<int64_t>(seen.size(), 1)) << parts << " parts, " << slices << " slices";
    }
  }
}

TEST(Share, PackedSegmentsStayWholeWithinAPart) {
  Batch whole = packed_of({0, 10, 14, 20, 23, 40});
  whole.sequences = {7, 8, 9, 3, 4};
  const SharedBatch first = share_of(whole, {0, 2}), second = share_of(whole, {1, 2});
  EXPECT_EQ(first.batch.sequences, (std::vector<int64_t>{7, 8, 9}));
  EXPECT_EQ(second.batch.sequences, (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(first.batch.cu_seqlens, (std::vector<int64_t>{0, 10, 14, 20}));
  EXPECT_EQ(second.batch.cu_seqlens, (std::vector<int64_t>{0, 3, 20}));
  EXPECT_EQ(second.begin, 20);
  EXPECT_EQ(second.length, 40);
  EXPECT_EQ(second.batch.inputs.front(), 20);
  EXPECT_EQ(second.batch.width, 20);
}

TEST(Share, SlicesCutSegments) {
  const Batch whole = packed_of({0, 10, 14, 20, 23, 40});
  const SharedBatch a = share_of(whole, {0, 1, 0, 4}), b = share_of(whole, {0, 1, 1, 4}),
                    d = share_of(whole, {1, 2, 1, 2});
  EXPECT_EQ(a.batch.cu_seqlens, (std::vector<int64_t>{0, 10}));
  EXPECT_EQ(b.batch.cu_seqlens, (std::vector<int64_t>{0, 4, 10}));
  EXPECT_EQ(b.begin, 10);
  EXPECT_EQ(b.part_bounds, whole.cu_seqlens);
  EXPECT_EQ(d.batch.cu_seqlens, (std::vector<int64_t>{0, 10}));
  EXPECT_EQ(d.begin, 30);
  EXPECT_EQ(d.part_begin, 20);
  EXPECT_EQ(d.part_bounds, (std::vector<int64_t>{0, 3, 20}));
}

TEST(Share, EachPartHasASegment) {
  for (const auto& bounds : {std::vector<int64_t>{0, 100, 101, 102}, {0, 1, 2, 102}, {0, 1, 101, 102}}) {
    for (int64_t part = 0; part < 3; ++part) {
      EXPECT_EQ(share_of(packed_of(bounds), {part, 3}).batch.width, bounds[part + 1] - bounds[part]);
    }
    EXPECT_THROW(share_of(packed_of(bounds), {0, 4}), Error);
  }
}

TEST(Share, ABatchOfAllRanks) {
  DataConfig config;
  config.batch_tokens = 100;
  config.length = 32;
  EXPECT_EQ(for_ranks(config, 3).batch_tokens, 300);
  config.layout = "padded";
  EXPECT_EQ(for_ranks(config, 3).batch_tokens, 288);
  // Ranks that share sequences hold rows together that none of them could.
  EXPECT_EQ(for_ranks(config, 3, 2).batch_tokens, 3 * 192);
  config.batch_tokens = 20;
  EXPECT_EQ(for_ranks(config, 3, 2).batch_tokens, 3 * 32);
}

}  // namespace
}  // namespace performer::data
