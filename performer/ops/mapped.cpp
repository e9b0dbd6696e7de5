// SPDX-License-Identifier: Apache-2.0
#include "performer/ops/feature_maps.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "performer/base/error.h"
#include "performer/base/fields.h"
#include "performer/ops/composed.h"
#include "performer/ops/map_statistics.h"
#include "performer/ops/projection.h"
#include "performer/ops/trigonometric.h"

namespace performer::ops {
namespace {

using at::Tensor;

struct KnownMap {
  const char* name;
  FeatureMapTraits traits;
};

// exponential, projected, statistics, learned, signed_features
constexpr KnownMap kMaps[] = {
    {"favor+", {true, true, false, false, false}},       {"hyperbolic", {true, true, false, false, false}},
    {"oprf", {true, true, true, false, false}},          {"sderf", {true, true, true, false, false}},
    {"aderf", {true, true, true, false, false}},         {"saderf", {true, true, true, false, false}},
    {"expmod", {true, true, false, false, false}},       {"geometry", {true, true, false, true, false}},
    {"hedgehog", {false, false, false, true, false}},    {"t2r", {false, false, false, true, false}},
    {"trigonometric", {true, true, false, false, true}}, {"relu", {false, false, false, false, false}},
    {"elu+1", {false, false, false, false, false}},      {"square", {false, false, false, false, false}},
    {"abs", {false, false, false, false, false}},        {"requ", {false, false, false, false, false}},
    {"gelu", {false, false, false, false, true}},        {"sigmoid", {false, false, false, false, false}},
    {"tanh", {false, false, false, false, true}},        {"cos", {false, false, false, false, true}},
    {"sin", {false, false, false, false, true}},         {"identity", {false, false, false, false, true}},
    {"exp", {false, false, false, false, false}},        {"leaky-relu", {false, false, false, false, true}},
};
constexpr const char* kProjections[] = {"auto", "orthogonal", "iid", "hadamard", "givens", "simplex", "none"};

template <class Names>
bool is_one_of(const std::string& name, const Names& names) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool is_elementwise(const std::string& map) {
  const FeatureMapTraits traits = feature_map_traits(map);
  return !traits.exponential && !traits.learned;
}

// Two features for each row of the projection.
bool is_paired(const std::string& map) {
  return map == "hyperbolic" || map == "trigonometric";
}

int64_t drawn_rows(const FeatureMapOptions& options) {
  return is_paired(options.map) ? options.features / 2 : options.features;
}

at::ScalarType precise_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

bool given(const std::optional<Tensor>& tensor) {
  return tensor.has_value() && tensor->defined();
}

// Sequences in a call: the batch, or the packed segments.
int64_t sequence_count(const Tensor& x, const std::optional<Tensor>& cu) {
  return given(cu) ? cu->size(0) - 1 : x.size(0);
}

// x [B, T, H, D] times a matrix [H, R, D] or one a sequence [N, H, R, D].
Tensor turn(const Tensor& x, const Tensor& matrix, const std::optional<Tensor>& cu) {
  if (matrix.dim() == 3) return at::einsum("bthd,hrd->bthr", {x, matrix});
  if (!given(cu)) return at::einsum("bthd,bhrd->bthr", {x, matrix});
  const int64_t* bounds = cu->const_data_ptr<int64_t>();
  std::vector<Tensor> parts;
  for (int64_t n = 0; n + 1 < cu->size(0); ++n) {
    parts.push_back(at::einsum("bthd,hrd->bthr", {x.slice(1, bounds[n], bounds[n + 1]), matrix[n]}));
  }
  return parts.empty() ? x : at::cat(parts, 1);
}

// x [B, T, H, D] times a factor [H, D] or one a sequence [N, H, D].
Tensor stretch(const Tensor& x, const Tensor& factor, const std::optional<Tensor>& cu) {
  if (factor.dim() == 2) return x * factor;
  if (!given(cu)) return x * factor.unsqueeze(1);
  return x * factor.repeat_interleave(cu->diff(), 0).unsqueeze(0);
}

Tensor transform(const Tensor& x, const Tensor& matrix, const Tensor& bias, const Tensor& factor,
                 const std::optional<Tensor>& cu) {
  if (!matrix.defined() && !factor.defined()) return x;
  for (const Tensor* constant : {&matrix, &factor}) {
    const int64_t sequences = sequence_count(x, cu);
    const int64_t shared_dims = constant == &matrix ? 3 : 2;
    check<UsageError>(
        !constant->defined() || constant->dim() == shared_dims || constant->size(0) == sequences,
        "second moments of {} sequences were given for {} sequences",
        constant->defined() ? constant->size(0) : 0, sequences);
  }
  const at::ScalarType type = precise_type(x);
  Tensor y = x.to(type);
  if (matrix.defined()) y = turn(y, matrix.to(type), cu);
  if (factor.defined()) y = stretch(y, factor.to(type), cu);
  return bias.defined() ? y + bias.to(type) : y;
}

void check_shape(const Tensor& tensor, const char* name, const std::string& map,
                 const std::vector<int64_t>& expected, bool shared_heads = false) {
  bool fits = tensor.defined() && tensor.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; fits && i < expected.size(); ++i) {
    const int64_t size = tensor.size(static_cast<int64_t>(i));
    fits = size == expected[i] || expected[i] < 0 || (i == 0 && shared_heads && size == 1);
  }
  check<UsageError>(fits,
                    "feature map {} needs a {} of shape [{}]{}, found {}; see draw_map_projection and "
                    "initial_map_weights",
                    map, name, fmt::join(expected, ", "), shared_heads ? " (or one head for all)" : "",
                    tensor.defined() ? fmt::format("[{}]", fmt::join(tensor.sizes(), ", ")) : "none");
}

void check_statistics(const MapStatistics& s, const std::string& map, int64_t heads, int64_t head_size) {
  check<UsageError>(
      s.defined() && s.key_mean.defined() && s.query_moment.defined() && s.key_moment.defined(),
      "feature map {} needs second moments of queries and keys: measure_statistics() gives them, "
      "frozen ones are needed for causal attention and streaming",
      map);
  const int64_t dims = s.query_mean.dim();
  const auto fits = [&](const Tensor& t, int64_t own) {
    return t.dim() == dims + own - 1 && (dims == 2 || dims == 3) && t.size(0) == s.query_mean.size(0) &&
           t.size(dims - 2) == heads && t.size(dims - 1) == head_size && t.size(-1) == head_size;
  };
  check<UsageError>(
      fits(s.query_mean, 1) && fits(s.key_mean, 1) && fits(s.query_moment, 2) && fits(s.key_moment, 2),
      "feature map {} with {} heads of size {} needs means [H, D] and second moments [H, D, D], or "
      "both with the sequences in front; found a mean of shape [{}] and a moment of shape [{}]",
      map, heads, head_size, fmt::join(s.query_mean.sizes(), ", "), fmt::join(s.query_moment.sizes(), ", "));
}

Tensor constant(double value) {
  return at::full({1}, value, at::kDouble);
}

void prepare_exponential(PreparedMap& result, const FeatureMapOptions& options, const MapWeights& weights,
                         const MapStatistics& statistics, int64_t heads, int64_t head_size) {
  const std::string& map = options.map;
  result.map.scale = std::pow(static_cast<double>(head_size), -0.25);
  int64_t columns = head_size;
  if (map == "geometry") {
    check_shape(weights.matrix, "matrix", map, {heads, -1, head_size});
    result.query_matrix = result.key_matrix = weights.matrix;
    columns = weights.matrix.size(1);
  }
  check_shape(weights.projection, "projection", map, {heads, drawn_rows(options), columns}, true);
  result.log_constant = constant(-0.5 * std::log(static_cast<double>(drawn_rows(options))));
  result.map.projection = weights.projection;
  if (map == "hyperbolic") {
    result.map.projection = at::cat({weights.projection, -weights.projection}, 1);
    result.log_constant = constant(-0.5 * std::log(static_cast<double>(options.features)));
  } else if (map == "expmod") {
    result.map.norm_weight = 0;
    result.log_constant = result.log_constant - std::sqrt(static_cast<double>(head_size)) / 2;
  } else if (map == "trigonometric") {
    result.trigonometric = true;
  } else if (feature_map_traits(map).statistics) {
    check_statistics(statistics, map, heads, head_size);
    const DenseExponential dense = dense_exponential(map, weights.projection, statistics);
    result.map.projection = dense.projection;
    result.map.offset = dense.offset;
    result.query_matrix = dense.query_matrix;
    result.key_matrix = dense.key_matrix;
    result.query_factor = dense.query_factor;
    result.key_factor = dense.key_factor;
    result.log_constant = result.log_constant + dense.log_constant;
  }
}

void prepare_learned(PreparedMap& result, const FeatureMapOptions& options, const MapWeights& weights,
                     int64_t heads, int64_t head_size) {
  const bool hedgehog = options.map == "hedgehog";
  const int64_t rows = hedgehog ? head_size : options.features;
  check_shape(weights.matrix, "matrix", options.map, {heads, rows, head_size});
  check_shape(weights.bias, "bias", options.map, {heads, rows});
  result.query_matrix = result.key_matrix = weights.matrix;
  result.bias = weights.bias;
  if (hedgehog) {
    const Tensor identity = at::eye(rows, at::kFloat);
    result.map.projection = at::cat({identity, -identity});
    result.map.norm_weight = 0;
  } else {
    result.map.family = "relu";
    result.map.epsilon = resolved_epsilon(options);
  }
}

void prepare_elementwise(PreparedMap& result, const FeatureMapOptions& options, const MapWeights& weights,
                         int64_t heads, int64_t head_size) {
  result.map.family = options.map;
  result.map.epsilon = resolved_epsilon(options);
  if (options.map == "exp" && result.map.epsilon == 0) {
    result.map.family = "exponential";
    result.map.norm_weight = 0;
  }
  if (resolved_projection(options) == "none") return;
  check_shape(weights.projection, "projection", options.map, {heads, options.features, head_size}, true);
  result.map.projection = weights.projection;
  result.log_constant = constant(-0.5 * std::log(static_cast<double>(options.features)));
}

MappedInputs apply_prepared(const AttentionInputs& inputs, const PreparedMap& prepared) {
  const auto& cu_key = given(inputs.cu_key) ? inputs.cu_key : inputs.cu_query;
  return {
      transform(inputs.query, prepared.query_matrix, prepared.bias, prepared.query_factor, inputs.cu_query),
      transform(inputs.key, prepared.key_matrix, prepared.bias, prepared.key_factor, cu_key), prepared.map};
}

void check_four(const Tensor& tensor, const char* name) {
  check<UsageError>(tensor.dim() == 4,
                    "attention: {} must be [batch, tokens, heads, size], found {} dimensions", name,
                    tensor.dim());
}

// Statistics as given, or measured where that leaks nothing.
MapStatistics statistics_for(const AttentionInputs& inputs, const FeatureMapOptions& options,
                             const MapStatistics& statistics) {
  if (statistics.defined() || !feature_map_traits(options.map).statistics) return statistics;
  check<UsageError>(
      !inputs.causal && !inputs.initial.has_value() && !inputs.return_state,
      "feature map {} takes second moments over whole sequences, which would let causal attention "
      "see the future and a state change its meaning; measure them before, and give them frozen",
      options.map);
  return measure_statistics(inputs, options);
}

}  // namespace

