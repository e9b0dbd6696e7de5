// SPDX-License-Identifier: Apache-2.0
// JAX's default random numbers, so that what google-research draws from a seed can be drawn here:
// Threefry-2x32-20 (Salmon et al., SC 2011) in the partitionable arrangement that JAX has by default since
// 0.5.0, where value i of a tensor depends on the key and on i alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <utility>

namespace performer::references::jax {

using JaxKey = std::array<uint32_t, 2>;

// One block of Threefry-2x32 with 20 rounds.
JaxKey threefry2x32(JaxKey key, JaxKey counter);

// jax.random.PRNGKey of a 32-bit seed, jax.random.split(key), and jax.random.normal(key, sizes) in float32 on
// CPU, JAX's values to a rounding or two.
JaxKey jax_key(int32_t seed);
std::pair<JaxKey, JaxKey> jax_split(JaxKey key);
at::Tensor jax_normal(JaxKey key, at::IntArrayRef sizes);

// The sum of all elements in float32, added in the order in which JAX 0.10 on x86-64 adds a row-major tensor
// of few dimensions: a seed made of a sum depends on each rounding. Short dimensions are added one after the
// other or in vector lanes, long ones in windows. JAX promises none of this: other versions and processors
// round differently.
float jax_sum(const at::Tensor& tensor);

}  // namespace performer::references::jax
