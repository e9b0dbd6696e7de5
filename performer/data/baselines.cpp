// SPDX-License-Identifier: Apache-2.0
#include "performer/data/baselines.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <numeric>
#include <optional>

#include "performer/base/error.h"

namespace performer::data {
namespace {

struct Distribution {
  std::vector<double> log_probability;
  int64_t best = 0;
};

Distribution smoothed(std::span<const int64_t> counts, double added) {
  const double total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  const double symbols = static_cast<double>(counts.size());
  Distribution result;
  result.log_probability.reserve(counts.size());
  for (const int64_t count : counts) {
    result.log_probability.push_back(
        std::log((static_cast<double>(count) + added) / (total + added * symbols)));
  }
  result.best = std::ranges::max_element(counts) - counts.begin();
  return result;
}

void add_token(Score& score, const Distribution& distribution, Token token) {
  score.log_likelihood += distribution.log_probability[token];
  score.correct += distribution.best == token;
  ++score.tokens;
}

void check_sequence(std::span<const Token> sequence, std::span<const float> weights, int64_t symbols) {
  const auto foreign = std::ranges::find_if(sequence, [&](Token token) { return token >= symbols; });
  check(foreign == sequence.end(), "a baseline of {} symbols scores ids below {}: found {}", symbols, symbols,
        foreign == sequence.end() ? 0 : *foreign);
  check(weights.empty() || weights.size() == sequence.size(), "{} weights given for {} tokens",
        weights.size(), sequence.size());
}

// The size of the table of counts.
int64_t table_size(int64_t symbols) {
  return symbols <= Baselines::kMostBigramSymbols ? (symbols + 1) * symbols : symbols;
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

double Score::bits() const {
  return tokens > 0 ? -log_likelihood / static_cast<double>(tokens) / std::numbers::ln2
                    : std::numeric_limits<double>::quiet_NaN();
}

Score& Score::operator+=(const Score& other) {
  log_likelihood += other.log_likelihood;
  correct += other.correct;
  tokens += other.tokens;
  return *this;
}

Baselines::Baselines(int64_t symbols) : symbols_(symbols), counts_(table_size(symbols)) {}

Baselines Baselines::from_counts(int64_t symbols, std::vector<int64_t> counts) {
  const int64_t size = table_size(symbols);
  check<InputError>(std::ssize(counts) == size, "the baselines of {} symbols need {} counts, found {}",
                    symbols, size, counts.size());
  const auto negative = std::ranges::find_if(counts, [](int64_t count) { return count < 0; });
  check<InputError>(negative == counts.end(), "count {} of the baselines is negative",
                    negative - counts.begin());
  Baselines baselines;
  baselines.symbols_ = symbols;
  baselines.counts_ = std::move(counts);
  return baselines;
}

void Baselines::add(std::span<const Token> sequence) {
  check_sequence(sequence, {}, symbols_);
  int64_t previous = symbols_;
  for (const Token token : sequence) {
    ++counts_[has_bigram() ? previous * symbols_ + token : token];
    previous = token;
  }
}

void Baselines::add_unigram(Score& score, std::span<const Token> sequence,
                            std::span<const float> weights) const {
  check_sequence(sequence, weights, symbols_);
  if (sequence.empty()) return;
  std::vector<int64_t> totals(symbols_);
  for (auto row = counts_.begin(); row != counts_.end(); row += symbols_) {
    std::transform(row, row + symbols_, totals.begin(), totals.begin(), std::plus<>());
  }
  const Distribution distribution = smoothed(totals, 1);
  for (size_t i = 0; i < sequence.size(); ++i) {
    if (weights.empty() || weights[i] > 0) add_token(score, distribution, sequence[i]);
  }
}

void Baselines::add_bigram(Score& score, std::span<const Token> sequence,
                           std::span<const float> weights) const {
  check_sequence(sequence, weights, symbols_);
  if (!has_bigram()) return;
  std::vector<std::optional<Distribution>> rows(symbols_ + 1);  // made when first met: a sequence needs few
  int64_t previous = symbols_;
  for (size_t i = 0; i < sequence.size(); ++i) {
    if (weights.empty() || weights[i] > 0) {
      auto& row = rows[previous];
      if (!row) row = smoothed(std::span(counts_).subspan(previous * symbols_, symbols_), 0.5);
      add_token(score, *row, sequence[i]);
    }
    previous = sequence[i];
  }
}

}  // namespace performer::data
