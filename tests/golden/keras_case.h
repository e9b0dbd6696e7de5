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
#include "performer/references/keras/attention.h"
#include "tests/golden/cases.h"
#include "tests/golden/golden.h"

namespace performer::golden::keras {

namespace reference = references::keras;

// Options that say how a case was made, not what was called.
inline const std::set<std::string> kShapes = {"B", "T", "S", "H", "d", "dv", "inputs", "mask"};

// An option that the test does not read would pass silently with another meaning.
inline void expect_known(const Case& item, std::set<std::string> known) {
  known.insert(kShapes.begin(), kShapes.end());
  for (const auto& [name, value] : item.options.items()) {
    EXPECT_TRUE(known.contains(name)) << item.id << ": option " << name << " is not understood";
  }
}

// Of an option that a record may leave out or give as null, for the default of the reference.
template <class T>
std::optional<T> optional(const Case& item, const std::string& name) {
  if (!item.options.contains(name) || item.options.at(name).is_null()) return std::nullopt;
  return item.option<T>(name);
}

inline std::string transform_of(const Case& item) {
  return option_or<std::string>(item, "feature_transform", "exp");
}

inline int64_t random_features_of(const Case& item) {
  return option_or<int64_t>(item, "num_random_features", 256);
}

// The recorded projection W is the one that its seed gives, but for the float32 of its QR decomposition;
// another seed would be off by the size of W.
inline void expect_seeded(const Case& item, const at::Tensor& seeded) {
  EXPECT_LT((seeded - item.tensor("W")).abs().max().item<double>(), 1e-3) << item.id;
}

// Results in float32 that the reference lost to underflow or cancellation have no value to compare with.
inline void expect(Group& group, const Case& item, const std::string& name, const at::Tensor& actual) {
  if (actual.scalar_type() == at::kFloat && item.outputs.at(name).f32_unreliable) return;
  group.expect(item, name, actual);
}

using Inputs = std::map<std::string, at::Tensor>;

// The inputs in the given type, masks included: the reference knows no others. Those whose gradient is
// recorded are leaves.
inline Inputs inputs_of(const Case& item, at::ScalarType type) {
  Inputs inputs;
  for (const std::string& name : item.inputs) {
    at::Tensor input = item.tensor(name);
    if (input.is_floating_point() || name == "mask") input = input.to(type).clone();
    inputs[name] = input.set_requires_grad(item.outputs.contains("d" + name));
  }
  return inputs;
}

// `out` and, where recorded, the gradient of sum(out * cot) by each input as d<name>.
inline void expect_out(Group& group, const Case& item, const Inputs& inputs, const at::Tensor& out) {
  keras::expect(group, item, "out", out);
  if (!inputs.contains("cot") || !out.requires_grad()) return;
  std::vector<at::Tensor> leaves;
  std::vector<std::string> names;
  for (const auto& [name, input] : inputs) {
    if (!input.requires_grad()) continue;
    names.push_back("d" + name);
    leaves.push_back(input);
  }
  const auto grads = torch::autograd::grad({(out * inputs.at("cot")).sum()}, leaves, {}, std::nullopt, false,
                                           /*allow_unused=*/true);
  for (size_t i = 0; i < names.size(); ++i) {
    keras::expect(group, item, names[i], grads[i].defined() ? grads[i] : at::zeros_like(leaves[i]));
  }
}

// Calls `run` in float32 and in double.
inline void compare(Group& group, const Case& item, const std::function<at::Tensor(const Inputs&)>& run) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const Inputs inputs = inputs_of(item, type);
    expect_out(group, item, inputs, run(inputs));
  }
}

inline std::optional<at::Tensor> maybe(const Inputs& inputs, const std::string& name) {
  const auto found = inputs.find(name);
  if (found == inputs.end()) return std::nullopt;
  return found->second;
}

inline reference::AttentionOptions attention_options(const Case& item) {
  reference::AttentionOptions with;
  with.feature_transform = transform_of(item);
  with.is_short_seq = option_or(item, "is_short_seq", false);
  const auto key_dim = static_cast<double>(item.tensor("query").size(-1));
  with.scale = option_or(item, "scale", 1 / std::sqrt(key_dim));
  with.scale_by_length = option_or(item, "scale_by_length", false);
  if (option_or(item, "use_causal_windowed", false)) {
    with.window = reference::Window{option_or<int64_t>(item, "causal_chunk_length", 1),
                                    option_or<int64_t>(item, "causal_window_length", 3),
                                    optional<double>(item, "causal_window_decay"),
                                    option_or<std::string>(item, "causal_padding", "none")};
  }
  return with;
}

}  // namespace performer::golden::keras
