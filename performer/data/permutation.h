// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

namespace performer::data {

// A pseudo-random order of 0..n-1 named by (seed, epoch) without a table: element `i` of it, in O(1) memory.
// A Feistel network over a power of four (at least n, at least 256), walked along its cycle until it falls
// below n (Black and Rogaway, CT-RSA 2002); its round keys are Philox words. 0 < n <= 2^62.
class Permutation {
 public:
  Permutation(uint64_t n, uint64_t seed, uint64_t epoch);
  uint64_t operator()(uint64_t i) const;  // i < n

 private:
  uint64_t n_;
  int half_bits_ = 4;  // of each half; fewer mix badly
  std::array<uint32_t, 8> keys_;
};

}  // namespace performer::data
