// SPDX-License-Identifier: Apache-2.0
// What a file of pretrained weights holds, whatever its format.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <variant>

namespace performer {

using Scalar = std::variant<bool, int64_t, double, std::string>;

// Tensors and other values by name. The names of nested containers are joined with a point, or in Flax files
// with a slash.
struct StoredModel {
  std::map<std::string, at::Tensor> tensors = {};
  std::map<std::string, Scalar> scalars = {};
};

}  // namespace performer
