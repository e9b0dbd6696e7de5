// SPDX-License-Identifier: Apache-2.0
// Reading and writing single elements of a View, and where the rows of a segment lie. For the reference and
// for the edges of the vector kernels.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "performer/kernels/favor.h"

namespace performer::kernels {

inline float bfloat16_to_float(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
}

inline float float16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
  if (exponent == 0)
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::ldexp(float(fraction), -24)));
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | fraction << 13);
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

inline uint16_t float_to_float16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const float magnitude = std::abs(value);
  if (std::isnan(value)) return sign | 0x7E00;
  if (magnitude >= 65520.0f) return sign | 0x7C00;
  if (magnitude < 0x1p-14f) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24)));
  const uint32_t rounded = (bits & 0x7FFFFFFF) + 0xFFF + (bits >> 13 & 1);
  return sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13);
}

inline double load(const View& view, int64_t offset) {
  switch (view.type) {
    case DataType::float64:
      return static_cast<const double*>(view.data)[offset];
    case DataType::float32:
      return static_cast<const float*>(view.data)[offset];
    case DataType::bfloat16:
      return bfloat16_to_float(static_cast<const uint16_t*>(view.data)[offset]);
    case DataType::float16:
      return float16_to_float(static_cast<const uint16_t*>(view.data)[offset]);
  }
  return 0;
}

inline void store(const View& view, int64_t offset, double value) {
  switch (view.type) {
    case DataType::float64:
      static_cast<double*>(view.data)[offset] = value;
      break;
    case DataType::float32:
      static_cast<float*>(view.data)[offset] = static_cast<float>(value);
      break;
    case DataType::bfloat16:
      static_cast<uint16_t*>(view.data)[offset] = float_to_bfloat16(static_cast<float>(value));
      break;
    case DataType::float16:
      static_cast<uint16_t*>(view.data)[offset] = float_to_float16(static_cast<float>(value));
      break;
  }
}

// The tokens of one sequence on one side: `count` rows from token `first` of batch entry `batch`.
struct Rows {
  int64_t batch = 0, first = 0, count = 0;
  int64_t at(const View& view, int64_t row, int64_t head) const {
    return batch * view.batch_stride + (first + row) * view.token_stride + head * view.head_stride;
  }
};

inline Rows query_rows(const Shape& shape, int64_t sequence) {
  if (shape.cu_query == nullptr) return {sequence, 0, shape.query_tokens};
  return {0, shape.cu_query[sequence], shape.cu_query[sequence + 1] - shape.cu_query[sequence]};
}

inline Rows key_rows(const Shape& shape, int64_t sequence) {
  if (shape.cu_key == nullptr) return {sequence, 0, shape.key_tokens};
  return {0, shape.cu_key[sequence], shape.cu_key[sequence + 1] - shape.cu_key[sequence]};
}

// Index of a row in a mask or (times heads) in the normalizer. `tokens` is query_tokens or key_tokens; packed
// rows are all in batch entry 0.
inline int64_t row_index(const Rows& rows, int64_t row, int64_t tokens) {
  return rows.batch * tokens + rows.first + row;
}

// Element-wise denominators below the smallest normal float count as none: the row's output is zero. NaN
// does not.
inline bool vanishes(double denominator) {
  return std::abs(denominator) < 0x1p-126;
}

}  // namespace performer::kernels
