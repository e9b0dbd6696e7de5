// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/norms.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "performer/base/error.h"

namespace performer::references::performer_pytorch {
namespace {

TEST(ScaleNorm, GivesRowsOneLengthAndKeepsZeroRows) {
  const at::Tensor x = at::tensor({3.0, 4.0, 0.0, 0.0, 6e-6, 8e-6}, at::kDouble).view({3, 2});
  const at::Tensor y = scale_norm(x, at::full({1}, 2.0, at::kDouble));
  // The last row's length 1e-5 is not below the clamp; a shorter one is divided by the clamp.
  const at::Tensor expected = at::tensor({1.2, 1.6, 0.0, 0.0, 1.2, 1.6}, at::kDouble).view({3, 2});
  EXPECT_TRUE(at::allclose(y, expected, 1e-12, 1e-12)) << y;
  const at::Tensor small = scale_norm(at::full({1, 1}, 1e-6, at::kDouble), at::ones({1}, at::kDouble));
  EXPECT_NEAR(small.item<double>(), 0.1, 1e-12);
}

TEST(ScaleNorm, HasFiniteGradientsAtZero) {
  const at::Tensor x = at::zeros({2, 3}, at::kDouble).requires_grad_();
  scale_norm(x, at::ones({1}, at::kDouble)).sum().backward();
  EXPECT_TRUE(at::allclose(x.grad(), at::full({2, 3}, 1e5, at::kDouble)));  // the clamp's: 1 / epsilon
}

TEST(BranchNorm, LayerNormStandsBeforeTheBranch) {
  BranchNorm norm("layer-norm", 4);
  const at::Tensor x = at::tensor({1.0f, 2.0f, 3.0f, 6.0f});
  const at::Tensor y = norm->before(x);
  const double deviation = std::sqrt(3.5 + 1e-5);  // of mean 3
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(y[i].item<double>(), (x[i].item<double>() - 3) / deviation, 1e-6);
  }
  EXPECT_TRUE(at::equal(norm->after(x), x));
  EXPECT_EQ(norm->named_parameters().keys(), (std::vector<std::string>{"weight", "bias"}));
}

TEST(BranchNorm, GainsStartAsInTheReference) {
  const auto gain = [](const char* kind) {
    return BranchNorm(kind, 16)->named_parameters()["gain"].item<double>();
  };
  EXPECT_DOUBLE_EQ(gain("scale-norm"), 1);
  EXPECT_FLOAT_EQ(gain("rezero"), 1e-3);
}

TEST(BranchNorm, ReZeroStandsAfterTheBranch) {
  BranchNorm norm("rezero", 4);
  const at::Tensor x = at::randn({2, 4});
  EXPECT_TRUE(at::equal(norm->before(x), x));
  const at::NoGradGuard no_grad;
  norm->parameters()[0].fill_(-3);
  EXPECT_TRUE(at::equal(norm->after(x), -3 * x));
}

TEST(BranchNorm, RefusesWhatItDoesNotKnow) {
  EXPECT_THROW(BranchNorm("batch-norm", 4), UsageError);
  EXPECT_THROW(BranchNorm("rezero", 0), UsageError);
}

}  // namespace
}  // namespace performer::references::performer_pytorch
