// SPDX-License-Identifier: Apache-2.0
#include "performer/references/fast_transformers/masks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"

namespace performer::references::fast_transformers {
namespace {

at::Tensor whole(std::vector<int64_t> values) {
  return at::tensor(values, at::kLong);
}

// All views of a mask against its matrix.
void expect_views(const AttentionMask& mask, const at::Tensor& matrix) {
  EXPECT_TRUE(at::equal(mask.bool_matrix(), matrix));
  EXPECT_EQ(mask.rows(), matrix.size(0));
  EXPECT_EQ(mask.columns(), matrix.size(1));
  EXPECT_EQ(mask.all_ones(), matrix.all().item<bool>());
  EXPECT_TRUE(at::equal(mask.float_matrix(at::kDouble), matrix.to(at::kDouble)));
  EXPECT_TRUE(at::equal(mask.additive_matrix(), matrix.to(at::kFloat).log()));
  const at::Tensor finite = mask.additive_matrix_finite();
  EXPECT_TRUE(at::equal(finite.eq(0), matrix));
  EXPECT_TRUE(at::equal(finite.eq(-1e24F), matrix.logical_not()));
}

TEST(AttentionMasks, FullMasks) {
  expect_views(FullMask(2, 3), at::ones({2, 3}, at::kBool));
  expect_views(FullMask(3), at::ones({3, 3}, at::kBool));
  EXPECT_TRUE(at::equal(FullMask(2, 3).lengths(), whole({3, 3})));
  const at::Tensor scattered = at::tensor({1, 0, 1, 0, 1, 1}).view({2, 3}).to(at::kBool);
  expect_views(FullMask(scattered), scattered);
  EXPECT_THROW(FullMask(scattered).lengths(), UsageError);
  EXPECT_THROW(FullMask(scattered.to(at::kFloat)), UsageError);
  EXPECT_THROW(FullMask(scattered.select(0, 0)), UsageError);
}

TEST(AttentionMasks, AFullMaskKeepsItsOwnCopy) {
  const at::Tensor matrix = at::ones({2, 2}, at::kBool);
  const FullMask mask(matrix);
  matrix.fill_(false);
  EXPECT_TRUE(mask.bool_matrix().all().item<bool>());
}

TEST(AttentionMasks, LengthMasks) {
  const LengthMask mask(whole({3, 1, 0, 4}), 4);
  expect_views(mask, at::arange(4).unsqueeze(0) < whole({3, 1, 0, 4}).unsqueeze(1));
  EXPECT_TRUE(at::equal(mask.lengths(), whole({3, 1, 0, 4})));
  EXPECT_FALSE(mask.lower_triangular());
  EXPECT_EQ(LengthMask(whole({3, 1})).columns(), 3);  // the longest
  EXPECT_TRUE(LengthMask(whole({3, 3}), 3).all_ones());
  EXPECT_TRUE(LengthMask(whole({1, 2, 3}), 5).lower_triangular());
  EXPECT_THROW(LengthMask(at::ones({2})), UsageError);
  EXPECT_THROW(LengthMask(at::ones({2, 2}, at::kLong)), UsageError);
}

TEST(AttentionMasks, TriangularMasks) {
  for (const int64_t size : {0, 1, 2, 7}) {
    const TriangularCausalMask mask(size);
    const at::Tensor matrix = at::ones({size, size}, at::kBool).tril();
    expect_views(mask, matrix);
    EXPECT_TRUE(mask.lower_triangular());
    EXPECT_TRUE(FullMask(matrix).lower_triangular());
    EXPECT_TRUE(at::equal(mask.lengths(), at::arange(1, size + 1)));
    EXPECT_EQ(FullMask(size).lower_triangular(), size < 2);
  }
  EXPECT_FALSE(FullMask(at::ones({3, 3}, at::kBool).triu()).lower_triangular());
}

TEST(AttentionMasks, FiniteValuesNeedTheRangeOfFloat) {
  EXPECT_THROW(FullMask(2).additive_matrix_finite(at::kHalf), UsageError);
  const at::Tensor additive = TriangularCausalMask(2).additive_matrix(at::kHalf);
  EXPECT_TRUE(std::isinf(additive[0][1].item<float>()));
}

}  // namespace
}  // namespace performer::references::fast_transformers
