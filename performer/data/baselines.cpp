// SPDX-License-Identifier: Apache-2.0
#include "performer/data/baselines.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "performer/base/error.h"

namespace performer::data {
namespace {

constexpr int kStart = kResidues;  // row of the first residue of a sequence

struct Distribution {
  std::array<double, kResidues> log_probability;
  int best;
};

Distribution smoothed(std::span<const int64_t> counts, double added) {
  const double total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  Distribution result{};
  for (int residue = 0; residue < kResidues; ++residue) {
    result.log_probability[residue] =
        std::log((static_cast<double>(counts[residue]) + added) / (total + added * kResidues));
  }
  result.best = static_cast<int>(std::ranges::max_element(counts) - counts.begin());
  return result;
}

void add_residue(Score& score, const Distribution& distribution, uint8_t residue) {
  score.log_likelihood += distribution.log_probability[residue];
  score.correct += distribution.best == residue;
  ++score.tokens;
}

void check_sequence(std::span<const uint8_t> sequence, std::span<const float> weights) {
  check(std::ranges::all_of(sequence, is_residue), "a baseline scores residues only: found an id above {}",
        kResidues - 1);
  check(weights.empty() || weights.size() == sequence.size(), "{} weights given for {} residues",
        weights.size(), sequence.size());
}

}  // namespace

double Score::accuracy() const {
  return tokens > 0 ? static_cast<double>(correct) / static_cast<double>(tokens)
                    : std::numeric_limits<double>::quiet_NaN();
}

double Score::perplexity() const {
  return tokens > 0 ? std::exp(-log_likelihood / static_cast<double>(tokens))
                    : std::numeric_limits<double>::quiet_NaN();
}

Score& Score::operator+=(const Score& other) {
  log_likelihood += other.log_likelihood;
  correct += other.correct;
  tokens += other.tokens;
  return *this;
}

Baselines Baselines::from_counts(std::vector<int64_t> counts) {
  constexpr size_t kSize = (kResidues + 1) * kResidues;
  check<InputError>(counts.size() == kSize, "the baselines need {} counts, found {}", kSize, counts.size());
  const auto negative = std::ranges::find_if(counts, [](int64_t count) { return count < 0; });
  check<InputError>(negative == counts.end(), "count {} of the baselines is negative",
                    negative - counts.begin());
  Baselines baselines;
  baselines.counts_ = std::move(counts);
  return baselines;
}

void Baselines::add(std::span<const uint8_t> sequence) {
  check_sequence(sequence, {});
  int previous = kStart;
  for (const uint8_t residue : sequence) {
    ++counts_[previous * kResidues + residue];
    previous = residue;
  }
}

void Baselines::add_unigram(Score& score, std::span<const uint8_t> sequence,
                            std::span<const float> weights) const {
  check_sequence(sequence, weights);
  std::array<int64_t, kResidues> totals{};
  for (size_t i = 0; i < counts_.size(); ++i) totals[i % kResidues] += counts_[i];
  const Distribution distribution = smoothed(totals, 1);
  for (size_t i = 0; i < sequence.size(); ++i) {
    if (weights.empty() || weights[i] > 0) add_residue(score, distribution, sequence[i]);
  }
}

void Baselines::add_bigram(Score& score, std::span<const uint8_t> sequence,
                           std::span<const float> weights) const {
  check_sequence(sequence, weights);
  std::array<std::optional<Distribution>, kResidues + 1> rows;  // made when first met: a sequence needs few
  int previous = kStart;
  for (size_t i = 0; i < sequence.size(); ++i) {
    if (weights.empty() || weights[i] > 0) {
      auto& row = rows[previous];
      if (!row) row = smoothed(std::span(counts_).subspan(previous * kResidues, kResidues), 0.5);
      add_residue(score, *row, sequence[i]);
    }
    previous = sequence[i];
  }
}

}  // namespace performer::data