std::vector<std::string> feature_map_names() {
  std::vector<std::string> names;
  for (const KnownMap& map : kMaps) names.emplace_back(map.name);
  return names;
}

FeatureMapTraits feature_map_traits(const std::string& map) {
  for (const KnownMap& known : kMaps) {
    if (map == known.name) return known.traits;
  }
  const std::string near = nearest(map, feature_map_names());
  throw UsageError(fmt::format("unknown feature map '{}'{}; known: {}", map,
                               near.empty() ? "" : fmt::format(" (did you mean {}?)", near),
                               fmt::join(feature_map_names(), ", ")));
}

std::string resolved_projection(const FeatureMapOptions& options) {
  if (options.projection != "auto") return options.projection;
  return feature_map_traits(options.map).projected ? "orthogonal" : "none";
}

double resolved_epsilon(const FeatureMapOptions& options) {
  if (options.epsilon != -1) return options.epsilon;
  return options.map == "relu" ? 1e-3 : 0;
}

int64_t feature_count(const FeatureMapOptions& options, int64_t head_size) {
  if (options.map == "hedgehog") return 2 * head_size;
  return options.map == "t2r" || resolved_projection(options) != "none" ? options.features : head_size;
}

void validate(const FeatureMapOptions& options, int64_t head_size) {
  const FeatureMapTraits traits = feature_map_traits(options.map);
  check<UsageError>(is_one_of(options.projection, kProjections), "unknown projection '{}'; known: {}",
                    options.projection, fmt::join(kProjections, ", "));
  check<UsageError>(options.row_norm == "chi" || options.row_norm == "sqrt-d",
                    "unknown row norm '{}'; known: chi, sqrt-d", options.row_norm);
  check<UsageError>(head_size >= 1, "the head size must be at least 1, not {}", head_size);
  const bool drawn = resolved_projection(options) != "none";
  check<UsageError>(drawn || !traits.projected,
                    "projection none does not go with feature map {}, whose features are random projections; "
                    "choose one of orthogonal, iid, hadamard, givens, simplex",
                    options.map);
  check<UsageError>(
      !drawn || !traits.learned || traits.projected,
      "feature map {} has a learned matrix in the place of a projection; leave the projection at "
      "auto instead of {}",
      options.map, options.projection);
  check<UsageError>(options.features >= 1 || (!drawn && options.map != "t2r"),
                    "feature map {} needs at least 1 feature, not {}", options.map, options.features);
  check<UsageError>(
      !is_paired(options.map) || options.features % 2 == 0,
      "feature map {} has two features for each row of its projection and needs an even number, "
      "not {}",
      options.map, options.features);
  check<UsageError>(!traits.statistics || options.row_norm == "chi",
                    "feature map {} weighs rows by their length and needs row norm chi; with sqrt-d its "
                    "features would be biased and nothing gained",
                    options.map);
  check<UsageError>(options.epsilon == -1 || (options.epsilon >= 0 && std::isfinite(options.epsilon)),
                    "the epsilon of a feature map must be at least 0, or -1 for its default, not {}",
                    options.epsilon);
  check<UsageError>(
      options.epsilon <= 0 || is_elementwise(options.map) || options.map == "t2r",
      "epsilon {} is for element-wise functions and t2r; feature map {} has none, leave it at -1",
      options.epsilon, options.map);
}

