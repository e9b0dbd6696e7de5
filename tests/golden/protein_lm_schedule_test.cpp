// SPDX-License-Identifier: Apache-2.0
#include "performer/train/schedule.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

TEST(Golden, Schedules) {
  run_group("plm_schedule", [&](Group& group, const Case& item) {
    const auto& options = item.options;
    train::ScheduleOptions with;  // protein_lm's defaults
    with.base = options.value("base_learning_rate", with.base);
    with.warmup = options.value("warmup_steps", with.warmup);
    with.decay_factor = options.value("decay_factor", with.decay_factor);
    with.steps_per_decay = options.value("steps_per_decay", with.steps_per_decay);
    with.steps_per_cycle = options.value("steps_per_cycle", with.steps_per_cycle);
    const std::string factors = options.value("factors", "constant * linear_warmup * rsqrt_decay");
    const train::Schedule schedule(factors, with);
    const at::Tensor steps = item.tensor("steps").to(at::kLong);
    at::Tensor rates = at::empty({steps.numel()}, at::kDouble);
    // The share 0 / 0 of no warmup at all is not a number there; here it is 1, at step 0 as at all others.
    const bool without = with.warmup == 0 && factors.find("linear_warmup") != std::string::npos;
    for (int64_t i = 0; i < steps.numel(); ++i) {
      const auto step = steps[i].item<int64_t>();
      rates[i] = without && step == 0 ? std::nan("") : schedule(step);
    }
    // Even the double run of the reference divides and takes roots of its int32 steps in float32.
    group.expect(item, "lr", rates.to(at::kFloat));
  });
}

}  // namespace
}  // namespace performer::golden
