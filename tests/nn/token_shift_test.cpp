// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/token_shift.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"

namespace performer::nn::token_shift_test {
namespace {

// x[0][t][c] = 10 t + c + 1, so that every element says where it is from.
at::Tensor numbered(int64_t length, int64_t channels) {
  return (at::arange(length).unsqueeze(1) * 10 + at::arange(channels) + 1).to(at::kFloat).unsqueeze(0);
}

at::Tensor row(std::vector<float> values) {
  return at::tensor(values);
}

TEST(TokenShift, MovesGroupsAndLeavesTheRest) {
  const at::Tensor y = shift_tokens(numbered(3, 5), {0, 1})[0];  // groups of 2, one feature left over
  EXPECT_TRUE(at::equal(y[0], row({1, 2, 0, 0, 5})));
  EXPECT_TRUE(at::equal(y[1], row({11, 12, 3, 4, 15})));
  EXPECT_TRUE(at::equal(y[2], row({21, 22, 13, 14, 25})));
}

TEST(TokenShift, NegativeShiftsReadLaterTokens) {
  const at::Tensor y = shift_tokens(numbered(3, 3), {-1, 0, 1})[0];
  EXPECT_TRUE(at::equal(y[0], row({11, 2, 0})));
  EXPECT_TRUE(at::equal(y[1], row({21, 12, 3})));
  EXPECT_TRUE(at::equal(y[2], row({0, 22, 13})));
}

TEST(TokenShift, MaskedTokensAreZeroInShiftedGroupsOnly) {
  const at::Tensor mask = at::tensor({1, 0, 1}).to(at::kBool).unsqueeze(0);
  const at::Tensor y = shift_tokens(numbered(3, 2), {0, 1}, mask)[0];
  EXPECT_TRUE(at::equal(y[1], row({11, 2})));
  EXPECT_TRUE(at::equal(y[2], row({21, 0})));
}

TEST(TokenShift, ShiftsBeyondTheSequenceGiveZeros) {
  for (const int64_t shift : {-9, -2, 2, 9}) {
    EXPECT_TRUE(at::equal(shift_tokens(numbered(2, 1), {shift}), at::zeros({1, 2, 1}))) << shift;
  }
}

TEST(TokenShift, RefusesWhatDoesNotFit) {
  const at::Tensor x = numbered(3, 2);
  EXPECT_THROW(shift_tokens(x, {-1, 0, 1}), UsageError);
  EXPECT_THROW(shift_tokens(x, {}), UsageError);
  EXPECT_THROW(shift_tokens(x, {0, 1}, at::ones({1, 3})), UsageError);
  EXPECT_THROW(shift_tokens(x, {0, 1}, at::ones({1, 2}, at::kBool)), UsageError);
}

}  // namespace
}  // namespace performer::nn::token_shift_test
