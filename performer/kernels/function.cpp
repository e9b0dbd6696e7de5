// SPDX-License-Identifier: Apache-2.0
#include "performer/kernels/function.h"

#include <fmt/ranges.h>

#include <iterator>

#include "performer/base/error.h"
#include "performer/base/fields.h"

namespace performer::kernels {

namespace {
constexpr const char* kNames[] = {"relu", "elu+1", "square", "abs",      "requ", "gelu",      "sigmoid",
                                  "tanh", "cos",   "sin",    "identity", "exp",  "leaky-relu"};
}

const char* function_name(Function function) {
  return kNames[static_cast<int>(function)];
}

Function function_from_name(const std::string& name) {
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (name == kNames[i]) return static_cast<Function>(i);
  }
  throw UsageError(fmt::format("unknown feature function '{}'; known: {}", name, fmt::join(kNames, ", ")));
}

}  // namespace performer::kernels
