// SPDX-License-Identifier: Apache-2.0
// Random attention problems for the tests of the operators.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "performer/ops/favor.h"
#include "performer/ops/projection.h"

namespace performer::ops::test {

using at::Tensor;

inline AttentionInputs random_call(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t d,
                                   int64_t e, double deviation = 1, at::ScalarType type = at::kFloat) {
  at::manual_seed(batch + 10 * queries + 100 * keys);
  const auto options = at::TensorOptions(type);
  return {at::randn({batch, queries, heads, d}, options) * deviation,
          at::randn({batch, keys, heads, d}, options) * deviation,
          at::randn({batch, keys, heads, e}, options)};
}

inline FeatureMap softmax_features(int64_t heads, int64_t d, int64_t features, bool offset = false) {
  FeatureMap map;
  map.scale = std::pow(static_cast<double>(d), -0.25);
  map.projection = draw_projection("orthogonal", "chi", heads, features, d, 1, 2, 3);
  if (offset) map.offset = at::linspace(-1, 1, features);
  return map;
}

inline FeatureMap elementwise_features(const char* function, double epsilon) {
  FeatureMap map;
  map.family = function;
  map.epsilon = epsilon;
  return map;
}

// Maps of both families: with and without a projection, an offset and one projection for each head.
inline std::vector<FeatureMap> some_maps(int64_t heads, int64_t d, int64_t features) {
  FeatureMap bare;  // exp of the inputs
  FeatureMap projected = elementwise_features("elu+1", 0.1);
  projected.projection = draw_projection("iid", "chi", 1, features, d, 5, 0, 0)[0];
  return {softmax_features(heads, d, features), softmax_features(heads, d, features, true), bare,
          elementwise_features("relu", 1e-3), projected};
}

inline double gap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 && b.numel() == 0) return 0;
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

inline int64_t feature_count_of(const FeatureMap& map, int64_t head_size) {
  return map.projection.has_value() ? map.projection->size(-2) : head_size;
}

// kv and key_sum without their log-scale, in double, side by side.
inline Tensor true_sums(const State& s) {
  const Tensor scale = s.log_scale.to(at::kDouble).exp().unsqueeze(-1);
  return at::cat({s.kv.to(at::kDouble) * scale, s.key_sum.to(at::kDouble).unsqueeze(-1) * scale}, -1);
}

inline std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

// Compares the gradient of `loss` with its differences, for every second element of every leaf at least.
inline void expect_gradients(const std::vector<Tensor>& given,
                             const std::function<Tensor(const std::vector<Tensor>&)>& loss,
                             double tolerance = 1e-6) {
  std::vector<Tensor> leaves;
  for (const Tensor& leaf : given) leaves.push_back(leaf.detach().clone().requires_grad_(true));
  const auto gradients = torch::autograd::grad({loss(leaves)}, leaves);
  const at::NoGradGuard no_grad;
  for (size_t n = 0; n < leaves.size(); ++n) {
    for (int64_t i = 0; i < leaves[n].numel(); ++i) {
      const auto moved = [&](double step) {
        std::vector<Tensor> copy = leaves;
        copy[n] = leaves[n].detach().clone();
        copy[n].view(-1)[i] += step;
        return loss(copy).item<double>();
      };
      const double slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
      EXPECT_NEAR(gradients[n].reshape(-1)[i].item<double>(), slope,
                  tolerance * std::max(1.0, std::abs(slope)))
          << "leaf " << n << " element " << i;
    }
  }
}

}  // namespace performer::ops::test
