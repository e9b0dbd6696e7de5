// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/reversible.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <set>

#include "performer/base/error.h"
#include "performer/ops/dropout.h"

namespace performer::nn::reversible_test {
namespace {

constexpr int64_t kWidth = 6;

// Layers with dropout, a context that is itself computed, and one matrix that all layers share.
struct Fixture {
  std::vector<at::Tensor> f_weights, g_weights;
  at::Tensor shared, context_source, x;
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> activations;
  std::set<at::ScalarType> types;
  double dropout;

  explicit Fixture(int64_t depth, at::ScalarType type = at::kDouble, double dropout = 0.4)
      : dropout(dropout) {
    torch::manual_seed(8);
    const auto matrix = [&] { return (at::randn({kWidth, kWidth}, type) * 0.4).requires_grad_(); };
    for (int64_t i = 0; i < depth; ++i) {
      f_weights.push_back(matrix());
      g_weights.push_back(matrix());
    }
    shared = matrix();
    context_source = at::randn({1, kWidth}, type).requires_grad_();
    x = at::randn({5, kWidth}, type).requires_grad_();
  }
  at::Tensor branch(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& context) {
    const at::Tensor sum = at::matmul(input, weight) + context;  // which the gradient of GELU needs
    activations.emplace_back(sum.storage().getWeakStorageImpl());
    types.insert(at::matmul(input, weight).scalar_type());
    return at::matmul(ops::dropout(at::gelu(sum), dropout), shared);
  }
  std::vector<ReversibleLayer> layers(const at::Tensor& context) {
    std::vector<ReversibleLayer> result;
    for (size_t i = 0; i < f_weights.size(); ++i) {
      const at::Tensor f = f_weights[i], g = g_weights[i];
      result.push_back({[this, f, context](const at::Tensor& in) { return branch(in, f, context); },
                        [this, g, context](const at::Tensor& in) { return branch(in, g, context); },
                        {f, g, shared, context}});
    }
    return result;
  }
  at::Tensor loss(bool reconstruct) {
    const at::Tensor context = context_source * 2;
    const Streams y = reversible_sequence(layers(context), {x, x}, reconstruct);
    return (y.first + y.second).square().sum();
  }
  std::vector<at::Tensor> wanted() const {
    std::vector<at::Tensor> all{x, shared, context_source};
    all.insert(all.end(), f_weights.begin(), f_weights.end());
    all.insert(all.end(), g_weights.begin(), g_weights.end());
    return all;
  }
  // Loss, gradients, and a number drawn afterwards.
  std::vector<at::Tensor> run(bool reconstruct, uint64_t seed) {
    torch::manual_seed(seed);
    const at::Tensor value = loss(reconstruct);
    std::vector<at::Tensor> result = torch::autograd::grad({value}, wanted());
    result.push_back(value.detach());
    result.push_back(at::rand({1}));
    return result;
  }
  int64_t alive() const {
    int64_t count = 0;
    for (const auto& activation : activations) count += activation.expired() ? 0 : 1;
    return count;
  }
};

TEST(Reversible, GradientsEqualThePlainOnesWithDropout) {
  Fixture fixture(5);
  const auto plain = fixture.run(false, 21), reversed = fixture.run(true, 21);
  ASSERT_EQ(plain.size(), reversed.size());
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_TRUE(at::allclose(reversed[i], plain[i], 1e-11, 1e-11)) << i;
  }
  EXPECT_TRUE(at::equal(plain.back(), reversed.back())) << "the backward pass moved the generator";
  const auto other = fixture.run(true, 22);
  EXPECT_FALSE(at::allclose(other[0], plain[0], 1e-3, 1e-3)) << "dropout is off: the test shows nothing";
}

TEST(Reversible, KeepsNoActivations) {
  for (const int64_t depth : {2, 6}) {
    Fixture plain(depth), reversed(depth);
    const at::Tensor kept = plain.loss(false), dropped = reversed.loss(true);
    EXPECT_EQ(plain.alive(), 2 * depth);
    EXPECT_EQ(reversed.alive(), 0);
    dropped.backward();
    EXPECT_EQ(reversed.alive(), 0);
    EXPECT_EQ(static_cast<int64_t>(reversed.activations.size()), 4 * depth) << "each branch runs twice";
  }
}

TEST(Reversible, NoticesWhatChangedBeforeTheBackwardPass) {
  Fixture fixture(2);
  const at::Tensor value = fixture.loss(true);
  {
    const at::NoGradGuard no_grad;
    fixture.g_weights[0].mul_(2);
  }
  EXPECT_THROW(value.backward(), c10::Error);
}

TEST(Reversible, RefusesGradientsOfGradients) {
  Fixture fixture(2);
  const at::Tensor value = fixture.loss(true);
  EXPECT_THROW(torch::autograd::grad({value}, {fixture.x}, {}, true, /*create_graph=*/true), UsageError);
}

TEST(Reversible, WorksWithoutGradientsAndWithFrozenParts) {
  Fixture fixture(3, at::kDouble, 0);
  const double expected = fixture.loss(false).item<double>();
  {
    const at::NoGradGuard no_grad;
    const at::Tensor value = fixture.loss(true);
    EXPECT_FALSE(value.requires_grad());
    EXPECT_NEAR(value.item<double>(), expected, 1e-12 * expected);
  }
  const auto all = fixture.run(false, 1);
  fixture.x.requires_grad_(false);
  fixture.f_weights[1].requires_grad_(false);
  fixture.loss(true).backward();
  EXPECT_FALSE(fixture.x.grad().defined());
  EXPECT_FALSE(fixture.f_weights[1].grad().defined());
  EXPECT_TRUE(at::allclose(fixture.shared.grad(), all[1], 1e-10, 1e-10));
}

TEST(Reversible, OneStreamMayBeUnused) {
  Fixture fixture(2);
  const auto gradient = [&](bool reconstruct) {
    torch::manual_seed(5);
    const Streams y =
        reversible_sequence(fixture.layers(fixture.context_source), {fixture.x, fixture.x}, reconstruct);
    return torch::autograd::grad({y.first.sum()}, {fixture.x})[0];
  };
  EXPECT_TRUE(at::allclose(gradient(true), gradient(false), 1e-11, 1e-11));
}

TEST(Reversible, RunsAgainInTheSamePrecision) {
  Fixture fixture(2, at::kFloat);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const at::Tensor value = fixture.loss(true);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  value.backward();  // outside of autocast, as trainers do
  EXPECT_EQ(fixture.types, std::set<at::ScalarType>{at::kBFloat16})
      << "the second run was in another precision";
  EXPECT_TRUE(fixture.shared.grad().defined());
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
}

}  // namespace
}  // namespace performer::nn::reversible_test
