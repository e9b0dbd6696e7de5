// SPDX-License-Identifier: Apache-2.0
// Learning-rate schedules as protein_lm writes them (utils.py, create_learning_rate_scheduler): a product of
// factors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace performer::train {

// The numbers that the factors use; protein_lm's defaults.
struct ScheduleOptions {
  double base = 0.5;          // factor `constant`
  int64_t warmup = 8000;      // steps of `linear_warmup`, knee of both rsqrt factors, start of `cosine_decay`
  double decay_factor = 0.5;  // `decay_every` multiplies by this ...
  int64_t steps_per_decay = 20000;  // ... once in so many steps
  int64_t steps_per_cycle =
      100000;  // `cosine_decay` falls from 1 to 0 in so many steps, then starts again at 1
};

// A rate named by factors joined by '*', for example "constant * linear_warmup * rsqrt_decay". The product
// starts at 1 and is taken in the order written. With s the step and w the warmup:
//
//   constant                base
//   linear_warmup           min(1, s / w); 1 when w is 0
//   rsqrt_decay             1 / sqrt(max(s, w))
//   rsqrt_normalized_decay  sqrt(w) / sqrt(max(s, w))
//   decay_every             decay_factor ^ floor(s / steps_per_decay)
//   cosine_decay            (1 + cos(pi * (p mod 1))) / 2 with p = max(0, (s - w) / steps_per_cycle)
class Schedule {
 public:
  // Throws UsageError naming an unknown factor and the nearest known one, or an option that cannot be.
  Schedule(const std::string& factors, const ScheduleOptions& options);
  double operator()(int64_t step) const;

 private:
  enum class Factor {
    constant,
    linear_warmup,
    rsqrt_decay,
    rsqrt_normalized_decay,
    decay_every,
    cosine_decay
  };
  static Factor parse(const std::string& name);
  double apply(Factor factor, double rate, double step) const;

  ScheduleOptions options_;
  std::vector<Factor> factors_;
};

}  // namespace performer::train
