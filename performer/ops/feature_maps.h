// SPDX-License-Identifier: Apache-2.0
// One description of any feature map, and attention with it. docs/mechanisms.md lists the maps.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "performer/ops/favor.h"

namespace performer::ops {

// What a caller or a configuration writes. Sources: FAVOR+, hyperbolic, smreg, trigonometric and the
// element-wise maps arXiv 2009.14794; oprf 2205.15317; sderf, aderf, saderf 2302.00787; simplex projections
// 2301.13856; geometry 2603.04127; t2r 2103.13076; hedgehog 2402.04347.
struct FeatureMapOptions {
  // favor+, hyperbolic, oprf, sderf, aderf, saderf, expmod, geometry, hedgehog, t2r, trigonometric, or an
  // element-wise function: relu, elu+1, square, abs, requ, gelu, sigmoid, tanh, cos, sin, identity, exp,
  // leaky-relu.
  std::string map = "favor+";
  int64_t features = 256;           // M, the features a query or key ends up with, of maps with a projection
  std::string projection = "auto";  // orthogonal, iid, hadamard, givens, simplex, none; auto: orthogonal,
                                    // none for the element-wise functions
  std::string row_norm = "chi";    // chi, or sqrt-d: the regularised kernel SMREG
  double epsilon = -1;             // added to element-wise features; -1: 1e-3 for relu, else 0
  bool shared_projection = false;  // one projection for all heads (as the references have it) or one for each
};

struct FeatureMapTraits {
  bool exponential = false;      // approximates softmax(q k / sqrt(D)): inputs are scaled by D^(-1/4)
  bool projected = false;        // uses a random projection unless told otherwise
  bool statistics = false;       // depends on second moments of queries and keys
  bool learned = false;          // has parameters
  bool signed_features = false;  // denominators may vanish or change sign
};

std::vector<std::string> feature_map_names();
// Throws UsageError naming the known maps, and the nearest, for an unknown one.
FeatureMapTraits feature_map_traits(const std::string& map);
// Throws UsageError for options that are impossible together (0 features, odd features of hyperbolic, ...).
void validate(const FeatureMapOptions& options, int64_t head_size);

// The data of a map. Only what the map uses is defined.
struct MapWeights {
  at::Tensor projection;  // [H or 1, P, D] float32 of draw_map_projection(): a buffer
  at::Tensor matrix;      // geometry [H, R, D], hedgehog and t2r [H, P, D]: a parameter
  at::Tensor bias;        // hedgehog and t2r [H, P]: a parameter
};

// Rows that the map draws (P = M, M/2 for hyperbolic and trigonometric), undefined for maps without a
// projection. Named by (seed, layer, head, redraw): the same on every machine and after every resume.
at::Tensor draw_map_projection(const FeatureMapOptions& options, int64_t heads, int64_t head_size,
                               int64_t seed, int64_t layer, int64_t redraw);
// Learned maps at their start: geometry and hedgehog the identity, t2r Xavier-uniform rows.
MapWeights initial_map_weights(const FeatureMapOptions& options, int64_t heads, int64_t head_size);

// First and second moments of scaled queries and keys, of valid tokens only and without gradient: [N, H, D]
// and [N, H, D, D] for N sequences, or without N when frozen for causal models and streaming (moments that
// reach beyond the present token would leak the future).
struct MapStatistics {
  at::Tensor query_mean, key_mean, query_moment, key_moment;
  bool defined() const { return query_mean.defined(); }
};

// Moments of each sequence of `inputs` (masks and packed segments respected).
MapStatistics measure_statistics(const AttentionInputs& inputs, const FeatureMapOptions& options);

// Queries and keys, and the map of the kernel contract that gives the described features from them.
struct MappedInputs {
  at::Tensor query, key;
  FeatureMap map;
};
MappedInputs apply_feature_map(const AttentionInputs& inputs, const FeatureMapOptions& options,
                               const MapWeights& weights, const MapStatistics& statistics);

// Attention with any map: output [B, T, H, E] and the final state when asked for. Maps with statistics
// measure them from `inputs` when none are given, which is refused when causal or with a state (UsageError:
// freeze them first). Fused kernels except trigonometric, which is composed. Differentiable in query, key,
// value, matrix and bias.
std::tuple<at::Tensor, State> mapped_attention(const AttentionInputs& inputs,
                                               const FeatureMapOptions& options, const MapWeights& weights,
                                               const MapStatistics& statistics = {});
// One token: query, key [B, H, D], value [B, H, E] -> [B, H, E]; `state` is updated in place, made when
// undefined.
at::Tensor mapped_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, State& state,
                       const FeatureMapOptions& options, const MapWeights& weights,
                       const MapStatistics& statistics = {});

}  // namespace performer::ops
