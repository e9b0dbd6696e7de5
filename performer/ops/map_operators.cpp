// SPDX-License-Identifier: Apache-2.0
// What there is to know about feature maps, as operators: for callers who reach this layer by schema only, as
// Python does. Nothing is computed here; feature_maps.h describes what each gives.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "performer/ops/favor/call.h"
#include "performer/ops/feature_maps.h"

namespace performer::ops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

#define PERFORMER_OPTIONS_SCHEMA \
  "str map, int features, str projection_kind, str row_norm, float epsilon, bool shared_projection"
#define PERFORMER_OPTIONS_PARAMETERS                                                                   \
  c10::string_view map, int64_t features, c10::string_view projection_kind, c10::string_view row_norm, \
      double epsilon, bool shared_projection
#define PERFORMER_OPTIONS                                                                     \
  FeatureMapOptions {                                                                         \
    std::string(map), features, std::string(projection_kind), std::string(row_norm), epsilon, \
        shared_projection                                                                     \
  }

// exponential, projected, statistics, learned, signed_features
c10::List<bool> traits_op(c10::string_view map) {
  const FeatureMapTraits traits = feature_map_traits(std::string(map));
  return c10::List<bool>(
      {traits.exponential, traits.projected, traits.statistics, traits.learned, traits.signed_features});
}

// What `auto` and -1 stand for, and the number of features, of options that are checked.
std::tuple<std::string, double, int64_t> resolve_op(PERFORMER_OPTIONS_PARAMETERS, int64_t head_size) {
  const FeatureMapOptions options = PERFORMER_OPTIONS;
  validate(options, head_size);
  return {resolved_projection(options), resolved_epsilon(options), feature_count(options, head_size)};
}

// [H or 1, P, D]; no elements for maps without a projection.
Tensor draw_op(PERFORMER_OPTIONS_PARAMETERS, int64_t heads, int64_t head_size, int64_t seed, int64_t layer,
               int64_t redraw) {
  const Tensor drawn = draw_map_projection(PERFORMER_OPTIONS, heads, head_size, seed, layer, redraw);
  return drawn.defined() ? drawn : at::empty({0}, at::kFloat);
}

// Learned maps at their start: matrix and bias, each without elements where the map has none.
std::tuple<Tensor, Tensor> start_op(PERFORMER_OPTIONS_PARAMETERS, int64_t heads, int64_t head_size) {
  const MapWeights weights = initial_map_weights(PERFORMER_OPTIONS, heads, head_size);
  const auto or_none = [](const Tensor& t) { return t.defined() ? t : at::empty({0}, at::kFloat); };
  return {or_none(weights.matrix), or_none(weights.bias)};
}

using MomentTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

MomentTensors measure_op(const Tensor& query, const Tensor& key, c10::string_view map,
                         const OptionalTensor& key_mask, const OptionalTensor& query_mask,
                         const OptionalTensor& cu_query, const OptionalTensor& cu_key) {
  FeatureMapOptions options;
  options.map = std::string(map);
  AttentionInputs inputs;
  inputs.query = query, inputs.key = key;
  inputs.key_mask = key_mask, inputs.query_mask = query_mask;
  inputs.cu_query = cu_query, inputs.cu_key = cu_key;
  const MapStatistics measured = pool_statistics(measure_statistics(inputs, options));
  return {measured.query_mean, measured.key_mean, measured.query_moment, measured.key_moment};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(performer, library) {
  library.def("feature_map_names() -> str[]", feature_map_names);
  library.def("feature_map_traits(str map) -> bool[]", traits_op);
  library.def("resolve_feature_map(" PERFORMER_OPTIONS_SCHEMA
              ", int head_size) -> (str projection_kind, float epsilon, int features)",
              resolve_op);
  library.def("draw_map_projection(" PERFORMER_OPTIONS_SCHEMA
              ", int heads, int head_size, int seed, int layer, int redraw) -> Tensor",
              draw_op);
  library.def("initial_map_weights(" PERFORMER_OPTIONS_SCHEMA
              ", int heads, int head_size) -> (Tensor matrix, Tensor bias)",
              start_op);
  library.def(
      "map_statistics(Tensor query, Tensor key, str map, Tensor? key_mask=None, Tensor? query_mask=None, "
      "Tensor? cu_query=None, Tensor? cu_key=None) -> (Tensor query_mean, Tensor key_mean, "
      "Tensor query_moment, Tensor key_moment)",
      measure_op);
}

}  // namespace performer::ops
