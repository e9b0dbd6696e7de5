// SPDX-License-Identifier: Apache-2.0
// Dense-exponential random features: what second moments of queries and keys make of a projection. Private to
// this layer; feature_maps.h is its public side.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "performer/ops/feature_maps.h"

namespace performer::ops {

// Leading dimensions are those of the statistics: [H, ...] or [N, H, ...]. No gradient reaches it.
struct DenseExponential {
  at::Tensor projection;                // [..., M, D] float32
  at::Tensor offset;                    // [..., M] float32
  at::Tensor query_matrix, key_matrix;  // aderf: [..., D, D] float64
  at::Tensor query_factor, key_factor;  // saderf: [..., D] float64
  at::Tensor log_constant;              // [...] float64: log D of one side
};

// The minimiser of log E over the data of the second moment of GERF features with scalar A: with s = E|q +
// k|^2 / D, A = (1 - 2s - sqrt((2s + 1)^2 + 8s)) / 16 (2205.15317). Element-wise; also the solution for each
// eigenvalue of sderf (2302.00787).
at::Tensor optimal_a(const at::Tensor& moment_per_dimension);

// map: oprf, sderf, aderf or saderf; projection [H or 1, M, D].
DenseExponential dense_exponential(const std::string& map, const at::Tensor& projection,
                                   const MapStatistics& statistics);

}  // namespace performer::ops
