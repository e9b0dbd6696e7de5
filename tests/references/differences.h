// SPDX-License-Identifier: Apache-2.0
// What the tests of several systems share.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace performer::references {

// The largest difference of two tensors of one shape, in double.
inline double gap(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return a.numel() == 0 ? 0 : (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace performer::references
