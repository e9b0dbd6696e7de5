// SPDX-License-Identifier: Apache-2.0
// Generalised attention: an element-wise function of the inputs, or of their random projections when a kind
// of projection is named.
#include <ATen/ATen.h>

#include <cmath>

#include "performer/ops/maps/row.h"

namespace performer::ops {
namespace {

void prepare_elementwise(PreparedMap& result, const MapProblem& problem) {
  result.map.family = problem.options.map;  // the kernels' function of that name
  result.map.epsilon = resolved_epsilon(problem.options);
  if (!draws_projection(problem.options)) return;
  problem.check_projection(problem.head_size);
  result.map.projection = problem.weights.projection;
  result.log_number = -0.5 * std::log(static_cast<double>(problem.options.features));
}

// Without an epsilon exp is summed with log-scales, as the exponential family is.
void prepare_exp(PreparedMap& result, const MapProblem& problem) {
  prepare_elementwise(result, problem);
  if (result.map.epsilon != 0) return;
  result.map.family = "exponential";
  result.map.norm_weight = 0;
}

constexpr FeatureMapTraits kPositive{};
constexpr FeatureMapTraits kSigned{.signed_features = true};

constexpr MapRow elementwise(const char* name, FeatureMapTraits traits, double epsilon = 0) {
  return {.name = name, .traits = traits, .default_epsilon = epsilon, .prepare = prepare_elementwise};
}

constexpr MapRow kElementwiseMaps[] = {
    elementwise("relu", kPositive, 1e-3),
    elementwise("elu+1", kPositive),
    elementwise("square", kPositive),
    elementwise("abs", kPositive),
    elementwise("requ", kPositive),
    elementwise("gelu", kSigned),
    elementwise("sigmoid", kPositive),
    elementwise("tanh", kSigned),
    elementwise("cos", kSigned),
    elementwise("sin", kSigned),
    elementwise("identity", kSigned),
    {.name = "exp", .traits = kPositive, .default_epsilon = 0, .prepare = prepare_exp},
    elementwise("leaky-relu", kSigned),
};

}  // namespace

std::span<const MapRow> elementwise_maps() {
  return kElementwiseMaps;
}

}  // namespace performer::ops
