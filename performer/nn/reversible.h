// SPDX-License-Identifier: Apache-2.0
// Reversible layers: their inputs can be computed from their outputs, so activations need not be kept.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace performer::nn {

// y1 = x1 + f(x2), y2 = x2 + g(y1). Source: RevNets (Gomez et al. 2017, arXiv 1707.04585), as in Reformer
// (arXiv 2001.04451, section 3).
struct ReversibleLayer {
  std::function<at::Tensor(const at::Tensor&)> f, g;
  // Every tensor besides their arguments that f and g read: parameters, buffers, a context. Those that want
  // gradients get them, and all are guarded against changes between the forward and the backward pass.
  std::vector<at::Tensor> used;
};

struct Streams {
  at::Tensor first, second;
};

// All layers one after the other. The backward pass goes through them from the last to the first: it computes
// x2 = y2 - g(y1) and x1 = y1 - f(x2) again, with the random numbers (dropout) and the autocast setting of
// the first run, so that activations of one layer exist at a time, whatever the depth. Reconstructed inputs
// differ from the first ones by rounding, and so do gradients: in double by about 1e-15 a layer.
//
// f and g must give the same result on both runs and have no side effects. Gradients of gradients are refused
// (UsageError in the backward pass); LibTorch reports a tensor of `used` that was changed in place meanwhile.
//
// With `reconstruct` false, or without gradients, the same computation by ordinary autograd, which keeps all
// activations and saves the second run.
Streams reversible_sequence(const std::vector<ReversibleLayer>& layers, const Streams& x,
                            bool reconstruct = true);

}  // namespace performer::nn
