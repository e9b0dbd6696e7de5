// SPDX-License-Identifier: Apache-2.0
#include "performer/compat/jax_random.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

namespace performer::compat::google {
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

}  // namespace

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

}  // namespace performer::compat::google
