// SPDX-License-Identifier: Apache-2.0
// What the tests of performer-pytorch's recorded attention share.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cctype>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "performer/references/performer_pytorch/fast_attention.h"
#include "tests/golden/cases.h"
#include "tests/golden/golden.h"

namespace performer::golden::performer_pytorch {

using namespace references::performer_pytorch;  // NOLINT: what is tested

// A function's name there ("gelu (exact erf)", "leaky_relu", "LeakyReLU"; none: `absent`) as its name here.
inline std::string kernel_name(const nlohmann::json& option, const std::string& absent = "relu") {
  static const std::map<std::string, std::string> kOther = {
      {"leakyrelu", "leaky-relu"}, {"elu1", "elu+1"},        {"elu-1", "elu+1"}, {"elu-plus-one", "elu+1"},
      {"elu-plus-1", "elu+1"},     {"shifted-elu", "elu+1"}, {"sqr", "square"},  {"swish", "silu"}};
  if (!option.is_string()) return absent;
  std::string name = option.get<std::string>();
  name = name.substr(0, name.find(' '));  // without a remark in brackets
  for (char& letter : name) letter = letter == '_' ? '-' : static_cast<char>(std::tolower(letter));
  const auto other = kOther.find(name);
  return other == kOther.end() ? name : other->second;
}

// `result` of output `name`, ready to be compared with the double recording. Where the reference's float32
// run overflows though its double run does not, ours must overflow in the same places; they are then taken as
// equal, so that what is finite is compared.
inline at::Tensor with_same_overflow(const Case& item, const std::string& name, const at::Tensor& result) {
  const nlohmann::json& entry = item.entry["outputs"][name];
  if (result.scalar_type() != at::kFloat || entry.value("nonfinite_f32", 0) == 0) return result;
  const std::string other = item.outputs.at(name).float64_name;
  if (other.empty()) return result;
  const at::Tensor recorded = item.tensor(name), precise = item.tensor(other);
  EXPECT_TRUE(at::equal(result.isnan(), recorded.isnan()) && at::equal(result.isinf(), recorded.isinf()))
      << item.group << " " << item.id << " " << name << ": overflows elsewhere than the reference";
  return at::where(recorded.isfinite(), result, precise.to(at::kFloat));
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
  for (const auto& [name, result] : results) group.expect(item, name, with_same_overflow(item, name, result));
}

}  // namespace performer::golden::performer_pytorch
