// SPDX-License-Identifier: Apache-2.0
// What the reference's families share: access to states and normalizers.
#pragma once

#include <algorithm>
#include <cmath>

#include "performer/kernels/element.h"
#include "performer/kernels/favor.h"

namespace performer::kernels::reference {

// exp of the log of a weight, which is at most 1 but for rounding: that of exponents of 1e24 is 1e8.
inline double weight_of(double exponent) {
  return std::exp(std::min(exponent, 0.0));
}

// Type of states and normalizers.
inline DataType sum_type(const View& query) {
  return query.type == DataType::float64 ? DataType::float64 : DataType::float32;
}

inline double load_sum(const void* data, DataType type, int64_t i) {
  return load(View{const_cast<void*>(data), type}, i);
}
inline void store_sum(void* data, DataType type, int64_t i, double value) {
  store(View{data, type}, i, value);
}

}  // namespace performer::kernels::reference
