// SPDX-License-Identifier: Apache-2.0
// What the tests against recordings share.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "tests/golden/golden.h"

namespace performer::golden {

// A test failure for an option that the test does not know: a recording whose option was ignored would prove
// nothing.
inline void expect_known_options(const Case& item, const std::set<std::string>& known) {
  for (const auto& [name, value] : item.options.items()) {
    EXPECT_TRUE(known.contains(name))
        << item.id << ": option " << name << " = " << value << " is not understood";
  }
}

// An option that may be absent or null.
template <class T>
T option_or(const Case& item, const std::string& name, const T& otherwise) {
  const auto found = item.options.find(name);
  return found == item.options.end() || found->is_null() ? otherwise : found->get<T>();
}

// Input `name` as a leaf in `type`; undefined when it is not recorded.
inline at::Tensor leaf(const Case& item, const std::string& name, at::ScalarType type, bool gradient = true) {
  if (!item.has(name)) return {};
  return item.tensor(name).to(type).clone().set_requires_grad(gradient);
}

// Compares output `name` where the case has one.
inline void expect_recorded(Group& group, const Case& item, const std::string& name,
                            const at::Tensor& actual) {
  if (item.outputs.contains(name)) group.expect(item, name, actual);
}

// The types in which a case is run: float32, and double where the reference ran in double.
inline std::vector<at::ScalarType> run_types(const Case& item) {
  for (const auto& [name, output] : item.outputs) {
    if (!output.float64_name.empty()) return {at::kFloat, at::kDouble};
  }
  return {at::kFloat};
}

// Our name of a kernel function of google-research's.
inline std::string function_name(const std::string& name) {
  return name == "shiftedelu" ? "elu+1" : name;
}

}  // namespace performer::golden