Tensor draw_map_projection(const FeatureMapOptions& options, int64_t heads, int64_t head_size, int64_t seed,
                           int64_t layer, int64_t redraw) {
  validate(options, head_size);
  const std::string kind = resolved_projection(options);
  if (kind == "none") return {};
  return draw_projection(kind, options.row_norm, options.shared_projection ? 1 : heads, drawn_rows(options),
                         head_size, seed, layer, redraw);
}

MapWeights initial_map_weights(const FeatureMapOptions& options, int64_t heads, int64_t head_size) {
  validate(options, head_size);
  MapWeights weights;
  if (options.map == "geometry" || options.map == "hedgehog") {
    weights.matrix = at::eye(head_size, at::kFloat).repeat({heads, 1, 1});
    if (options.map == "hedgehog") weights.bias = at::zeros({heads, head_size}, at::kFloat);
  } else if (options.map == "t2r") {
    const double bound = std::sqrt(6.0 / static_cast<double>(head_size + options.features));
    weights.matrix = at::empty({heads, options.features, head_size}, at::kFloat).uniform_(-bound, bound);
    weights.bias = at::zeros({heads, options.features}, at::kFloat);
  }
  return weights;
}

PreparedMap prepare_feature_map(const FeatureMapOptions& options, const MapWeights& weights,
                                const MapStatistics& statistics, int64_t heads, int64_t head_size) {
  validate(options, head_size);
  const FeatureMapTraits traits = feature_map_traits(options.map);
  PreparedMap result;
  result.log_constant = constant(0);
  if (traits.exponential)
    prepare_exponential(result, options, weights, statistics, heads, head_size);
  else if (traits.learned)
    prepare_learned(result, options, weights, heads, head_size);
  else
    prepare_elementwise(result, options, weights, heads, head_size);
  return result;
}

