// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/feed_forward.h"

#include <ATen/ATen.h>

#include <vector>

#include "performer/base/error.h"
#include "performer/ops/composed.h"
#include "performer/ops/dropout.h"

namespace performer::references::performer_pytorch {

FeedForwardImpl::FeedForwardImpl(const FeedForwardOptions& options) : options_(options) {
  check<UsageError>(options.dim >= 1 && options.mult >= 1 && options.chunks >= 1,
                    "a feed-forward part needs dim, mult and chunks of at least 1, not {}, {} and {}",
                    options.dim, options.mult, options.chunks);
  check<UsageError>(options.dropout >= 0 && options.dropout < 1,
                    "dropout of the feed-forward part must be in [0, 1), not {}", options.dropout);
  ops::activation(options.activation, at::zeros({1}));  // throws for an unknown name
  const int64_t inner = options.dim * options.mult;
  w1_ = register_module("w1", torch::nn::Linear(options.dim, options.glu ? 2 * inner : inner));
  w2_ = register_module("w2", torch::nn::Linear(inner, options.dim));
}

at::Tensor FeedForwardImpl::piece(const at::Tensor& x) {
  at::Tensor inner = w1_(x);
  if (options_.glu) {
    const std::vector<at::Tensor> halves = inner.chunk(2, -1);
    inner = ops::activation(options_.activation, halves[0]) * halves[1];
  } else {
    inner = ops::activation(options_.activation, inner);
  }
  return w2_(is_training() ? ops::dropout(inner, options_.dropout) : inner);
}

at::Tensor FeedForwardImpl::forward(const at::Tensor& x) {
  if (options_.chunks == 1) return piece(x);
  std::vector<at::Tensor> pieces;
  for (const at::Tensor& part : x.chunk(options_.chunks, 1)) pieces.push_back(piece(part));
  return at::cat(pieces, 1);
}

}  // namespace performer::references::performer_pytorch
