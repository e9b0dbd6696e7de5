// SPDX-License-Identifier: Apache-2.0
// The CPU target that the vector kernels are being compiled for: its namespace, its attributes, its vectors.
//
// favor.cpp compiles the kernels once for each of Highway's targets. favor_bfloat16.cpp adds a target that
// Highway 1.0 does not have, AVX-512 with BF16 dot products, and defines PERFORMER_BFLOAT16 for it.
#if defined(PERFORMER_KERNELS_CPU_TARGET_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_TARGET_INL_H_
#undef PERFORMER_KERNELS_CPU_TARGET_INL_H_
#else
#define PERFORMER_KERNELS_CPU_TARGET_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstdint>

#ifndef PERFORMER_TARGET
#ifdef PERFORMER_BFLOAT16
#define PERFORMER_TARGET N_AVX512BF16
#define PERFORMER_BEFORE_NAMESPACE() HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR_AVX3 ",avx512bf16")
#else
#define PERFORMER_TARGET HWY_NAMESPACE
#define PERFORMER_BEFORE_NAMESPACE() HWY_BEFORE_NAMESPACE()
#endif
#define PERFORMER_AFTER_NAMESPACE() HWY_AFTER_NAMESPACE()
#endif

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;
constexpr int64_t kLanes = hn::MaxLanes(Tag());

HWY_INLINE int64_t Padded(int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
