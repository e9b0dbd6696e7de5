// SPDX-License-Identifier: Apache-2.0
// What the recorded cases of KernelAttention have in common.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <map>
#include <set>
#include <string>

#include "performer/base/error.h"
#include "performer/compat/keras_attention.h"
#include "tests/golden/golden.h"

namespace performer::golden::keras {

// Options that say how a case was made, not what was called.
inline const std::set<std::string> kShapes = {"B", "T", "S", "H", "d", "dv", "inputs", "mask"};

// An option that the test does not read would pass silently with another meaning.
inline void expect_known(const Case& item, std::set<std::string> known) {
  known.insert(kShapes.begin(), kShapes.end());
  for (const auto& [name, value] : item.options.items()) {
    EXPECT_TRUE(known.contains(name)) << item.id << ": option " << name << " is not understood";
  }
}

inline std::optional<double> optional_number(const Case& item, const std::string& name) {
  if (!item.options.contains(name) || item.options.at(name).is_null()) return std::nullopt;
  return item.option<double>(name);
}

inline std::string text_or_none(const Case& item, const std::string& name) {
  if (!item.options.contains(name) || item.options.at(name).is_null()) return "none";
  return item.option<std::string>(name);
}

// The recorded projection W is the one that its seed gives, as closely as draws that differ in their last
// digits allow after a QR decomposition; another seed would be off by the size of W.
inline void expect_seeded(const Case& item, const at::Tensor& seeded) {
  EXPECT_LT((seeded - item.tensor("W")).abs().max().item<double>(), 5e-3) << item.id;
}

// Results in float32 that the reference lost to underflow or cancellation have no value to compare with.
inline void expect(Group& group, const Case& item, const std::string& name, const at::Tensor& actual) {
  if (actual.scalar_type() == at::kFloat && item.outputs.at(name).f32_unreliable) return;
  group.expect(item, name, actual);
}

// Calls `run` with the inputs named in `gradients` as leaves and the others as constants, in float32 and in
// double; compares `out` and, where recorded, the gradient of sum(out * cot) by each of them as d<name>.
inline void compare(Group& group, const Case& item, const std::set<std::string>& gradients,
                    const std::function<at::Tensor(const std::map<std::string, at::Tensor>&)>& run) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    std::map<std::string, at::Tensor> inputs;
    for (const std::string& name : item.inputs) {
      at::Tensor input = item.tensor(name);
      if (input.is_floating_point()) input = input.to(type).clone();
      inputs[name] = input.set_requires_grad(gradients.contains(name));
    }
    const at::Tensor out = run(inputs);
    keras::expect(group, item, "out", out);
    if (!inputs.contains("cot")) continue;
    std::vector<at::Tensor> leaves;
    std::vector<std::string> names;
    for (const auto& [name, input] : inputs) {
      if (!item.outputs.contains("d" + name)) continue;
      ASSERT_TRUE(gradients.contains(name)) << item.id << ": gradient d" << name << " is not computed";
      names.push_back("d" + name);
      leaves.push_back(input);
    }
    const auto grads = torch::autograd::grad({(out * inputs["cot"]).sum()}, leaves, {}, std::nullopt, false,
                                             /*allow_unused=*/true);
    for (size_t i = 0; i < names.size(); ++i) {
      keras::expect(group, item, names[i], grads[i].defined() ? grads[i] : at::zeros_like(leaves[i]));
    }
  }
}

inline std::optional<at::Tensor> maybe(const std::map<std::string, at::Tensor>& inputs,
                                       const std::string& name) {
  const auto found = inputs.find(name);
  if (found == inputs.end()) return std::nullopt;
  return found->second;
}

inline compat::keras::AttentionOptions attention_options(const Case& item) {
  compat::keras::AttentionOptions with;
  const auto& options = item.options;
  with.feature_transform = options.at("feature_transform");
  with.is_short_seq = options.value("is_short_seq", false);
  with.scale = optional_number(item, "scale").value_or(1 / std::sqrt(item.option<double>("key_dim")));
  with.scale_by_length = options.value("scale_by_length", false);
  if (options.value("use_causal_windowed", false)) {
    with.window = compat::keras::Window{
        options.value("causal_chunk_length", int64_t{1}), options.value("causal_window_length", int64_t{3}),
        optional_number(item, "causal_window_decay"), text_or_none(item, "causal_padding")};
  }
  return with;
}

}  // namespace performer::golden::keras
