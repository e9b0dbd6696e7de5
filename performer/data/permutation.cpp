// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/data/permutation.h"

namespace performer::data {
namespace {

// The final mix of MurmurHash3: every input bit flips every output bit with probability one half.
uint32_t mix(uint32_t word) {
  word = (word ^ word >> 16) * 0x85ebca6b;
  word = (word ^ word >> 13) * 0xc2b2ae35;
  return word ^ word >> 16;
}

}  // namespace

Permutation::Permutation(uint64_t n, uint64_t seed, uint64_t epoch) : n_(n) {
  check(n > 0 && n <= uint64_t{1} << 62, "a permutation needs between 1 and 2^62 elements, found {}", n);
  while (uint64_t{1} << (2 * half_bits_) < n) ++half_bits_;
  for (uint32_t part = 0; part < 2; ++part) {
    constexpr uint32_t kPurpose = 0x4f524452;  // "ORDR"
    const auto words =
        philox4x32({static_cast<uint32_t>(epoch), static_cast<uint32_t>(epoch >> 32), part, kPurpose},
                   {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
    std::copy(words.begin(), words.end(), keys_.begin() + 4 * part);
  }
}

uint64_t Permutation::operator()(uint64_t i) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {
    uint64_t left = i >> half_bits_, right = i & mask;
    for (const uint32_t key : keys_) {
      const uint64_t mixed = left ^ (mix(static_cast<uint32_t>(right) ^ key) & mask);
      left = right;
      right = mixed;
    }
    i = left << half_bits_ | right;
  } while (i >= n_);
  return i;
}

}  // namespace performer::data
