// SPDX-License-Identifier: Apache-2.0
// What the tests of training and evaluation batches share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "performer/data/batches.h"

namespace performer::data::test {

using Ints = std::vector<int64_t>;

inline DataConfig config_of(const std::string& layout, int64_t length, int64_t batch_tokens,
                            const std::string& crop = "split") {
  DataConfig config;
  config.layout = layout;
  config.length = length;
  config.batch_tokens = batch_tokens;
  config.crop = crop;
  config.seed = 3;
  return config;
}

inline Ints slice(const Ints& values, int64_t begin, int64_t end) {
  return {values.begin() + begin, values.begin() + end};
}

// All vectors agree with rows x width, and the bounds of segments with the row.
inline void expect_well_formed(const Batch& batch) {
  const size_t size = static_cast<size_t>(batch.rows * batch.width);
  EXPECT_EQ(batch.inputs.size(), size);
  EXPECT_EQ(batch.targets.size(), size);
  EXPECT_EQ(batch.weights.size(), size);
  EXPECT_EQ(batch.positions.size(), size);
  if (!batch.valid.empty()) {
    EXPECT_EQ(batch.valid.size(), size);
  }
  if (!batch.cu_seqlens.empty()) {
    EXPECT_EQ(batch.cu_seqlens.front(), 0);
    EXPECT_EQ(batch.cu_seqlens.back(), batch.width);
    EXPECT_TRUE(std::ranges::is_sorted(batch.cu_seqlens));
  }
}

}  // namespace performer::data::test
