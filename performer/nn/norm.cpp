// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/norm.h"

#include <ATen/ATen.h>

#include "performer/ops/block.h"

namespace performer::nn {

NormImpl::NormImpl(const ModelConfig& model) : epsilon_(model.norm_epsilon) {
  weight_ = register_parameter("weight", at::ones({model.width}));
  if (model.norm_type == "layer") bias_ = register_parameter("bias", at::zeros({model.width}));
}

// In the precision of the gain: squares of bfloat16 numbers would lose most of their digits.
at::Tensor NormImpl::rms(const at::Tensor& x) const {
  const at::Tensor precise = x.to(weight_.scalar_type());
  const at::Tensor mean_square = precise.square().mean(-1, /*keepdim=*/true);
  return precise * (mean_square + epsilon_).rsqrt() * weight_;
}

at::Tensor NormImpl::forward(const at::Tensor& x) const {
  return bias_.defined() ? at::layer_norm(x, weight_.sizes(), weight_, bias_, epsilon_) : rms(x);
}

at::Tensor NormImpl::forward_as(const at::Tensor& x, at::ScalarType type) const {
  return bias_.defined() ? ops::layer_norm(x, weight_, bias_, epsilon_, type) : rms(x).to(type);
}

}  // namespace performer::nn
