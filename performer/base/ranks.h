// SPDX-License-Identifier: Apache-2.0
// Ranks, and how far two rankings agree.
#pragma once

#include <span>
#include <vector>

namespace performer {

// The rank of each value, from 1 for the smallest; equal values share the mean of their ranks.
std::vector<double> mean_ranks(std::span<const double> values);

// Pearson's correlation, from -1 to 1. NaN for fewer than two values and where all values of one side are
// equal. Both have the same number of values.
double pearson(std::span<const double> a, std::span<const double> b);

// Spearman's rank correlation: Pearson's of the mean ranks, from -1 to 1. NaN for fewer than two values and
// where all values of one side are equal. Both have the same number of values, none of which is NaN.
double spearman(std::span<const double> a, std::span<const double> b);

}  // namespace performer
