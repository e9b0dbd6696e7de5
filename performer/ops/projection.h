// SPDX-License-Identifier: Apache-2.0
// Random projections as tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>
#include <string>

namespace performer::ops {

// [heads, features, head_size] float32 on CPU, each head with a draw of its own, named by (seed, layer, head,
// redraw): the same on every machine and after every resume. kind: orthogonal, iid, hadamard, givens or
// simplex; row_norm: chi or sqrt-d (kernels/projection.h). Throws c10::ValueError for
// an unknown kind or norm and for sizes below 1.
at::Tensor draw_projection(const std::string& kind, const std::string& row_norm, int64_t heads,
                           int64_t features, int64_t head_size, int64_t seed, int64_t layer, int64_t redraw);

// The factors of a projection [..., M, D] whose rows are Hadamard draws: [..., M / D (rounded down), 4, D]
// float32, as FeatureMap::factors of kernels/favor.h defines them. Undefined where a matrix has none, on
// other devices than the CPU, and where the search does not pay for so many `tokens` of each matrix:
// factors_for_tokens() of kernels/projection.h says more. They are found in the matrix itself, so that a
// projection needs to be no more than one tensor, wherever it comes from.
at::Tensor hadamard_factors(const at::Tensor& projection,
                            int64_t tokens = std::numeric_limits<int64_t>::max());

}  // namespace performer::ops
