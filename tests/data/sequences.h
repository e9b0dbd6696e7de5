// SPDX-License-Identifier: Apache-2.0
// Sequences of residues for the tests of stores and batches.
#pragma once

#include <cstdint>
#include <vector>

#include "performer/base/philox.h"

namespace performer::data::test {

using Sequences = std::vector<std::vector<uint8_t>>;

// `count` sequences of 1 to `longest` residues, each of the 25 letters equally likely.
inline Sequences random_sequences(int count, uint64_t seed, uint64_t longest = 40) {
  PhiloxStream draws(seed);
  Sequences sequences(count);
  for (auto& sequence : sequences) {
    sequence.resize(1 + draws.below(longest));
    for (uint8_t& residue : sequence) residue = static_cast<uint8_t>(draws.below(25));
  }
  return sequences;
}

}  // namespace performer::data::test
