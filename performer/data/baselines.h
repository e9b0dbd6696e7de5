// SPDX-License-Identifier: Apache-2.0
// Unigram and bigram models of residues: what any language model must beat.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "performer/data/vocabulary.h"

namespace performer::data {

// Sums over scored tokens. Without any token, accuracy and perplexity are NaN: there is nothing to measure.
struct Score {
  double log_likelihood = 0;  // natural logarithm, summed
  int64_t correct = 0, tokens = 0;

  double accuracy() const;
  double perplexity() const;  // exp of the mean over all tokens, not clipped
  Score& operator+=(const Score& other);
};

// Counts over the 25 residues with add-one (unigram) and add-half (bigram, with a start symbol) smoothing:
//   p(x) = (n(x) + 1) / (n + 25)        p(x | w) = (n(w, x) + 1/2) / (n(w) + 25/2)
// The prediction is the most frequent residue (the lowest id of several). Sequences are residue ids, 0..24.
class Baselines {
 public:
  Baselines() = default;
  // Throws InputError on a wrong size or a negative count.
  static Baselines from_counts(std::vector<int64_t> counts);

  void add(std::span<const uint8_t> sequence);
  // Add the score of a sequence to `score`. With `weights`, one a residue, only residues of positive weight
  // are scored (as masked models are); the bigram then still sees the true residue before.
  void add_unigram(Score& score, std::span<const uint8_t> sequence,
                   std::span<const float> weights = {}) const;
  void add_bigram(Score& score, std::span<const uint8_t> sequence, std::span<const float> weights = {}) const;
  const std::vector<int64_t>& counts() const {
    return counts_;
  }  // [26 x 25]: previous residue or start (25), next

 private:
  std::vector<int64_t> counts_ = std::vector<int64_t>((kResidues + 1) * kResidues);
};

}  // namespace performer::data
