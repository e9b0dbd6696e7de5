// SPDX-License-Identifier: Apache-2.0
// Feature maps that exponentiate random projections as they were drawn: favor+, hyperbolic and expmod.
#include <ATen/ATen.h>

#include <cmath>

#include "performer/ops/maps/row.h"

namespace performer::ops {
namespace {

void prepare_favor_plus(PreparedMap& result, const MapProblem& problem) {
  prepare_projected(result, problem, problem.head_size);
}

// Each row of the projection and its negative.
void prepare_hyperbolic(PreparedMap& result, const MapProblem& problem) {
  prepare_projected(result, problem, problem.head_size);
  result.map.projection = at::cat({problem.weights.projection, -problem.weights.projection}, 1);
  result.log_number = -0.5 * std::log(static_cast<double>(problem.options.features));
}

// As if every input had the squared norm sqrt(D).
void prepare_expmod(PreparedMap& result, const MapProblem& problem) {
  prepare_projected(result, problem, problem.head_size);
  result.map.norm_weight = 0;
  result.log_number -= std::sqrt(static_cast<double>(problem.head_size)) / 2;
}

constexpr FeatureMapTraits kRandomExponential{.exponential = true, .projected = true};

constexpr MapRow kExponentialMaps[] = {
    {.name = "favor+", .traits = kRandomExponential, .prepare = prepare_favor_plus},
    {.name = "hyperbolic",
     .traits = kRandomExponential,
     .features_per_row = 2,
     .prepare = prepare_hyperbolic},
    {.name = "expmod", .traits = kRandomExponential, .prepare = prepare_expmod},
};

}  // namespace

std::span<const MapRow> exponential_maps() {
  return kExponentialMaps;
}

void prepare_projected(PreparedMap& result, const MapProblem& problem, int64_t columns) {
  problem.check_projection(columns);
  result.map.scale = std::pow(static_cast<double>(problem.head_size), -0.25);
  result.map.projection = problem.weights.projection;
  result.log_number = -0.5 * std::log(static_cast<double>(problem.drawn_rows()));
}

}  // namespace performer::ops
