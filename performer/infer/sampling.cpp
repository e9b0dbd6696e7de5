// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <span>

#include "performer/base/error.h"

namespace performer {

namespace {

constexpr double kDropped = -std::numeric_limits<double>::infinity();

void normalize(std::vector<double>& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double x : logits) sum += std::exp(x - largest);
  const double log_sum = largest + std::log(sum);
  for (double& x : logits) x -= log_sum;
}

// Once a token, however often it was seen.
void penalize_repetition(std::vector<double>& logits, const std::vector<int64_t>& recent,
                         const SamplingOptions& options) {
  const auto seen = std::min<int64_t>(options.repetition_window, static_cast<int64_t>(recent.size()));
  const std::span<const int64_t> window(recent.end() - seen, recent.end());
  for (int64_t token = 0; token < static_cast<int64_t>(logits.size()); ++token) {
    if (std::find(window.begin(), window.end(), token) == window.end()) continue;
    double& x = logits[token];
    x = x > 0 ? x / options.repetition_penalty : x * options.repetition_penalty;
  }
}

// What a logit is after temperature and penalty, with room for every finite one: the smallest double as
// temperature and penalty gives numbers near 1e685.
long double exact_value(float logit, bool seen, const SamplingOptions& options) {
  long double x = logit;
  if (options.temperature > 0) x /= static_cast<long double>(options.temperature);
  if (seen && options.repetition_penalty != 1) {
    const auto penalty = static_cast<long double>(options.repetition_penalty);
    x = x > 0 ? x / penalty : x * penalty;
  }
  return x;
}

// The allowed token of the largest exact value, the first of equal ones; -1: none is allowed.
int64_t most_probable(const std::vector<float>& logits, const std::vector<int64_t>& recent,
                      const SamplingOptions& options, const std::vector<int64_t>& forbidden) {
  const auto in_window = std::min<int64_t>(options.repetition_window, std::ssize(recent));
  const std::span<const int64_t> window(recent.end() - in_window, recent.end());
  int64_t best = -1;
  long double largest = 0;
  for (int64_t token = 0; token < std::ssize(logits); ++token) {
    if (logits[token] == kDropped || std::ranges::find(forbidden, token) != forbidden.end()) continue;
    const long double x =
        exact_value(logits[token], std::ranges::find(window, token) != window.end(), options);
    if (best >= 0 && x <= largest) continue;
    best = token;
    largest = x;
  }
  return best;
}

// Only `token` is left.
void keep_one(std::vector<double>& logits, int64_t token) {
  std::fill(logits.begin(), logits.end(), kDropped);
  logits[token] = 0;
}

void keep_top_k(std::vector<double>& logits, int64_t k) {
  if (k <= 0 || k >= static_cast<int64_t>(logits.size())) return;
  std::vector<double> sorted = logits;
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
  const double threshold = sorted[k - 1];
  for (double& x : logits) {
    if (x < threshold) x = kDropped;
  }
}

void keep_top_p(std::vector<double>& log_probabilities, double p) {
  if (p >= 1) return;
  std::vector<size_t> order(log_probabilities.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return log_probabilities[a] > log_probabilities[b]; });
  double kept = 0;
  for (const size_t token : order) {
    const double probability = std::exp(log_probabilities[token]);
    if (kept >= p) log_probabilities[token] = kDropped;
    kept += probability;
  }
  normalize(log_probabilities);
}

}  // namespace

void validate(const SamplingOptions& options) {
  check<UsageError>(options.temperature >= 0 && std::isfinite(options.temperature),
                    "temperature must be a finite number of at least 0, but is {}", options.temperature);
  check<UsageError>(options.top_k >= 0, "top-k must be at least 0 (0: no limit), but is {}", options.top_k);
  check<UsageError>(options.top_p > 0 && options.top_p <= 1, "top-p must be in (0, 1], but is {}",
                    options.top_p);
  check<UsageError>(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty),
                    "repetition-penalty must be a finite number above 0 (1: none), but is {}",
                    options.repetition_penalty);
  check<UsageError>(options.repetition_window >= 0, "repetition-window must be at least 0, but is {}",
                    options.repetition_window);
}

std::vector<int64_t> never_sampled(const data::Vocabulary& vocabulary) {
  return {vocabulary.bos(), vocabulary.pad(), vocabulary.mask()};
}

std::vector<double> log_probabilities(const std::vector<float>& logits) {
  std::vector<double> result(logits.begin(), logits.end());
  normalize(result);
  return result;
}

std::vector<double> filter_logits(const std::vector<float>& logits, const std::vector<int64_t>& recent,
                                  const SamplingOptions& options, const std::vector<int64_t>& forbidden) {
  const bool greedy = options.temperature == 0;
  std::vector<double> result(logits.begin(), logits.end());
  for (double& x : result) {
    check(x < std::numeric_limits<double>::infinity(),
          "the model's logits are not finite: its weights are damaged, or training diverged");
    if (!greedy) x /= options.temperature;
  }
  for (const int64_t token : forbidden) result[token] = kDropped;
  if (options.repetition_penalty != 1) penalize_repetition(result, recent, options);
  const auto best = std::max_element(result.begin(), result.end());
  // Beyond the range of double, differences are so large that only the most probable token has a probability.
  if (!std::isfinite(*best)) {
    const int64_t token = most_probable(logits, recent, options, forbidden);
    check(token >= 0, "no token may be drawn: all {} are forbidden or have logits of -infinity",
          result.size());
    keep_one(result, token);
    return result;
  }
  if (greedy) {
    keep_one(result, best - result.begin());
    return result;
  }
  keep_top_k(result, options.top_k);
  normalize(result);
  keep_top_p(result, options.top_p);
  return result;
}

int64_t draw_token(const std::vector<double>& log_probabilities, double u) {
  double cumulative = 0;
  int64_t last = -1;
  for (size_t token = 0; token < log_probabilities.size(); ++token) {
    const double probability = std::exp(log_probabilities[token]);
    if (probability == 0) continue;
    cumulative += probability;
    last = static_cast<int64_t>(token);
    if (u <= cumulative) break;
  }
  check(last >= 0, "no token can be drawn: all have probability 0");
  return last;
}

}  // namespace performer
