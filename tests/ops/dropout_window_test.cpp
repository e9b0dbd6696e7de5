// SPDX-License-Identifier: Apache-2.0
// Dropout of chunks against dropout of the batch that they were cut from.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/utils.h>

#include "performer/ops/dropout.h"

namespace performer::ops {
namespace {

struct Dropped {
  at::Tensor output, gradient, drawn_afterwards;
};

// One call, or one a chunk of `chunk` tokens, each from the generator's state before the first.
Dropped drop(const at::Tensor& x, int64_t chunk) {
  const at::Tensor input = x.detach().requires_grad_();
  std::vector<at::Tensor> outputs;
  if (chunk == 0) {
    at::manual_seed(3);
    outputs.push_back(dropout(input, 0.4));
  }
  for (int64_t begin = 0; chunk > 0 && begin < x.size(1); begin += chunk) {
    at::manual_seed(3);
    const int64_t size = std::min(chunk, x.size(1) - begin);
    outputs.push_back(dropout(input.narrow(1, begin, size), 0.4, TokenWindow{begin, x.size(1)}));
  }
  const at::Tensor output = at::cat(outputs, 1);
  const at::Tensor gradient = torch::autograd::grad({(output * x).sum()}, {input})[0];
  return {output.detach(), gradient, at::rand({2})};
}

TEST(DropoutWindow, ChunksPutTogetherAreTheWholeBitForBit) {
  const std::vector<std::vector<int64_t>> shapes = {{1, 50, 24}, {3, 37, 5}, {2, 41}, {2, 9, 4, 3}};
  for (const std::vector<int64_t>& shape : shapes) {
    const at::Tensor x = at::randn(shape) + 5;  // nothing is zero by itself
    const Dropped whole = drop(x, 0);
    ASSERT_GT(whole.output.eq(0).sum().item<int64_t>(), 0);
    for (const int64_t chunk : {1, 4, 7, 16, 36, 64}) {
      const Dropped parts = drop(x, chunk);
      EXPECT_TRUE(at::equal(parts.output, whole.output)) << at::IntArrayRef(shape) << " by " << chunk;
      EXPECT_TRUE(at::equal(parts.gradient, whole.gradient)) << at::IntArrayRef(shape) << " by " << chunk;
      EXPECT_TRUE(at::equal(parts.drawn_afterwards, whole.drawn_afterwards)) << "one number a call";
    }
  }
}

TEST(DropoutWindow, LargeEnoughForSeveralThreads) {
  const at::Tensor x = at::ones({3, 700, 64});
  EXPECT_TRUE(at::equal(drop(x, 300).output, drop(x, 0).output));
}

TEST(DropoutWindow, WithProbabilityZeroIsTheInput) {
  const at::Tensor x = at::randn({2, 3, 4});
  EXPECT_TRUE(at::equal(dropout(x, 0, TokenWindow{1, 4}), x));
}

TEST(Dropout, DoublesStayDoublesUnderTheMaskOfFloats) {
  const at::Tensor x = at::randn({40, 7}, at::kDouble) + 5;
  at::manual_seed(3);
  const at::Tensor in_double = dropout(x, 0.3);
  at::manual_seed(3);
  const at::Tensor kept = dropout(x.to(at::kFloat), 0.3).ne(0);
  EXPECT_TRUE(in_double.equal((x / 0.7).masked_fill(~kept, 0)));
  EXPECT_FALSE(kept.all().item<bool>() || !kept.any().item<bool>());
}

TEST(DropoutWindow, RefusesTokensOutsideOfTheRows) {
  using ::testing::HasSubstr;
  const auto message = [](const at::Tensor& x, const TokenWindow& window) -> std::string {
    try {
      dropout(x, 0.5, window);
    } catch (const c10::ValueError& error) {
      return error.what_without_backtrace();
    }
    return "";
  };
  EXPECT_EQ(message(at::ones({2, 3, 4}), {5, 8}), "");
  EXPECT_THAT(message(at::ones({2, 3, 4}), {6, 8}),
              HasSubstr("rows of 8, found 3 dimensions and the tokens 6 to 9"));
  EXPECT_THAT(message(at::ones({2, 3, 4}), {-1, 8}), HasSubstr("-1"));
  EXPECT_THAT(message(at::ones({3}), {0, 8}), HasSubstr("1 dimensions"));
}

}  // namespace
}  // namespace performer::ops
