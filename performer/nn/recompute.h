// SPDX-License-Identifier: Apache-2.0
// Activation checkpointing: trade a second forward pass for the memory of the first one's intermediates.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace performer::nn {

// body(x), keeping only x: the backward pass runs `body` again with the same random numbers (dropout) and the
// same autocast setting. `parameters` are the tensors other than x that `body` uses and that want gradients;
// it must use no others, have no side effects, and give the same result on both runs.
at::Tensor recompute(const std::function<at::Tensor(const at::Tensor&)>& body, const at::Tensor& x,
                     const std::vector<at::Tensor>& parameters);

}  // namespace performer::nn
