// SPDX-License-Identifier: Apache-2.0
// Masks of the layers in layers.h: who may attend to whom, and how long sequences are. One value
// with several views, after the masks of pytorch-fast-transformers 0.4.0. True (or 1) always means: keep.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace performer::references::fast_transformers {

// Cheap to copy. What need not be stored is not: a mask of all ones and a triangular one cost nothing until
// somebody asks for their matrix, so linear attention stays linear in memory.
class AttentionMask {
 public:
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

  // Bool [rows, columns] (a FullMask of more dimensions: its own shape); made anew for masks that do not
  // store it.
  at::Tensor bool_matrix() const;
  // 1 and 0, as a factor.
  at::Tensor float_matrix(at::ScalarType type = at::kFloat) const;
  // 0 and -inf, to be added to scores before a softmax.
  at::Tensor additive_matrix(at::ScalarType type = at::kFloat) const;
  // The same with -1e24, which float16 cannot hold (UsageError).
  at::Tensor additive_matrix_finite(at::ScalarType type = at::kFloat) const;
  // int64 [rows]: how many columns each row keeps. Throws UsageError unless every row keeps its first columns
  // and no others.
  at::Tensor lengths() const;

  bool all_ones() const { return all_ones_; }
  // Whether row i keeps exactly its first i + 1 columns (of however many there are).
  bool lower_triangular() const { return lower_triangular_; }

 protected:
  AttentionMask() = default;

  int64_t rows_ = 0, columns_ = 0;
  at::Tensor matrix_, lengths_;  // at most one is defined; neither: all ones or triangular
  bool all_ones_ = false, lower_triangular_ = false;
};

// Any mask, or one of all ones.
class FullMask : public AttentionMask {
 public:
  // bool [..., N, M], copied. Throws UsageError for another type or less than two dimensions.
  explicit FullMask(const at::Tensor& mask);
  // All ones [rows, columns]; columns default to rows.
  explicit FullMask(int64_t rows, int64_t columns = -1);
};

// Row i keeps its first lengths[i] columns.
class LengthMask : public AttentionMask {
 public:
  // lengths: whole numbers [N], copied; columns default to the largest length. Throws UsageError for another
  // type or shape.
  explicit LengthMask(const at::Tensor& lengths, int64_t columns = -1);
};

// Square, nothing above the diagonal: token i sees tokens 0 to i.
class TriangularCausalMask : public AttentionMask {
 public:
  explicit TriangularCausalMask(int64_t size);
};

}  // namespace performer::references::fast_transformers
