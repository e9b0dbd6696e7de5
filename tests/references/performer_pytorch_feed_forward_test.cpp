// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/feed_forward.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "performer/base/error.h"

namespace performer::references::performer_pytorch {
namespace {

FeedForwardOptions options_of(bool glu, int64_t chunks = 1, double dropout = 0) {
  FeedForwardOptions options;
  options.dim = 6;
  options.mult = 3;
  options.glu = glu;
  options.chunks = chunks;
  options.dropout = dropout;
  return options;
}

TEST(FeedForward, GatesTheFirstHalfWithTheSecond) {
  FeedForward part(options_of(true));
  const auto p = part->named_parameters();
  EXPECT_EQ(p["w1.weight"].sizes(), (at::IntArrayRef{36, 6}));
  EXPECT_EQ(p["w2.weight"].sizes(), (at::IntArrayRef{6, 18}));
  const at::Tensor x = at::randn({2, 5, 6});
  const at::Tensor inner = at::linear(x, p["w1.weight"], p["w1.bias"]);
  const at::Tensor a = inner.narrow(2, 0, 18), b = inner.narrow(2, 18, 18);
  // GELU by its definition: a times the normal distribution function.
  const at::Tensor gelu = a * 0.5 * (1 + at::erf(a / std::sqrt(2.0)));
  EXPECT_TRUE(at::allclose(part(x), at::linear(gelu * b, p["w2.weight"], p["w2.bias"]), 1e-5, 1e-6));
}

TEST(FeedForward, ChunksDoNotChangeTheResult) {
  for (const int64_t chunks : {2, 3, 7, 20}) {
    torch::manual_seed(3);
    FeedForward whole(options_of(false));
    torch::manual_seed(3);
    FeedForward split(options_of(false, chunks));
    const at::Tensor x = at::randn({2, 7, 6});
    EXPECT_TRUE(at::allclose(whole(x), split(x), 1e-6, 1e-7)) << chunks;
  }
}

TEST(FeedForward, DropsInTrainingOnly) {
  FeedForward part(options_of(false, 1, 0.5));
  const at::Tensor x = at::randn({1, 4, 6});
  EXPECT_FALSE(at::equal(part(x), part(x)));
  part->eval();
  EXPECT_TRUE(at::equal(part(x), part(x)));
}

TEST(FeedForward, RefusesImpossibleOptions) {
  FeedForwardOptions options;
  options.activation = "gelou";
  EXPECT_THROW(FeedForward{options}, c10::ValueError);
  options = {};
  options.chunks = 0;
  EXPECT_THROW(FeedForward{options}, UsageError);
  options = {};
  options.dropout = 1;
  EXPECT_THROW(FeedForward{options}, UsageError);
}

}  // namespace
}  // namespace performer::references::performer_pytorch
