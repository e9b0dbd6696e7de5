// SPDX-License-Identifier: Apache-2.0
#include "performer/compat/jax_random.h"

#include <ATen/ATen.h>

#include <bit>
#include <cmath>
#include <numbers>

namespace performer::compat::google {

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
  const at::Tensor uniform = at::empty(sizes, at::kFloat);
  float* values = uniform.mutable_data_ptr<float>();
  const float lowest = std::nextafterf(-1.0F, 0.0F);  // -1 itself would become minus infinity
  for (int64_t i = 0; i < uniform.numel(); ++i) {
    const auto index = static_cast<uint64_t>(i);
    const JaxKey words =
        threefry2x32(key, {static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(index)});
    // 23 bits as the fraction of a number in [1, 2).
    const float unit = std::bit_cast<float>(((words[0] ^ words[1]) >> 9) | 0x3F800000U) - 1.0F;
    values[i] = std::max(lowest, unit * (1.0F - lowest) + lowest);
  }
  return at::erfinv(uniform) * std::numbers::sqrt2_v<float>;
}

}  // namespace performer::compat::google
