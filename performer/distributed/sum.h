// SPDX-License-Identifier: Apache-2.0
// A sum over ranks that gradients pass through.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "performer/distributed/communicator.h"

namespace performer::distributed {

// The sum of what all ranks have, on each of them; contiguous, float32 or float64, of the same shape on all.
// The gradient of each rank's own is the sum of those that the ranks have for the result, so that all ranks
// must run the backward pass, also one whose loss does not depend on it: by a factor of 0. Throws what
// Communicator throws.
at::Tensor differentiable_sum(const at::Tensor& own, const std::shared_ptr<Communicator>& ranks);

}  // namespace performer::distributed