MappedInputs apply_feature_map(const AttentionInputs& inputs, const FeatureMapOptions& options,
                               const MapWeights& weights, const MapStatistics& statistics) {
  check<UsageError>(options.map != "trigonometric",
                    "trigonometric features have no form in the fused kernels; call mapped_attention");
  check_four(inputs.query, "query");
  check_four(inputs.key, "key");
  return apply_prepared(
      inputs, prepare_feature_map(options, weights, statistics, inputs.query.size(2), inputs.query.size(3)));
}

std::tuple<Tensor, State> mapped_attention(const AttentionInputs& inputs, const PreparedMap& prepared) {
  if (prepared.trigonometric)
    return trigonometric_attention(inputs, *prepared.map.projection, prepared.map.scale);
  const MappedInputs mapped = apply_prepared(inputs, prepared);
  AttentionInputs call = inputs;
  call.query = mapped.query;
  call.key = mapped.key;
  return favor_attention(call, mapped.map);
}

std::tuple<Tensor, State> mapped_attention(const AttentionInputs& inputs, const FeatureMapOptions& options,
                                           const MapWeights& weights, const MapStatistics& statistics) {
  check_four(inputs.query, "query");
  check_four(inputs.key, "key");
  const MapStatistics used = statistics_for(inputs, options, statistics);
  return mapped_attention(
      inputs, prepare_feature_map(options, weights, used, inputs.query.size(2), inputs.query.size(3)));
}

