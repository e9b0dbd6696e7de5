// SPDX-License-Identifier: Apache-2.0
#include "performer/references/fast_transformers/masks.h"

#include <ATen/ATen.h>

#include <limits>

#include "performer/base/error.h"

namespace performer::references::fast_transformers {
namespace {

constexpr double kFinite = -1e24;

at::Tensor one_to(int64_t last) {
  return at::arange(1, last + 1, at::kLong);
}

// Bool [..., columns] whose rows keep their first lengths[i] columns.
at::Tensor first_columns(const at::Tensor& lengths, int64_t columns) {
  return at::arange(columns, lengths.options()).lt(lengths.unsqueeze(-1));
}

at::Tensor additive(const at::Tensor& keep, at::ScalarType type, double masked) {
  return at::zeros(keep.sizes(), keep.options().dtype(type)).masked_fill(keep.logical_not(), masked);
}

}  // namespace

at::Tensor AttentionMask::bool_matrix() const {
  if (matrix_.defined()) return matrix_;
  if (lengths_.defined()) return first_columns(lengths_, columns_);
  if (lower_triangular_ && !all_ones_) return first_columns(one_to(rows_), columns_);
  return at::ones({rows_, columns_}, at::kBool);
}

at::Tensor AttentionMask::float_matrix(at::ScalarType type) const {
  return bool_matrix().to(type);
}

at::Tensor AttentionMask::additive_matrix(at::ScalarType type) const {
  return additive(bool_matrix(), type, -std::numeric_limits<double>::infinity());
}

at::Tensor AttentionMask::additive_matrix_finite(at::ScalarType type) const {
  check<UsageError>(type != at::kHalf,
                    "-1e24 is outside of float16; ask for the additive mask in float32, float64 or bfloat16");
  return additive(bool_matrix(), type, kFinite);
}

at::Tensor AttentionMask::lengths() const {
  if (lengths_.defined()) return lengths_.clone();
  if (!matrix_.defined()) {
    return lower_triangular_ && !all_ones_ ? one_to(rows_) : at::full({rows_}, columns_, at::kLong);
  }
  const at::Tensor counts = matrix_.sum(-1);
  check<UsageError>(at::equal(first_columns(counts, columns_), matrix_),
                    "the mask is not a length mask: some row keeps other than its first columns");
  return counts;
}

FullMask::FullMask(const at::Tensor& mask) {
  check<UsageError>(mask.scalar_type() == at::kBool, "a full mask must be bool (true keeps), found {}",
                    c10::toString(mask.scalar_type()));
  check<UsageError>(mask.dim() >= 2, "a full mask needs rows and columns, found {} dimensions", mask.dim());
  matrix_ = mask.detach().clone();
  rows_ = mask.size(-2);
  columns_ = mask.size(-1);
  all_ones_ = matrix_.all().item<bool>();
  lower_triangular_ =
      mask.dim() == 2 && rows_ <= columns_ && at::equal(first_columns(one_to(rows_), columns_), matrix_);
}

FullMask::FullMask(int64_t rows, int64_t columns) {
  rows_ = rows;
  columns_ = columns < 0 ? rows : columns;
  check<UsageError>(rows >= 0, "a full mask cannot have {} rows", rows);
  all_ones_ = true;
  lower_triangular_ = rows_ == 0 || (rows_ == 1 && columns_ == 1);
}

LengthMask::LengthMask(const at::Tensor& lengths, int64_t columns) {
  check<UsageError>(lengths.dim() == 1 && at::isIntegralType(lengths.scalar_type(), /*includeBool=*/false),
                    "lengths must be whole numbers of one dimension, found {} dimensions of {}",
                    lengths.dim(), c10::toString(lengths.scalar_type()));
  lengths_ = lengths.detach().to(at::kLong).clone();
  rows_ = lengths_.size(0);
  columns_ = columns >= 0 ? columns : rows_ == 0 ? 0 : lengths_.max().item<int64_t>();
  all_ones_ = lengths_.ge(columns_).all().item<bool>();
  lower_triangular_ = at::equal(lengths_, one_to(rows_));
}

TriangularCausalMask::TriangularCausalMask(int64_t size) {
  check<UsageError>(size >= 0, "a causal mask cannot have {} rows", size);
  rows_ = columns_ = size;
  lower_triangular_ = true;
  all_ones_ = size <= 1;
}

}  // namespace performer::references::fast_transformers
