// SPDX-License-Identifier: Apache-2.0
// The token-wise half of a block.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <string>

namespace performer::references::performer_pytorch {

struct FeedForwardOptions {
  int64_t dim = 512;
  int64_t mult = 4;                 // inner size, in multiples of dim
  bool glu = false;                 // gated: act(a) * b with both halves from one matrix
  std::string activation = "gelu";  // a name of ops::activation; gelu is the exact form
  double dropout = 0;               // of the inner values, in training mode
  // Pieces of the sequence worked on one after the other: without gradients, or inside a reversible layer,
  // only one piece's inner values exist at a time. The result does not depend on it, but for dropout.
  int64_t chunks = 1;
};

// w2(dropout(act(w1 x))), or w2(dropout(act(a) * b)) with [a, b] = w1 x (GLU variants: Shazeer 2020, arXiv
// 2002.05202). w1 [dim mult (twice that when gated), dim] and w2 [dim, dim mult] with biases.
// Throws UsageError for sizes below 1, an unknown activation and dropout outside [0, 1).
class FeedForwardImpl : public torch::nn::Module {
 public:
  explicit FeedForwardImpl(const FeedForwardOptions& options);

  at::Tensor forward(const at::Tensor& x);  // [B, T, dim] -> same
  const FeedForwardOptions& options() const { return options_; }

 private:
  at::Tensor piece(const at::Tensor& x);

  FeedForwardOptions options_;
  torch::nn::Linear w1_{nullptr}, w2_{nullptr};
};
TORCH_MODULE(FeedForward);

}  // namespace performer::references::performer_pytorch
