// SPDX-License-Identifier: Apache-2.0
// The norm of a residual stream: layer norm, or root-mean-square norm.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include "performer/nn/config.h"

namespace performer::nn {

// model.norm_type = layer: at::layer_norm with a gain and a bias. rms: x / sqrt(mean(x^2) + epsilon) times a
// gain, without mean and bias (Zhang & Sennrich 2019, arXiv 1910.07467), as LLaMA has it. Over the last
// dimension, of model.width. Parameters `weight` (ones) and, for layer, `bias` (zeros).
class NormImpl : public torch::nn::Module {
 public:
  explicit NormImpl(const ModelConfig& model);

  // As LibTorch computes it, autocast included.
  at::Tensor forward(const at::Tensor& x) const;
  // In one pass where there is one (ops::layer_norm), rounded to `type`.
  at::Tensor forward_as(const at::Tensor& x, at::ScalarType type) const;

 private:
  at::Tensor rms(const at::Tensor& x) const;

  double epsilon_;
  at::Tensor weight_, bias_;  // [width]; no bias for rms
};
TORCH_MODULE(Norm);

}  // namespace performer::nn
