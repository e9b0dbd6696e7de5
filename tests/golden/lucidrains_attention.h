// SPDX-License-Identifier: Apache-2.0
// What the tests of performer-pytorch's recorded attention share.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/golden/golden.h"

namespace performer::golden::lucidrains_attention {

// A test failure when the case has an option that the test does not know: it would run with a default.
inline void expect_known_options(const Case& item, const std::set<std::string>& known) {
  for (const auto& [name, value] : item.options.items()) {
    EXPECT_TRUE(known.contains(name))
        << item.group << " " << item.id << ": unknown option " << name << " = " << value;
  }
}

// A function's name there is its name here, but for hyphens.
inline std::string kernel_name(const nlohmann::json& option) {
  std::string name = option.is_string() ? option.get<std::string>() : "relu";
  for (char& letter : name) letter = letter == '_' ? '-' : letter;
  return name;
}

// Compares `out` and the gradients of sum(out * cot) with all that is recorded: output NAME of the case is
// "out", or a key of `leaves` (whose tensors must require gradients).
inline void expect_all(Group& group, const Case& item, const at::Tensor& out,
                       const std::map<std::string, at::Tensor>& leaves) {
  std::map<std::string, at::Tensor> results = {{"out", out.detach()}};
  std::vector<std::string> names;
  std::vector<at::Tensor> inputs;
  for (const auto& [name, output] : item.outputs) {
    if (name == "out") continue;
    ASSERT_TRUE(leaves.contains(name)) << item.group << " " << item.id << ": unknown output " << name;
    names.push_back(name);
    inputs.push_back(leaves.at(name));
  }
  if (!names.empty()) {
    const at::Tensor loss = (out * item.tensor("cot").to(out.scalar_type())).sum();
    const auto gradients = torch::autograd::grad({loss}, inputs);
    for (size_t i = 0; i < names.size(); ++i) results[names[i]] = gradients[i];
  }
  for (const auto& [name, result] : results) {
    at::Tensor compared = result;
    const nlohmann::json& entry = item.entry["outputs"][name];
    if (result.scalar_type() == at::kFloat && entry.value("nonfinite_f32", 0) > 0 &&
        entry.value("nonfinite_f64", 0) == 0) {
      // Overflow of the float32 run must be where the reference overflows; what is finite is compared.
      const at::Tensor recorded = item.tensor(name);
      EXPECT_TRUE(at::equal(result.isnan(), recorded.isnan()) && at::equal(result.isinf(), recorded.isinf()))
          << item.group << " " << item.id << " " << name << ": overflows elsewhere than the reference";
      const std::string other = item.outputs.at(name).float64_name;
      if (!other.empty())
        compared = at::where(recorded.isfinite(), result, item.tensor(other).to(at::kFloat));
    }
    group.expect(item, name, compared);
  }
}

}  // namespace performer::golden::lucidrains_attention
