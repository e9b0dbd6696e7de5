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

// What each map computes, x = D^(-1/4) q or D^(-1/4) k, w the rows of the projection, m their number:
//
//   favor+         exp(w x - |x|^2/2)
//   hyperbolic     exp(+w x - |x|^2/2) and exp(-w x - |x|^2/2), m = M/2
//   trigonometric  cos(w x) exp(|x|^2/2) and sin(w x) exp(|x|^2/2), m = M/2 (ops/trigonometric.h)
//   oprf           exp(A |w|^2 + sqrt(1 - 4A) w x - |x|^2/2), the number A <= 0 from second moments
//   sderf          exp(w A w + w (I - 4A)^(1/2) Q x - |x|^2/2), A diagonal; A and the rotation Q from the
//                  eigenvectors of E[(q + k)(q + k)^T]
//   saderf         oprf of S q and S^-1 k, S diagonal, balancing each coordinate of queries and keys
//   aderf          oprf of S q and S^-T k, S the matrix that minimises E|S q + S^-T k|^2
//   expmod         exp(w x - sqrt(D)/2): favor+ for inputs of squared norm sqrt(D)
//   geometry       favor+ of L q and L k, L = `matrix`: estimates exp(q L^T L k / sqrt(D))
//   hedgehog       exp(L q + b) and exp(-L q - b), without scaling: D features each, `features` is not used
//   t2r            relu(L q + b) + epsilon, without scaling, M features
//   element-wise   f(q) + epsilon or f(W q) + epsilon, without scaling
//
// The first seven and geometry estimate the softmax kernel without bias when rows have chi lengths (hadamard
// and givens: nearly, kernels/projection.h), with sqrt-d lengths its regularised form SMREG.
//
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
  std::string row_norm = "chi";     // chi, or sqrt-d: the regularised kernel SMREG
  // Added to element-wise and t2r features; -1: 1e-3 for relu, else 0. exp without an epsilon is summed with
  // log-scales and never overflows; with one its features stop at e^88 and their sums may overflow.
  double epsilon = -1;
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
// What `auto` and -1 stand for, and how many features a query or key ends up with: M with a projection and
// for t2r, 2 D for hedgehog, else D. A trigonometric state has one feature more (ops/trigonometric.h).
std::string resolved_projection(const FeatureMapOptions& options);
double resolved_epsilon(const FeatureMapOptions& options);
int64_t feature_count(const FeatureMapOptions& options, int64_t head_size);
// Throws c10::ValueError naming the known maps, and the nearest, for an unknown one.
FeatureMapTraits feature_map_traits(const std::string& map);
// Throws c10::ValueError for options that are impossible together (0 features, odd features of hyperbolic,
// ...).
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
// Learned maps at their start: geometry and hedgehog the identity, t2r Xavier-uniform rows; biases zero.
MapWeights initial_map_weights(const FeatureMapOptions& options, int64_t heads, int64_t head_size);

// First and second moments of scaled queries and keys, of valid tokens only and without gradient: [N, H, D]
// and [N, H, D, D] for N sequences, or without N when frozen for causal models and streaming (moments that
// reach beyond the present token would leak the future).
struct MapStatistics {
  at::Tensor query_mean, key_mean, query_moment, key_moment;
  bool defined() const { return query_mean.defined(); }
};

// Moments of each sequence of `inputs` (masks and packed segments respected); those of a sequence without
// tokens are zero. Computed in float32, float64 for float64 inputs.
MapStatistics measure_statistics(const AttentionInputs& inputs, const FeatureMapOptions& options);
// Moments of several sequences as one set without N, to be frozen: the mean of theirs, each sequence weighted
// by `tokens` [N] (of any type), or all alike.
MapStatistics pool_statistics(const MapStatistics& measured, const at::Tensor& tokens = {});

// Queries and keys, and the map of the kernel contract that gives the described features from them.
struct MappedInputs {
  at::Tensor query, key;
  FeatureMap map;
};
MappedInputs apply_feature_map(const AttentionInputs& inputs, const FeatureMapOptions& options,
                               const MapWeights& weights, const MapStatistics& statistics);

// A map ready for use: what does not depend on the tokens, computed once. Matrices from statistics need
// eigenvectors, so whoever steps token by token prepares once. It holds the weights' autograd history;
// prepare again after an optimizer step or a redraw.
struct PreparedMap {
  FeatureMap map;
  // Applied to queries and keys first, undefined: nothing. [H, R, D] or per sequence [N, H, R, D] ...
  at::Tensor query_matrix, key_matrix;
  at::Tensor bias;                      // [H, R], added then
  at::Tensor query_factor, key_factor;  // ... or a factor for each coordinate [H, D] or [N, H, D]
  // Log of the constants of one side that cancel in attention: a number, and where statistics give more of
  // it, [H] or [N, H] float64, else undefined.
  double log_number = 0;
  at::Tensor log_constant;
  bool trigonometric = false;  // `map` then holds scale and projection for ops/trigonometric.h
};
// Throws c10::ValueError for weights or statistics that are missing or do not fit.
PreparedMap prepare_feature_map(const FeatureMapOptions& options, const MapWeights& weights,
                                const MapStatistics& statistics, int64_t heads, int64_t head_size);

// Attention with any map, by the operators performer::mapped_attention, mapped_step and mapped_key_state:
// output [B, T, H, E] and the final state when asked for. Maps with statistics measure them from `inputs`
// when none are given, which is refused when causal or with a state (c10::ValueError: freeze them first).
// Fused kernels except trigonometric, which is composed. Differentiable in query, key, value, matrix and
// bias.
std::tuple<at::Tensor, State> mapped_attention(const AttentionInputs& inputs,
                                               const FeatureMapOptions& options, const MapWeights& weights,
                                               const MapStatistics& statistics = {});
// One token: query, key [B, H, D], value [B, H, E] -> [B, H, E]; `state` is updated in place, made when
// undefined.
at::Tensor mapped_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, State& state,
                       const FeatureMapOptions& options, const MapWeights& weights,
                       const MapStatistics& statistics = {}, const std::string& backend = {});
// The state of keys and values alone (ops/favor.h). Maps with statistics need frozen ones.
State key_state(const KeyInputs& inputs, const FeatureMapOptions& options, const MapWeights& weights,
                const MapStatistics& statistics = {});
// The same with a prepared map.
std::tuple<at::Tensor, State> mapped_attention(const AttentionInputs& inputs, const PreparedMap& prepared);
at::Tensor mapped_step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, State& state,
                       const PreparedMap& prepared, const std::string& backend = {});
State key_state(const KeyInputs& inputs, const PreparedMap& prepared);

// The features themselves, for studies: phi_f(x) = sign_f exp(log_magnitude_f), with every constant
// (1/sqrt(m) of random projections, the determinants of oprf and its relatives), so that sum_f phi_f(q)
// phi_f(k) estimates the kernel without bias (expmod: for inputs of squared norm sqrt(D) after scaling) and
// is the kernel where nothing is random.
struct LogFeatures {
  at::Tensor log_magnitude, sign;  // [B, T, H, M]; log 0 is minus infinity
};
// x [B, T, H, D] as queries or as keys (they differ for aderf and saderf); float64 inputs are computed in
// float64 with the float32 projection. Statistics, where the map needs them, per head or per sequence.
LogFeatures log_features(const at::Tensor& x, bool query, const FeatureMapOptions& options,
                         const MapWeights& weights, const MapStatistics& statistics = {});

}  // namespace performer::ops
