// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/gradients.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/distributed/ranks.h"

namespace performer::distributed {
namespace {

using testing::expect_no_errors;
using testing::run_ranks;

struct Model {
  std::vector<at::Tensor> parameters;
  Model() {
    for (const int64_t size : {3, 70, 5, 1, 40}) {
      parameters.push_back(at::arange(size, at::kFloat).add_(size).requires_grad_());
    }
    parameters.push_back(at::ones({2, 3}, at::kDouble).requires_grad_());
    parameters.push_back(at::ones({6}, at::kBFloat16).requires_grad_());
    parameters.push_back(at::ones({4}).requires_grad_());  // never used
  }
  // Every parameter but the last times `factor`, and the third twice.
  at::Tensor loss(double factor) const {
    at::Tensor sum = parameters[2].sum().to(at::kDouble);
    for (size_t i = 0; i + 1 < parameters.size(); ++i)
      sum = sum + factor * parameters[i].square().sum().to(at::kDouble);
    return sum;
  }
};

void expect_sums(const Model& found, double factor, double times) {
  for (size_t i = 0; i + 1 < found.parameters.size(); ++i) {
    const at::Tensor& parameter = found.parameters[i];
    at::Tensor expected = 2 * factor * parameter.detach().to(at::kDouble);
    if (i == 2) expected = expected + times;
    EXPECT_TRUE(at::allclose(parameter.grad().to(at::kDouble), expected)) << "parameter " << i;
    EXPECT_EQ(parameter.grad().scalar_type(), parameter.scalar_type());
  }
  EXPECT_FALSE(found.parameters.back().grad().defined());
}

TEST(GradientSum, SumsOverRanks) {
  for (const int64_t bucket : {1, 200, 1 << 20}) {
    expect_no_errors(run_ranks(3, [&](Communicator& ranks) {
      const Model model;
      GradientSum sum(ranks, model.parameters, bucket);
      for (int step = 0; step < 2; ++step) {
        for (const at::Tensor& parameter : model.parameters) parameter.mutable_grad().reset();
        torch::autograd::backward({model.loss(ranks.rank())}, {});  // accumulates
        sum.begin();
        torch::autograd::backward({model.loss(1)}, {});
        sum.finish();
        expect_sums(model, 0 + 1 + 2 + 3, 6);
      }
    }));
  }
}

TEST(GradientSum, RanksWithoutABatchCountAsZero) {
  expect_no_errors(run_ranks(2, [](Communicator& ranks) {
    const Model model;
    GradientSum sum(ranks, model.parameters, 100);
    sum.begin();
    if (ranks.rank() == 0) torch::autograd::backward({model.loss(4)}, {});
    sum.finish();
    expect_sums(model, 4, 1);
  }));
}

// Without begin() any number of backward passes may come.
TEST(GradientSum, WithoutBeginTheLastPassIsNotKnown) {
  expect_no_errors(run_ranks(2, [](Communicator& ranks) {
    const Model model;
    GradientSum sum(ranks, model.parameters);
    for (int pass = 0; pass < 3; ++pass) torch::autograd::backward({model.loss(1)}, {});
    EXPECT_EQ(ranks.traffic().exchanges, 0);
    sum.finish();
    expect_sums(model, 6, 6);
  }));
}

TEST(GradientSum, SendsBeforeTheBackwardPassEnds) {
  expect_no_errors(run_ranks(2, [](Communicator& ranks) {
    const Model model;
    GradientSum sum(ranks, model.parameters, 1);
    sum.begin();
    torch::autograd::backward({model.parameters[6].square().sum() + model.parameters[5].sum()}, {});
    EXPECT_EQ(ranks.traffic().exchanges, 0);  // the last parameter comes first, and has no gradient yet
    torch::autograd::backward({model.parameters[7].sum()}, {});
    EXPECT_EQ(ranks.traffic().exchanges, 3);
    EXPECT_ANY_THROW(torch::autograd::backward({model.parameters[7].sum()}, {}));
    sum.finish();
  }));
}

TEST(GradientSum, OneRankIsLeftAlone) {
  const auto ranks = single_rank();
  const Model model;
  GradientSum sum(*ranks, model.parameters);
  sum.begin();
  for (int pass = 0; pass < 2; ++pass) torch::autograd::backward({model.loss(1)}, {});
  sum.finish();
  expect_sums(model, 2, 2);
}

}  // namespace
}  // namespace performer::distributed
