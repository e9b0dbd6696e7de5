// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "performer/train/adam.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

// Constant, or t times the base in step t (from 1).
double learning_rate(const Case& item, int step) {
  const double base = item.option<double>("learning_rate");
  return item.options.value("vary_lr", false) ? base * (step + 1) : base;
}

void run_adam(Group& group, const Case& item, at::ScalarType type) {
  std::vector<train::NamedParameter> parameters;
  for (const std::string& input : item.inputs) {
    if (input.starts_with("p/"))
      parameters.push_back({input.substr(2), item.tensor(input).to(type).clone().requires_grad_(true), true});
  }
  const train::AdamOptions defaults;  // the reference's, except for the weight decay
  train::Adam adam(parameters, {.beta1 = item.options.value("beta1", defaults.beta1),
                                .beta2 = item.options.value("beta2", defaults.beta2),
                                .epsilon = item.options.value("eps", defaults.epsilon),
                                .weight_decay = item.option<double>("weight_decay")});
  const bool clips = item.options.contains("grad_clip") && !item.options["grad_clip"].is_null();
  const double clip = clips ? item.option<double>("grad_clip") : 0;
  for (int step = 0; step < item.option<int>("steps"); ++step) {
    for (train::NamedParameter& p : parameters) {
      p.value.mutable_grad() = item.tensor(fmt::format("g{}/{}", step, p.name)).to(type).clone();
    }
    const double scale = train::clipping_scale(train::global_norm(adam.gradients()), clip);
    adam.step(learning_rate(item, step), scale);
    if (clips) {
      for (train::NamedParameter& p : parameters)
        group.expect(item, fmt::format("clipped{}/{}", step, p.name), p.value.grad());
    }
    for (train::NamedParameter& p : parameters) {
      group.expect(item, fmt::format("p_after{}/{}", step + 1, p.name), p.value.detach());
    }
  }
}

TEST(Golden, AdamAndClipping) {
  run_group("plm_optimizer", [&](Group& group, const Case& item) {
    run_adam(group, item, at::kFloat);
    run_adam(group, item, at::kDouble);
  });
}

}  // namespace
}  // namespace performer::golden
