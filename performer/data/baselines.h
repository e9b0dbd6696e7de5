// SPDX-License-Identifier: Apache-2.0
// Unigram and bigram models of tokens: what any language model must beat.
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
  double bits() const;        // mean negative log-likelihood of a token, in bits: per byte, or per dimension
  Score& operator+=(const Score& other);
};

// Counts over the n symbols of a vocabulary with add-one (unigram) and add-half (bigram, with a start symbol)
// smoothing:
//   p(x) = (n(x) + 1) / (N + n)        p(x | w) = (n(w, x) + 1/2) / (n(w) + n/2)
// The prediction is the most frequent symbol (the lowest id of several). Sequences are ids of symbols,
// 0..n-1. A vocabulary of more than kMostBigramSymbols has no bigram, whose table would be larger than most
// models.
class Baselines {
 public:
  static constexpr int64_t kMostBigramSymbols = 1024;

  explicit Baselines(int64_t symbols = 0);
  // Throws InputError on a wrong size or a negative count.
  static Baselines from_counts(int64_t symbols, std::vector<int64_t> counts);

  int64_t symbols() const { return symbols_; }
  bool has_bigram() const { return symbols_ <= kMostBigramSymbols; }
  void add(std::span<const Token> sequence);
  // Add the score of a sequence to `score`. With `weights`, one a token, only tokens of positive weight are
  // scored (as masked models are); the bigram then still sees the true token before. Without a bigram,
  // add_bigram() adds nothing.
  void add_unigram(Score& score, std::span<const Token> sequence, std::span<const float> weights = {}) const;
  void add_bigram(Score& score, std::span<const Token> sequence, std::span<const float> weights = {}) const;
  // [n + 1, n]: previous symbol or start (n), next symbol. Without a bigram [1, n].
  const std::vector<int64_t>& counts() const { return counts_; }

 private:
  int64_t symbols_;
  std::vector<int64_t> counts_;
};

}  // namespace performer::data
