// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A stream is named by its key and
// gives the same values on every machine, thread count and after every resume; nothing is carried between
// calls.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace performer {

// One block of four 32-bit words for a 128-bit counter under a 64-bit key.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A stream named by (seed, a, b, c): for example (seed, layer, head, redraw index). Values are drawn in
// order; `index` says where the stream stands and may be set, so that any part of it can be reached directly.
class PhiloxStream {
 public:
  PhiloxStream(uint64_t seed, uint32_t a = 0, uint32_t b = 0, uint32_t c = 0);

  uint32_t next();             // uniform over all 32-bit words
  uint64_t next64();           // two words
  uint64_t below(uint64_t n);  // uniform over 0..n-1 without bias; n > 0
  double uniform();            // [0, 1), 53 bits
  double normal();             // N(0, 1) by Box-Muller

  uint64_t index() const { return block_ * 4 + used_ - 4; }  // words drawn so far
  void seek(uint64_t index);

 private:
  void refill();
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 2> name_;
  std::array<uint32_t, 4> words_{};
  uint64_t block_ = 0;
  uint32_t used_ = 4;
  bool has_spare_ = false;
  double spare_ = 0;
};

}  // namespace performer
