// SPDX-License-Identifier: Apache-2.0
#include "performer/base/ranks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "performer/base/error.h"

namespace performer {

std::vector<double> mean_ranks(std::span<const double> values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, {}, [&](size_t i) { return values[i]; });
  std::vector<double> ranks(values.size());
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    const double mean = (static_cast<double>(begin + 1) + static_cast<double>(end)) / 2;
    for (size_t i = begin; i < end; ++i) ranks[order[i]] = mean;
    begin = end;
  }
  return ranks;
}

double pearson(std::span<const double> a, std::span<const double> b) {
  check(a.size() == b.size(), "a correlation of {} and {} values", a.size(), b.size());
  const auto mean = [](std::span<const double> values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  };
  const double mean_a = mean(a), mean_b = mean(b);
  double aa = 0, bb = 0, ab = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    aa += (a[i] - mean_a) * (a[i] - mean_a);
    bb += (b[i] - mean_b) * (b[i] - mean_b);
    ab += (a[i] - mean_a) * (b[i] - mean_b);
  }
  // Rounding of the mean gives equal values a variance.
  const auto varies = [](std::span<const double> values) {
    return std::ranges::any_of(values, [&](double value) { return value != values[0]; });
  };
  if (!varies(a) || !varies(b) || aa == 0 || bb == 0) return std::numeric_limits<double>::quiet_NaN();
  return ab / std::sqrt(aa * bb);
}

double spearman(std::span<const double> a, std::span<const double> b) {
  check(a.size() == b.size(), "a rank correlation of {} and {} values", a.size(), b.size());
  return pearson(mean_ranks(a), mean_ranks(b));
}

}  // namespace performer