Tensor mapped_step(const Tensor& query, const Tensor& key, const Tensor& value, State& state,
                   const PreparedMap& prepared) {
  check<UsageError>(
      query.dim() == 3 && key.dim() == 3 && value.dim() == 3,
      "a step needs query, key and value as [batch, heads, size], found {}, {} and {} dimensions",
      query.dim(), key.dim(), value.dim());
  if (prepared.trigonometric)
    return trigonometric_step(query, key, value, state, *prepared.map.projection, prepared.map.scale);
  const at::NoGradGuard no_grad;
  const AttentionInputs token{query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)};
  const MappedInputs mapped = apply_prepared(token, prepared);
  const auto& projection = mapped.map.projection;
  const int64_t features = projection ? projection->size(-2) : mapped.query.size(3);
  if (!state.defined()) {
    state = empty_state(query.size(0), query.size(1), features, value.size(2), mapped.map.family,
                        query.options().dtype(precise_type(query)));
  }
  return favor_step(mapped.query.squeeze(1), mapped.key.squeeze(1), value, state, mapped.map);
}

Tensor mapped_step(const Tensor& query, const Tensor& key, const Tensor& value, State& state,
                   const FeatureMapOptions& options, const MapWeights& weights,
                   const MapStatistics& statistics) {
  check<UsageError>(query.dim() == 3, "a step needs a query [batch, heads, size], found {} dimensions",
                    query.dim());
  return mapped_step(query, key, value, state,
                     prepare_feature_map(options, weights, statistics, query.size(1), query.size(2)));
}

LogFeatures log_features(const Tensor& x, bool query, const FeatureMapOptions& options,
                         const MapWeights& weights, const MapStatistics& statistics) {
  check_four(x, "x");
  const PreparedMap prepared = prepare_feature_map(options, weights, statistics, x.size(2), x.size(3));
  const at::ScalarType type = precise_type(x);
  const Tensor scaled = transform(x.to(type), query ? prepared.query_matrix : prepared.key_matrix,
                                  prepared.bias, query ? prepared.query_factor : prepared.key_factor, {}) *
                        prepared.map.scale;
  Tensor u = project(scaled, prepared.map.projection);
  if (prepared.map.offset.has_value()) {
    const Tensor offset = prepared.map.offset->to(type);
    u = u + (offset.dim() == 3 ? offset.unsqueeze(1) : offset);
  }
  Tensor common = prepared.log_constant.to(type).unsqueeze(-1);  // [..., H or 1, 1]
  if (common.dim() == 3) common = common.unsqueeze(1);
  if (prepared.trigonometric) {
    const Tensor waves = at::cat({u.cos(), u.sin()}, -1);
    return {waves.abs().log() + half_square(scaled) + common, waves.sign()};
  }
  if (prepared.map.family == "exponential") {
    const Tensor norm = half_square(scaled) * (2 * prepared.map.norm_weight);
    return {u - norm + common, at::ones_like(u)};
  }
  const Tensor features = activation(prepared.map.family, u) + prepared.map.epsilon;
  return {features.abs().log() + common, features.sign()};
}

}  // namespace performer::ops
