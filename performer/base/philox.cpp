// SPDX-License-Identifier: Apache-2.0
#include "performer/base/philox.h"

#include <numbers>

namespace performer {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

PhiloxStream::PhiloxStream(uint64_t seed, uint32_t a, uint32_t b, uint32_t c) {
  // The name is mixed into key and upper counter words by one Philox block, so that every (seed, a, b, c) has
  // a stream of its own and 2^64 blocks of counter are left for its values.
  const auto mixed =
      philox4x32({a, b, c, 0x50455246}, {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  key_ = {mixed[0], mixed[1]};
  name_ = {mixed[2], mixed[3]};
}

void PhiloxStream::refill() {
  words_ = philox4x32(
      {static_cast<uint32_t>(block_), static_cast<uint32_t>(block_ >> 32), name_[0], name_[1]}, key_);
  ++block_;
  used_ = 0;
}

void PhiloxStream::seek(uint64_t index) {
  has_spare_ = false;
  block_ = index / 4;
  refill();
  used_ = static_cast<uint32_t>(index % 4);
}

uint32_t PhiloxStream::next() {
  if (used_ == 4) refill();
  return words_[used_++];
}

uint64_t PhiloxStream::next64() {
  const uint64_t low = next();
  return low | uint64_t{next()} << 32;
}

uint64_t PhiloxStream::below(uint64_t n) {
  const uint64_t limit = ~uint64_t{0} - (~uint64_t{0} % n + 1) % n;  // reject the incomplete last bucket
  uint64_t value;
  do {
    value = next64();
  } while (value > limit);
  return value % n;
}

double PhiloxStream::uniform() {
  return static_cast<double>(next64() >> 11) * 0x1.0p-53;
}

double PhiloxStream::normal() {
  if (has_spare_) {
    has_spare_ = false;
    return spare_;
  }
  const double radius = std::sqrt(-2 * std::log1p(-uniform()));
  const double angle = 2 * std::numbers::pi * uniform();
  spare_ = radius * std::sin(angle);
  has_spare_ = true;
  return radius * std::cos(angle);
}

}  // namespace performer
