// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/norms.h"

#include <ATen/ATen.h>

#include "performer/base/error.h"

namespace performer::references::performer_pytorch {

at::Tensor scale_norm(const at::Tensor& x, const at::Tensor& gain, double epsilon) {
  return x / at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, /*keepdim=*/true).clamp_min(epsilon) * gain;
}

BranchNormImpl::BranchNormImpl(const std::string& kind, int64_t dim, double epsilon)
    : dim_(dim), epsilon_(epsilon) {
  check<UsageError>(dim >= 1, "a norm needs a size of at least 1, not {}", dim);
  if (kind == "layer-norm") {
    kind_ = Kind::layer;
    weight_ = register_parameter("weight", at::ones({dim}));
    bias_ = register_parameter("bias", at::zeros({dim}));
  } else if (kind == "scale-norm") {
    kind_ = Kind::scale;
    gain_ = register_parameter("gain", at::full({1}, 1.0, at::kFloat));
  } else if (kind == "rezero") {
    kind_ = Kind::rezero;
    gain_ = register_parameter("gain", at::full({1}, 1e-3, at::kFloat));
  } else {
    throw UsageError(fmt::format("norm '{}' is not known; choose layer-norm, scale-norm or rezero", kind));
  }
}

at::Tensor BranchNormImpl::before(const at::Tensor& x) const {
  switch (kind_) {
    case Kind::layer:
      return at::layer_norm(x, {dim_}, weight_, bias_, 1e-5);
    case Kind::scale:
      return scale_norm(x, gain_, epsilon_);
    case Kind::rezero:
      break;
  }
  return x;
}

at::Tensor BranchNormImpl::after(const at::Tensor& y) const {
  return kind_ == Kind::rezero ? y * gain_ : y;
}

}  // namespace performer::references::performer_pytorch
