// SPDX-License-Identifier: Apache-2.0
// The vector kernels for AVX-512 with BF16: what favor.cpp compiles for AVX-512, and products of bfloat16
// inputs that stay in bfloat16. Highway 1.0 has no such target, so this file sets its AVX-512 one and adds
// the attribute (target-inl.h).
#include "performer/kernels/cpu/tables.h"

#if defined(__x86_64__) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 10)
#define PERFORMER_BFLOAT16
#endif

#ifdef PERFORMER_BFLOAT16
#include <hwy/detect_targets.h>
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3

#include "performer/kernels/cpu/entries-inl.h"

namespace performer::kernels::cpu {

Bfloat16Target bfloat16_target() {
  const bool supported = (hwy::SupportedTargets() & HWY_AVX3) != 0 && __builtin_cpu_supports("avx512bf16");
  return {true, supported, N_AVX512BF16::Entries()};
}

}  // namespace performer::kernels::cpu
#else
namespace performer::kernels::cpu {

Bfloat16Target bfloat16_target() {
  return {};
}

}  // namespace performer::kernels::cpu
#endif
