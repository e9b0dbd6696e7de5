// SPDX-License-Identifier: Apache-2.0
// Feature maps with learned weights: geometry, hedgehog and t2r.
#include <ATen/ATen.h>

#include <cmath>

#include "performer/ops/favor/call.h"
#include "performer/ops/maps/row.h"

namespace performer::ops {
namespace {

using at::Tensor;

// Random exponential features of inputs that the learned matrix has turned.
void prepare_geometry(PreparedMap& result, const MapProblem& problem) {
  const Tensor& matrix = problem.weights.matrix;
  problem.check_shape(matrix, "matrix", {problem.heads, -1, problem.head_size});
  prepare_projected(result, problem, fixed_size(matrix, 1));
  result.query_matrix = result.key_matrix = matrix;
}

// The learned matrix and bias, applied to queries and keys alike.
void prepare_affine(PreparedMap& result, const MapProblem& problem, int64_t rows) {
  problem.check_shape(problem.weights.matrix, "matrix", {problem.heads, rows, problem.head_size});
  problem.check_shape(problem.weights.bias, "bias", {problem.heads, rows});
  result.query_matrix = result.key_matrix = problem.weights.matrix;
  result.bias = problem.weights.bias;
}

void prepare_hedgehog(PreparedMap& result, const MapProblem& problem) {
  prepare_affine(result, problem, problem.head_size);
  const Tensor identity =
      at::eye(problem.head_size, problem.weights.matrix.options().dtype(at::kFloat).requires_grad(false));
  result.map.projection = at::cat({identity, -identity});
  result.map.norm_weight = 0;
}

void prepare_t2r(PreparedMap& result, const MapProblem& problem) {
  prepare_affine(result, problem, problem.options.features);
  result.map.family = "relu";
  result.map.epsilon = resolved_epsilon(problem.options);
}

MapWeights start_geometry(const FeatureMapOptions&, int64_t heads, int64_t head_size) {
  MapWeights weights;
  weights.matrix = at::eye(head_size, at::kFloat).repeat({heads, 1, 1});
  return weights;
}

MapWeights start_hedgehog(const FeatureMapOptions& options, int64_t heads, int64_t head_size) {
  MapWeights weights = start_geometry(options, heads, head_size);
  weights.bias = at::zeros({heads, head_size}, at::kFloat);
  return weights;
}

// Xavier-uniform rows.
MapWeights start_t2r(const FeatureMapOptions& options, int64_t heads, int64_t head_size) {
  const double bound = std::sqrt(6.0 / static_cast<double>(head_size + options.features));
  MapWeights weights;
  weights.matrix = at::empty({heads, options.features, head_size}, at::kFloat).uniform_(-bound, bound);
  weights.bias = at::zeros({heads, options.features}, at::kFloat);
  return weights;
}

constexpr MapRow kLearnedMaps[] = {
    {.name = "geometry",
     .traits = {.exponential = true, .projected = true, .learned = true},
     .prepare = prepare_geometry,
     .start = start_geometry},
    {.name = "hedgehog",
     .traits = {.learned = true},
     .count = FeatureCount::twice_head_size,
     .prepare = prepare_hedgehog,
     .start = start_hedgehog},
    {.name = "t2r",
     .traits = {.learned = true},
     .count = FeatureCount::as_asked,
     .default_epsilon = 0,
     .prepare = prepare_t2r,
     .start = start_t2r},
};

}  // namespace

std::span<const MapRow> learned_maps() {
  return kLearnedMaps;
}

}  // namespace performer::ops
