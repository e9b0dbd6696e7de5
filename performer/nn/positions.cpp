// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/positions.h"

#include <ATen/ATen.h>

#include <cmath>

namespace performer::nn {
namespace {

// base^(-2i / width) for i = 0 .. pairs - 1.
at::Tensor rates_of(int64_t width, int64_t pairs, double base, at::TensorOptions options) {
  return at::exp(at::arange(pairs, options.dtype(at::kDouble)) *
                 (-2 * std::log(base) / static_cast<double>(width)));
}

// Positions times rates, appended as a last dimension. In double: at position 10^6 a float32 angle is already
// wrong by 0.03.
at::Tensor angles(const at::Tensor& positions, const at::Tensor& rates) {
  return positions.to(at::kDouble).unsqueeze(-1) * rates.to(at::kDouble);
}

}  // namespace

at::Tensor sinusoids(const at::Tensor& positions, int64_t width, bool concatenate) {
  const at::Tensor angle = angles(positions, rates_of(width, (width + 1) / 2, 10000, positions.options()));
  if (concatenate) return at::cat({angle.sin(), angle.cos()}, -1).narrow(-1, 0, width);
  return at::stack({angle.sin(), angle.cos()}, -1).flatten(-2).narrow(-1, 0, width);
}

at::Tensor rotary_rates(int64_t head_size, double base, at::TensorOptions options) {
  return rates_of(head_size, head_size / 2, base, options);
}

at::Tensor rotary_table(const at::Tensor& positions, int64_t head_size, at::ScalarType type, double base) {
  return rotary_table(positions, rotary_rates(head_size, base, positions.options()), type);
}

at::Tensor rotary_table(const at::Tensor& positions, const at::Tensor& rates, at::ScalarType type) {
  const at::Tensor angle = angles(positions, rates).unsqueeze(-2);
  const at::Tensor table = at::complex(angle.cos(), angle.sin());
  return type == at::kDouble ? table : table.to(at::kComplexFloat);
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& table) {
  const at::ScalarType precise = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor pairs = x.to(precise).unflatten(-1, {x.size(-1) / 2, 2}).contiguous();
  return at::view_as_real(at::view_as_complex(pairs) * table).flatten(-2).to(x.scalar_type());
}

}  // namespace performer::nn
