// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/recompute.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <set>

namespace performer::nn {
namespace {

struct Fixture {
  torch::nn::Linear first{nullptr}, second{nullptr};
  torch::nn::Dropout dropout{0.5};
  at::Tensor x;
  int runs = 0;
  std::set<at::ScalarType> types;  // of the first layer's output

  Fixture() {
    torch::manual_seed(4);
    first = torch::nn::Linear(6, 8);
    second = torch::nn::Linear(8, 6);
    x = at::randn({5, 6}).requires_grad_();
  }
  at::Tensor body(const at::Tensor& input) {
    ++runs;
    const at::Tensor inner = first(input);
    types.insert(inner.scalar_type());
    return second(dropout(at::gelu(inner)));
  }
  std::vector<at::Tensor> parameters() const {
    return {first->weight, first->bias, second->weight, second->bias};
  }
  // Output and gradients of x and the parameters, with dropout from the seed given.
  std::vector<at::Tensor> run(bool recomputed, uint64_t seed) {
    torch::manual_seed(seed);
    const auto call = [this](const at::Tensor& input) { return body(input); };
    const at::Tensor y = recomputed ? recompute(call, x, parameters()) : body(x);
    const at::Tensor noise = at::rand({3});  // what is drawn afterwards must not change either
    std::vector<at::Tensor> inputs = parameters();
    inputs.push_back(x);
    auto result = torch::autograd::grad({y.to(at::kFloat).square().sum()}, inputs);
    result.push_back(y.detach());
    result.push_back(noise);
    result.push_back(at::rand({3}));
    return result;
  }
};

TEST(Recompute, GivesTheSameGradientsAndRandomNumbersWithDropout) {
  Fixture fixture;
  const auto plain = fixture.run(false, 11);
  EXPECT_EQ(fixture.runs, 1);
  const auto again = fixture.run(true, 11);
  EXPECT_EQ(fixture.runs, 3) << "the backward pass runs the body once more";
  ASSERT_EQ(plain.size(), again.size());
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(plain[i], again[i])) << i;
  const auto other = fixture.run(true, 12);
  EXPECT_FALSE(at::equal(plain[0], other[0])) << "dropout is off: the test shows nothing";
}

TEST(Recompute, RestoresAutocast) {
  Fixture fixture;
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  fixture.x.requires_grad_();
  const at::Tensor y = recompute([&](const at::Tensor& input) { return fixture.body(input); }, fixture.x,
                                 fixture.parameters());
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  y.to(at::kFloat).sum().backward();  // outside of autocast, as trainers do
  EXPECT_EQ(fixture.runs, 2);
  EXPECT_EQ(fixture.types, std::set<at::ScalarType>{at::kBFloat16})
      << "the second run was in another precision";
  EXPECT_TRUE(fixture.first->weight.grad().defined());
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
}

TEST(Recompute, SkipsFrozenInputs) {
  Fixture fixture;
  fixture.x = fixture.x.detach();
  fixture.first->weight.requires_grad_(false);
  const at::Tensor y = recompute([&](const at::Tensor& input) { return fixture.body(input); }, fixture.x,
                                 fixture.parameters());
  y.sum().backward();
  EXPECT_FALSE(fixture.first->weight.grad().defined());
  EXPECT_TRUE(fixture.first->bias.grad().defined());
}

}  // namespace
}  // namespace performer::nn
