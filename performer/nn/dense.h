// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/modules/linear.h>

#include "performer/ops/linear.h"

namespace performer::nn {

// layer(x) for a layer that is not changed: LibTorch's own forward() is not const.
inline at::Tensor dense(const torch::nn::Linear& layer, const at::Tensor& x) {
  return ops::linear(x, layer->weight, layer->bias);
}

}  // namespace performer::nn
