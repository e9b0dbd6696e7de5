// SPDX-License-Identifier: Apache-2.0
// Random projections: the rows omega_f of the feature maps.
//
// A row of every kind has the direction of a uniformly distributed vector (exactly, unless said otherwise)
// and a length of its own; what differs is how the directions of one block depend on each other:
//
//   iid          not at all: rows of N(0, I)
//   orthogonal   rows of a Haar-distributed orthogonal D x D matrix (Performers, arXiv 2009.14794, section
//                2.4 and appendix B.2)
//   simplex      vertices of a regular simplex, pairwise cosine -1/(D-1), turned by a Haar-distributed
//                matrix: the weight-independent coupling of least variance for positive features (SimRF,
//                arXiv 2301.13856). At D = 1, where there is no simplex, as orthogonal
//   givens       rows of a product of random rotations of coordinate pairs: orthogonal exactly, Haar nearly
//                (givens_orthogonal below)
//   hadamard     rows of (H D_3)(H D_2)(H D_1), H the Walsh-Hadamard matrix and D_i random signs: Haar
//                nearly, and only roughly where D is small or no power of two (hadamard_rows below)
//
// All are stored as plain matrices. Where D is a power of two, hadamard_factors() finds the factors of a
// hadamard projection again, and products with it take D log D additions instead of D^2 multiplications for
// each D rows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "performer/base/executor.h"
#include "performer/base/philox.h"

namespace performer::kernels {

enum class ProjectionKind : uint8_t { orthogonal, iid, hadamard, givens, simplex };
enum class RowNorm : uint8_t { chi, sqrt_d };  // norm of a fresh N(0, I_d) vector, or exactly sqrt(d)

// "orthogonal", "iid", "hadamard", "givens", "simplex"; throws UsageError with these names for another.
ProjectionKind projection_kind_from_name(const std::string& name);
RowNorm row_norm_from_name(const std::string& name);  // "chi", "sqrt-d"; throws UsageError

// Names one draw: the same values on every machine, rank and after every resume.
struct ProjectionKey {
  uint64_t seed = 0;
  uint32_t layer = 0, head = 0, redraw = 0;
};

// M x D matrix, row-major: blocks of directions, the last one cut, scaled by `norm` (iid rows keep their own
// length with chi). Throws UsageError unless features >= 1 and head_size >= 1.
std::vector<float> draw_projection(ProjectionKind kind, RowNorm norm, int64_t features, int64_t head_size,
                                   const ProjectionKey& key);

// The random numbers of one purpose of a draw: block number `purpose` of directions, or the row norms.
PhiloxStream projection_stream(const ProjectionKey& key, uint32_t purpose);

// Haar-distributed D x D orthogonal matrix, row-major, from the values of the stream named by `key` and
// `block`: Householder QR of a Gaussian with the signs of R's diagonal moved into Q. Without that E[Q_ii] is
// about -0.29 at D = 8 and FAVOR+ is biased.
std::vector<double> haar_orthogonal(int64_t size, const ProjectionKey& key, uint32_t block);

// D x D orthogonal matrix, row-major: a random signed permutation, then 2.5 log2 D + 12 rounds, in each of
// which all coordinates are paired at random and every pair is rotated by an angle uniform on the full
// circle. Signs and permutation make E[Q_ij] = 0 and E[Q_ij^2] = 1/D exact; the rounds bring fourth moments
// within 1 % of Haar's. (The TensorFlow reference draws pair indices with replacement and the same angles for
// each block, which is not orthogonal.)
std::vector<double> givens_orthogonal(int64_t size, const ProjectionKey& key, uint32_t block);

// Unit rows of D elements: those of the product of three Hadamard-sign factors of size n, the next power of
// two, cut to D columns and brought to length 1; rows that the cut leaves empty are left out, so that there
// are up to n. With D = n the rows are orthogonal. E[row] = 0 and E[row row^T] = I/D (D = n) are exact,
// higher moments are those of few signs, so kernel estimates keep a bias that more features do not remove.
// Measured for |x + y|^2 = 2, relative to the kernel: below 0.3 % from D = 6 on and 2.5 % at D = 3 and 4 for
// a vector along no axis, up to 2 % (D = 6) along an axis, 8 % and 11 % at D = 2; it grows with |x + y|^2.
std::vector<double> hadamard_rows(int64_t size, const ProjectionKey& key, uint32_t block);

// The factors of a matrix [features, head_size] whose rows, in whole blocks of D, are a hadamard draw's with
// any lengths: [features / D (rounded down), 4, D] as kernels/favor.h defines them (FeatureMap::factors), the
// first three diagonals signs. Empty where a block is none up to rounding (a matrix that was rounded to a
// shorter type is none), where D is no power of two from 32 to 256, and for draws whose signs do not tell
// enough of each other: four blocks in a thousand at D = 32, hardly any beyond. Takes some D^2 log D
// operations a block, for other matrices D^2.
std::vector<float> hadamard_factors(const float* projection, int64_t features, int64_t head_size);

// The same of `matrices` projections that lie behind each other, [matrices, features / D, 4, D]: what a pass
// over so many `tokens` for each of them gives to the kernels. Empty where one of them has no factors, and
// where the search would not pay: below 512 tokens.
std::vector<float> factors_for_tokens(const float* projections, int64_t matrices, int64_t features,
                                      int64_t head_size, int64_t tokens, Executor& executor);

// D unit rows with pairwise cosine -1/(D-1), in a Haar-distributed position.
std::vector<double> simplex_directions(int64_t size, const ProjectionKey& key, uint32_t block);

}  // namespace performer::kernels
