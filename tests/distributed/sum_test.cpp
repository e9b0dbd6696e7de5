// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/sum.h"

#include <ATen/ATen.h>

#include "tests/distributed/ranks.h"

namespace performer::distributed {
namespace {

// Ranks r = 0, 1, 2 hold x_r and have the loss (r w s²).sum() of the sum s of all x: its gradient for each x
// is that of the three losses together, 2 w (0 + 1 + 2) s.
TEST(DifferentiableSum, GradientsComeFromAllRanks) {
  testing::expect_no_errors(testing::run_ranks(3, [](Communicator& ranks) {
    const std::shared_ptr<Communicator> group = ranks.group("all-of-them", 0, 1, 3);
    const at::Tensor numbers = at::arange(6, at::kDouble).view({2, 3});
    const at::Tensor own = (numbers + 10 * ranks.rank()).set_requires_grad(true);
    const at::Tensor weights = at::tensor({1.0, -2.0, 0.5}, at::kDouble);
    const at::Tensor sum = differentiable_sum(own.transpose(0, 1), group);
    const at::Tensor expected = 3 * numbers + 30;
    EXPECT_TRUE(at::equal(sum, expected.transpose(0, 1)));
    (ranks.rank() * weights.unsqueeze(1) * sum.square()).sum().backward();
    EXPECT_TRUE(at::allclose(own.grad(), 6 * weights * expected, 1e-14)) << own.grad();
  }));
}

}  // namespace
}  // namespace performer::distributed
