// SPDX-License-Identifier: Apache-2.0
// What the tests of fast-transformers share.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "performer/base/philox.h"
#include "performer/references/fast_transformers/layers.h"

namespace performer::references::fast_transformers {

inline at::Tensor normal(at::IntArrayRef sizes, uint32_t name, double deviation = 1) {
  PhiloxStream stream(23, name);
  at::Tensor values = at::empty(sizes, at::kDouble);
  for (int64_t i = 0; i < values.numel(); ++i)
    values.mutable_data_ptr<double>()[i] = deviation * stream.normal();
  return values;
}

inline double largest_error(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return a.numel() == 0 ? 0 : (a - b).abs().max().item<double>();
}

// Two layers of two heads, 12 wide; random maps keep their first draw.
inline TransformerOptions small_options(const std::string& type) {
  TransformerOptions options;
  options.n_layers = 2;
  options.n_heads = 2;
  options.query_dimensions = options.value_dimensions = 6;
  options.feed_forward_dimensions = 20;
  options.attention_type = options.cross_attention_type = type;
  options.attention.feature_map.map = "favor";
  options.attention.feature_map.n_dims = 10;
  options.attention.feature_map.redraw = 0;
  options.attention.local_context = 3;
  options.attention.topk = 2;
  options.cross_attention = options.attention;
  return options;
}

// In double and in evaluation mode.
template <class Model>
Model ready(Model model) {
  model->to(at::kDouble);
  model->eval();
  return model;
}

inline LengthMask lengths(std::vector<int64_t> values, int64_t longest) {
  return LengthMask(at::tensor(values, at::kLong), longest);
}

}  // namespace performer::references::fast_transformers
