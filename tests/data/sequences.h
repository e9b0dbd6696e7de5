// SPDX-License-Identifier: Apache-2.0
// Sequences of residues for the tests of corpora and batches.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "performer/base/philox.h"
#include "performer/data/corpus.h"

namespace performer::data::test {

using Sequences = std::vector<std::vector<Token>>;

inline constexpr int64_t kBos = 25, kEos = 26, kPad = 27, kMask = 28;  // of the protein vocabulary

inline bool is_residue(int64_t token) {
  return token >= 0 && token < 25;
}

// Ids as batches hold them.
inline std::vector<int64_t> ids(std::string_view text) {
  const std::vector<Token> tokens = Vocabulary::protein().encode(text);
  return {tokens.begin(), tokens.end()};
}

inline MemoryCorpus proteins(const Sequences& sequences, const HashSplit& split = {}) {
  return MemoryCorpus(sequences, Vocabulary::protein(), split);
}

// `count` sequences of 1 to `longest` residues, each of the 25 letters equally likely.
inline Sequences random_sequences(int count, uint64_t seed, uint64_t longest = 40) {
  PhiloxStream draws(seed);
  Sequences sequences(count);
  for (auto& sequence : sequences) {
    sequence.resize(1 + draws.below(longest));
    for (Token& residue : sequence) residue = static_cast<Token>(draws.below(25));
  }
  return sequences;
}

}  // namespace performer::data::test
