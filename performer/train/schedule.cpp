// SPDX-License-Identifier: Apache-2.0
#include "performer/train/schedule.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "performer/base/error.h"
#include "performer/base/fields.h"

namespace performer::train {
namespace {

// In the order of Schedule::Factor.
const std::vector<std::string>& factor_names() {
  static const std::vector<std::string> names = {
      "constant", "linear_warmup", "rsqrt_decay", "rsqrt_normalized_decay", "decay_every", "cosine_decay"};
  return names;
}

std::string trim(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

}  // namespace

Schedule::Schedule(const std::string& factors, const ScheduleOptions& options) : options_(options) {
  check<UsageError>(options.warmup >= 0, "train.warmup must be 0 or more steps, but is {}", options.warmup);
  check<UsageError>(options.steps_per_decay > 0, "train.steps_per_decay must be 1 step or more, but is {}",
                    options.steps_per_decay);
  check<UsageError>(options.steps_per_cycle > 0, "train.steps_per_cycle must be 1 step or more, but is {}",
                    options.steps_per_cycle);
  for (size_t begin = 0; begin <= factors.size();) {
    const size_t end = std::min(factors.find('*', begin), factors.size());
    factors_.push_back(parse(trim(factors.substr(begin, end - begin))));
    begin = end + 1;
  }
}

Schedule::Factor Schedule::parse(const std::string& name) {
  const auto& names = factor_names();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found != names.end()) return static_cast<Factor>(found - names.begin());
  const std::string near = nearest(name, names);
  throw UsageError(fmt::format(
      "train.schedule has an unknown factor '{}'{}; factors are joined by '*', known are {}", name,
      near.empty() ? "" : fmt::format(": did you mean '{}'?", near), fmt::join(names, ", ")));
}

double Schedule::operator()(int64_t step) const {
  double rate = 1;
  for (const Factor factor : factors_) rate = apply(factor, rate, static_cast<double>(step));
  return rate;
}

double Schedule::apply(Factor factor, double rate, double step) const {
  const double warmup = static_cast<double>(options_.warmup);
  switch (factor) {
    case Factor::constant:
      return rate * options_.base;
    case Factor::linear_warmup:
      return options_.warmup == 0 ? rate : rate * std::min(1.0, step / warmup);
    case Factor::rsqrt_decay:
      return rate / std::sqrt(std::max(step, warmup));
    case Factor::rsqrt_normalized_decay:
      return rate * std::sqrt(warmup) / std::sqrt(std::max(step, warmup));
    case Factor::decay_every:
      return rate * std::pow(options_.decay_factor,
                             std::floor(step / static_cast<double>(options_.steps_per_decay)));
    case Factor::cosine_decay: {
      const double progress = std::max(0.0, (step - warmup) / static_cast<double>(options_.steps_per_cycle));
      return rate * 0.5 * (1 + std::cos(std::numbers::pi * std::fmod(progress, 1.0)));
    }
  }
  return rate;
}

}  // namespace performer::train
