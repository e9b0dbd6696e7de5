// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/initialize.h"

#include <torch/nn/init.h>

namespace performer::nn {

void initialize_linear(torch::nn::Linear& linear, double bias_std) {
  torch::nn::init::xavier_uniform_(linear->weight);
  if (linear->bias.defined()) torch::nn::init::normal_(linear->bias, 0, bias_std);
}

}  // namespace performer::nn
