// SPDX-License-Identifier: Apache-2.0
// Means of independent draws, with their standard errors.
#pragma once

#include <ATen/core/Tensor.h>

namespace performer::studies {

struct Mean {
  double value = 0;
  double error = 0;  // standard error; NaN for fewer than two values
};
// Of all elements, in double.
Mean mean_of(const at::Tensor& values);

}  // namespace performer::studies
