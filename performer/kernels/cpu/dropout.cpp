// SPDX-License-Identifier: Apache-2.0
#include "performer/kernels/dropout.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "performer/kernels/cpu/dropout.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "performer/kernels/cpu/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
void DropoutOf(const T* input, T* output, int64_t begin, int64_t end, const cpu::MaskSeed& seed,
               int64_t shift) {
  HWY_ALIGN float buffer[elements::kPiece + 2 * elements::kBlock];
  for (int64_t first = begin; first < end; first += elements::kPiece) {
    const int64_t count = std::min(end - first, elements::kPiece);
    const float* factors = elements::Factors(seed, first + shift, count, buffer);
    for (int64_t i = 0; i < count; i += elements::Lanes()) {
      const auto x = elements::LoadPart(input + first + i, count - i);
      elements::StorePart(hn::Mul(x, elements::Load(factors + i)), output + first + i, count - i);
    }
  }
}

void DropoutFloat(const float* input, float* output, int64_t begin, int64_t end, const cpu::MaskSeed& seed,
                  int64_t shift) {
  DropoutOf(input, output, begin, end, seed, shift);
}
void DropoutHalf(const uint16_t* input, uint16_t* output, int64_t begin, int64_t end,
                 const cpu::MaskSeed& seed, int64_t shift) {
  DropoutOf(input, output, begin, end, seed, shift);
}

}  // namespace HWY_NAMESPACE
}  // namespace performer::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace performer::kernels {

HWY_EXPORT(DropoutFloat);
HWY_EXPORT(DropoutHalf);

void dropout(const float* input, float* output, int64_t begin, int64_t end, const DropoutMask& mask,
             int64_t shift) {
  HWY_DYNAMIC_DISPATCH(DropoutFloat)(input, output, begin, end, cpu::seed_of(mask), shift);
}

void dropout(const uint16_t* input, uint16_t* output, int64_t begin, int64_t end, const DropoutMask& mask,
             int64_t shift) {
  HWY_DYNAMIC_DISPATCH(DropoutHalf)(input, output, begin, end, cpu::seed_of(mask), shift);
}

}  // namespace performer::kernels
#endif
