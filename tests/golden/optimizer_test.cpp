// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "performer/train/adam.h"
#include "tests/golden/golden.h"

namespace performer {
namespace {

// Constant, or t times the base in step t (from 1).
double learning_rate(const golden::Case& item, int step) {
  const double base = item.option<double>("learning_rate");
  return item.option<bool>("vary_lr") ? base * (step + 1) : base;
}

void run_adam(golden::Group& group, const golden::Case& item, at::ScalarType type) {
  std::vector<NamedParameter> parameters;
  for (const char* name : {"w", "b"}) {
    parameters.push_back(
        {name, item.tensor(fmt::format("p/{}", name)).to(type).clone().requires_grad_(true), true});
  }
  Adam adam(parameters, {.weight_decay = item.option<double>("weight_decay")});
  const double clip = item.options["grad_clip"].is_null() ? 0 : item.option<double>("grad_clip");
  for (int step = 0; step < item.option<int>("steps"); ++step) {
    for (NamedParameter& p : parameters) {
      p.value.mutable_grad() = item.tensor(fmt::format("g{}/{}", step, p.name)).to(type).clone();
    }
    clip_gradients(adam.gradients(), clip);
    if (clip > 0) {
      for (NamedParameter& p : parameters)
        group.expect(item, fmt::format("clipped{}/{}", step, p.name), p.value.grad());
    }
    adam.step(learning_rate(item, step));
    for (NamedParameter& p : parameters) {
      group.expect(item, fmt::format("p_after{}/{}", step + 1, p.name), p.value.detach());
    }
  }
}

TEST(Golden, AdamAndClipping) {
  golden::Group group("plm_optimizer");
  if (group.empty()) GTEST_SKIP() << golden::kMissing;
  for (const golden::Case& item : group.cases()) {
    run_adam(group, item, at::kFloat);
    run_adam(group, item, at::kDouble);
  }
  group.finish();
}

}  // namespace
}  // namespace performer
