// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/statistics.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

namespace performer::studies {

Mean mean_of(const at::Tensor& values) {
  const at::Tensor precise = values.to(at::kDouble);
  Mean mean{precise.mean().item<double>(), std::numeric_limits<double>::quiet_NaN()};
  if (values.numel() >= 2) {
    mean.error = precise.std().item<double>() / std::sqrt(static_cast<double>(values.numel()));
  }
  return mean;
}

}  // namespace performer::studies
