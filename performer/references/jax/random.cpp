// SPDX-License-Identifier: Apache-2.0
#include "performer/references/jax/random.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <vector>

namespace performer::references::jax {
namespace {

// The inverse error function as XLA has it in float32: the single-precision approximation of M. Giles,
// "Approximating the erfinv function" (GPU Computing Gems, 2011), whose rounding in the tails is larger than
// that of LibTorch's.
float inverse_error_function(float x) {
  constexpr float kCentral[] = {2.81022636e-08F,  3.43273939e-07F, -3.5233877e-06F,
                                -4.39150654e-06F, 2.1858087e-04F,  -1.25372503e-03F,
                                -4.17768164e-03F, 2.46640727e-01F, 1.50140941F};
  constexpr float kTail[] = {-2.00214257e-04F, 1.00950558e-04F, 1.34934322e-03F,
                             -3.67342844e-03F, 5.73950773e-03F, -7.6224613e-03F,
                             9.43887047e-03F,  1.00167406F,     2.83297682F};
  const float w = -std::log1p(-x * x);
  const bool central = w < 5.0F;
  const float t = central ? w - 2.5F : std::sqrt(w) - 3.0F;
  float p = 0;
  for (const float coefficient : central ? kCentral : kTail) p = coefficient + p * t;
  return p * x;
}

// A part of a contiguous tensor, and the dimensions that are longer than 1.
struct SumBlock {
  const float* values;
  std::vector<int64_t> sizes, strides;
};

float sum_row(const float* values, int64_t size, int64_t stride, float start) {
  for (int64_t i = 0; i < size; ++i) start += values[i * stride];
  return start;
}

// The last dimension but one in lanes, for rows short enough to be unrolled: lane r % lanes adds row r, and
// the lanes are added by halves. What was summed before is in lane 0.
float sum_rows_in_lanes(const float* values, const SumBlock& block, int64_t lanes, float start) {
  const size_t last = block.sizes.size() - 1;
  std::vector<float> sums(lanes, 0.0F);
  sums[0] = start;
  for (int64_t row = 0; row < block.sizes[last - 1]; ++row) {
    float& lane = sums[row % lanes];
    lane = sum_row(values + row * block.strides[last - 1], block.sizes[last], block.strides[last], lane);
  }
  for (int64_t half = lanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

// Dimensions from `from` on, added to `start` in the order of memory.
float sum_nested(const float* values, const SumBlock& block, size_t from, float start) {
  constexpr int64_t kUnrolled = 8;
  const size_t left = block.sizes.size() - from;
  if (left == 0) return start + values[0];
  if (left == 1) return sum_row(values, block.sizes[from], block.strides[from], start);
  if (left == 2 && block.sizes[from + 1] <= kUnrolled) {
    const int64_t rows = block.sizes[from];
    const int64_t lanes = std::min<int64_t>(rows, block.sizes[from + 1] == kUnrolled ? 4 : 8);
    if (std::has_single_bit(static_cast<uint64_t>(rows))) {
      return sum_rows_in_lanes(values, block, lanes, start);
    }
  }
  for (int64_t i = 0; i < block.sizes[from]; ++i) {
    start = sum_nested(values + i * block.strides[from], block, from + 1, start);
  }
  return start;
}

}  // namespace

float jax_sum(const at::Tensor& tensor) {
  // Dimensions above 32 are cut into windows of 32, as if padded alike at both ends.
  constexpr int64_t kWindow = 32;
  const at::Tensor x = tensor.detach().to(at::kFloat).contiguous();
  if (x.numel() == 0) return 0;
  std::vector<int64_t> counts;
  for (const int64_t size : x.sizes()) counts.push_back(size > kWindow ? (size + kWindow - 1) / kWindow : 1);
  const at::Tensor partial = at::empty(counts, at::kFloat);
  float* sums = partial.mutable_data_ptr<float>();
  for (int64_t window = 0; window < partial.numel(); ++window) {
    SumBlock block{x.const_data_ptr<float>(), {}, {}};
    int64_t rest = window;
    for (int64_t i = x.dim() - 1; i >= 0; --i) {
      const int64_t place = rest % counts[i], size = x.size(i);
      rest /= counts[i];
      const int64_t shift = counts[i] == 1 ? 0 : (counts[i] * kWindow - size) / 2;
      const int64_t begin = std::max<int64_t>(0, place * kWindow - shift);
      const int64_t end = counts[i] == 1 ? size : std::min(size, (place + 1) * kWindow - shift);
      block.values += begin * x.stride(i);
      if (end - begin == 1) continue;
      block.sizes.insert(block.sizes.begin(), end - begin);
      block.strides.insert(block.strides.begin(), x.stride(i));
    }
    sums[window] = sum_nested(block.values, block, 0, 0.0F);
  }
  return partial.numel() == 1 ? sums[0] : jax_sum(partial);
}

JaxKey threefry2x32(JaxKey key, JaxKey counter) {
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  constexpr uint32_t kParity = 0x1BD11BDA;
  const uint32_t schedule[3] = {key[0], key[1], key[0] ^ key[1] ^ kParity};
  uint32_t a = counter[0] + schedule[0], b = counter[1] + schedule[1];
  for (uint32_t group = 0; group < 5; ++group) {
    for (const int rotation : kRotations[group % 2]) {
      a += b;
      b = std::rotl(b, rotation) ^ a;
    }
    a += schedule[(group + 1) % 3];
    b += schedule[(group + 2) % 3] + group + 1;
  }
  return {a, b};
}

JaxKey jax_key(int32_t seed) {
  return {0, static_cast<uint32_t>(seed)};
}

std::pair<JaxKey, JaxKey> jax_split(JaxKey key) {
  return {threefry2x32(key, {0, 0}), threefry2x32(key, {0, 1})};
}

at::Tensor jax_normal(JaxKey key, at::IntArrayRef sizes) {
  const at::Tensor normal = at::empty(sizes, at::kFloat);
  float* values = normal.mutable_data_ptr<float>();
  const float lowest = std::nextafterf(-1.0F, 0.0F);  // -1 itself would become minus infinity
  for (int64_t i = 0; i < normal.numel(); ++i) {
    const auto index = static_cast<uint64_t>(i);
    const JaxKey words =
        threefry2x32(key, {static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(index)});
    // 23 bits as the fraction of a number in [1, 2).
    const float unit = std::bit_cast<float>(((words[0] ^ words[1]) >> 9) | 0x3F800000U) - 1.0F;
    const float uniform = std::max(lowest, unit * (1.0F - lowest) + lowest);
    values[i] = std::numbers::sqrt2_v<float> * inverse_error_function(uniform);
  }
  return normal;
}

}  // namespace performer::references::jax
