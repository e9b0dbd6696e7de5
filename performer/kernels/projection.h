// SPDX-License-Identifier: Apache-2.0
// Random projections: the rows omega_f of the feature maps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace performer::kernels {

enum class ProjectionKind : uint8_t { orthogonal, iid };
enum class RowNorm : uint8_t { chi, sqrt_d };  // norm of a fresh N(0, I_d) vector, or exactly sqrt(d)

ProjectionKind projection_kind_from_name(const std::string& name);  // "orthogonal", "iid"; throws UsageError
RowNorm row_norm_from_name(const std::string& name);                // "chi", "sqrt-d"; throws UsageError

// Names one draw: the same values on every machine, rank and after every resume.
struct ProjectionKey {
  uint64_t seed = 0;
  uint32_t layer = 0, head = 0, redraw = 0;
};

// M x D matrix, row-major. `orthogonal`: blocks of D rows from a Haar-distributed orthogonal matrix
// (Householder QR of a Gaussian with the signs of R's diagonal moved into Q; without that E[Q_ii] is about
// -0.29 at D = 8 and FAVOR+ is biased), the last block cut; rows scaled by `norm`. `iid`: rows of N(0, I),
// rescaled only for sqrt_d. Source: Performers, arXiv 2009.14794, section 2.4 and appendix B.2. Throws
// UsageError unless features >= 1 and head_size >= 1.
std::vector<float> draw_projection(ProjectionKind kind, RowNorm norm, int64_t features, int64_t head_size,
                                   const ProjectionKey& key);

// Haar-distributed D x D orthogonal matrix, row-major, from the values of the stream named by `key` and
// `block`.
std::vector<double> haar_orthogonal(int64_t size, const ProjectionKey& key, uint32_t block);

}  // namespace performer::kernels
