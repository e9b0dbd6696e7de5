// SPDX-License-Identifier: Apache-2.0
// Initial weights as in protein_lm.
#pragma once

#include <torch/nn/modules/linear.h>

namespace performer::nn {

// Xavier-uniform weights (protein_lm modules.py); biases, where there are any, from N(0, bias_std^2).
void initialize_linear(torch::nn::Linear& linear, double bias_std);

inline constexpr double kDenseBiasStd = 1e-6;  // of the feed-forward parts and the output layer

}  // namespace performer::nn
