// SPDX-License-Identifier: Apache-2.0
#include "performer/train/schedule.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/golden/golden.h"

namespace performer {
namespace {

TEST(Golden, Schedules) {
  golden::Group group("plm_schedule");
  if (group.empty()) GTEST_SKIP() << golden::kMissing;
  for (const golden::Case& item : group.cases()) {
    const auto& options = item.options;
    ScheduleOptions with;  // protein_lm's defaults
    with.base = options.value("base_learning_rate", with.base);
    with.warmup = options.value("warmup_steps", with.warmup);
    with.decay_factor = options.value("decay_factor", with.decay_factor);
    with.steps_per_decay = options.value("steps_per_decay", with.steps_per_decay);
    with.steps_per_cycle = options.value("steps_per_cycle", with.steps_per_cycle);
    const Schedule schedule(options.value("factors", "constant * linear_warmup * rsqrt_decay"), with);
    const at::Tensor steps = item.tensor("steps").to(at::kLong);
    at::Tensor rates = at::empty({steps.numel()}, at::kDouble);
    for (int64_t i = 0; i < steps.numel(); ++i) rates[i] = schedule(steps[i].item<int64_t>());
    // Even the double run of the reference divides and takes roots of its int32 steps in float32.
    group.expect(item, "lr", rates.to(at::kFloat));
  }
  group.finish();
}

}  // namespace
}  // namespace performer
