// SPDX-License-Identifier: Apache-2.0
// What keeps the size of a residual branch in check: layer norm, scale norm or ReZero.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>

namespace performer::references::performer_pytorch {

inline constexpr double kScaleNormEpsilon = 1e-5;

// gain x / max(|x|, epsilon) over the last dimension: ScaleNorm (Nguyen and Salazar 2019, arXiv 1910.05895).
// The clamp, as in performer-pytorch 1.1.4, gives zero rows zero instead of NaN; gain has one element.
at::Tensor scale_norm(const at::Tensor& x, const at::Tensor& gain, double epsilon = kScaleNormEpsilon);

// Around a residual branch, x + after(branch(before(x))):
//   layer-norm  before: layer norm with `weight` and `bias` [dim], epsilon 1e-5
//   scale-norm  before: scale_norm with `gain` [1], which starts at 1 (its paper: sqrt(dim))
//   rezero      after: times `gain` [1], which starts at 1e-3 (its paper, Bachlechner et al. 2020, arXiv
//               2003.04887: 0)
// `epsilon` is the clamp of scale-norm. Throws UsageError for another kind or dim < 1.
class BranchNormImpl : public torch::nn::Module {
 public:
  BranchNormImpl(const std::string& kind, int64_t dim, double epsilon = kScaleNormEpsilon);

  at::Tensor before(const at::Tensor& x) const;  // [..., dim] -> same
  at::Tensor after(const at::Tensor& y) const;   // [..., dim] -> same

 private:
  enum class Kind { layer, scale, rezero };
  Kind kind_;
  int64_t dim_;
  double epsilon_;
  at::Tensor weight_, bias_, gain_;  // parameters; what the kind does not use is undefined
};
TORCH_MODULE(BranchNorm);

}  // namespace performer::references::performer_pytorch
