// SPDX-License-Identifier: Apache-2.0
// The approximations that a study compares, and how far attention with them is from softmax attention.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "performer/nn/config.h"

namespace performer::studies {

// A kind of attention with its projection, written KIND[:PROJECTION[:ROW_NORM]]: "favor-softmax",
// "favor-softmax:hadamard", "favor-softmax:orthogonal:sqrt-d"; kinds of references too, if registered.
struct Estimator {
  std::string name;  // as written
  AttentionConfig attention;
};

// Throws UsageError for an unknown kind or projection, and for exact and identity, which estimate nothing.
Estimator parse_estimator(const std::string& text);
// Sets the number of random features of a kind that has any.
void set_features(AttentionConfig& attention, int64_t features);
// Whether the kind's features estimate the softmax kernel without bias, so that they can be studied alone.
bool estimates_softmax(const AttentionConfig& attention);
// Every map of ours that estimates softmax, with each projection for FAVOR+ and with rows of length sqrt(D),
// and FAVOR-relu.
std::vector<std::string> default_estimators();

// Queries and keys of the same distribution for every estimator.
struct Sample {
  at::Tensor query, key, value;  // [B, T, H, D], [B, S, H, D], [B, S, H, E]
  bool causal = false;
};

// softmax(q k / sqrt(D)), [B, H, T, S]; rows of a causal one end at their own token.
at::Tensor exact_matrix(const Sample& sample);
// The matrix that attention with `estimator` and `features` random features applies to the values: its output
// for values that are indicators of the keys (arXiv 2009.14794, appendix C.4). Random projections are draw
// number `draw`, those of each head its own. [B, H, T, S].
at::Tensor estimated_matrix(const Sample& sample, const Estimator& estimator, int64_t features, int64_t draw);
// Attention that looks at no query: every visible key alike. An approximation worse than this is none.
at::Tensor uniform_matrix(const Sample& sample);

// How far a matrix of attention is from the exact one, for each head [B, H].
struct MatrixError {
  at::Tensor output;  // norm(A' V - A V) / norm(A V), Frobenius
  at::Tensor matrix;  // norm(A' - A) / norm(A), Frobenius
  at::Tensor moved;   // half the mean L1 distance of rows: the share of attention that went elsewhere, if A'
                      // is non-negative
};
MatrixError matrix_error(const at::Tensor& estimated, const at::Tensor& exact, const at::Tensor& value);

}  // namespace performer::studies
