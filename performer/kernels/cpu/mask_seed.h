// SPDX-License-Identifier: Apache-2.0
// A dropout mask as the vector code takes it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "performer/kernels/dropout.h"

namespace performer::kernels::cpu {

struct MaskSeed {
  uint32_t low = 0, high = 0;  // of the scrambled key
  int32_t threshold = 0;       // of 16 bits: smaller ones are dropped
  float scale = 1;
};

inline MaskSeed seed_of(const DropoutMask& mask) {
  // SplitMix64's finaliser: without it the masks of neighbouring keys would be shifted copies of each other.
  uint64_t key = mask.key;
  key = (key ^ key >> 30) * 0xbf58476d1ce4e5b9;
  key = (key ^ key >> 27) * 0x94d049bb133111eb;
  key ^= key >> 31;
  const auto threshold = static_cast<int32_t>(std::lround(mask.probability * 0x1p16));
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), std::min(threshold, 0xffff),
          static_cast<float>(1 / (1 - mask.probability))};
}

}  // namespace performer::kernels::cpu
