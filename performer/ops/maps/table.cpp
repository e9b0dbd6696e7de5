// SPDX-License-Identifier: Apache-2.0
// The table of feature maps put together from its families, and what follows from a row and the options.
#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "performer/base/fields.h"
#include "performer/ops/favor/call.h"
#include "performer/ops/maps/row.h"
#include "performer/ops/projection.h"

namespace performer::ops {
namespace {

using at::Tensor;

constexpr const char* kNoProjection = "none";
constexpr const char* kProjections[] = {"auto",   "orthogonal", "iid",        "hadamard",
                                        "givens", "simplex",    kNoProjection};
constexpr const char* kRowNorms[] = {"chi", "sqrt-d"};

template <class Names>
bool is_one_of(const std::string& name, const Names& names) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

const std::vector<const MapRow*>& all_maps() {
  static const auto all = [] {
    std::vector<const MapRow*> rows;
    for (const auto& family : {exponential_maps(), dense_exponential_maps(), learned_maps(),
                               trigonometric_maps(), elementwise_maps()}) {
      for (const MapRow& row : family) rows.push_back(&row);
    }
    return rows;
  }();
  return all;
}

void validate_projection(const FeatureMapOptions& options, const MapRow& row) {
  TORCH_CHECK_VALUE(is_one_of(options.projection, kProjections), "unknown projection '", options.projection,
                    "'; known: ", fmt::format("{}", fmt::join(kProjections, ", ")));
  TORCH_CHECK_VALUE(is_one_of(options.row_norm, kRowNorms), "unknown row norm '", options.row_norm,
                    "'; known: ", fmt::format("{}", fmt::join(kRowNorms, ", ")));
  TORCH_CHECK_VALUE(
      draws_projection(options) || !row.traits.projected, "projection none does not go with feature map ",
      row.name,
      ", whose features are random projections; choose one of orthogonal, iid, hadamard, givens, "
      "simplex");
  TORCH_CHECK_VALUE(
      !draws_projection(options) || !row.traits.learned || row.traits.projected, "feature map ", row.name,
      " has a learned matrix in the place of a projection; leave the projection at auto instead of ",
      options.projection);
  TORCH_CHECK_VALUE(!row.traits.statistics || options.row_norm == kRowNorms[0], "feature map ", row.name,
                    " weighs rows by their length and needs row norm chi; with sqrt-d its features would be "
                    "biased and nothing gained");
}

void validate_numbers(const FeatureMapOptions& options, const MapRow& row, int64_t head_size) {
  TORCH_CHECK_VALUE(head_size >= 1, "the head size must be at least 1, not ", head_size);
  TORCH_CHECK_VALUE(
      options.features >= 1 || (!draws_projection(options) && row.count != FeatureCount::as_asked),
      "feature map ", row.name, " needs at least 1 feature, not ", options.features);
  TORCH_CHECK_VALUE(options.features % row.features_per_row == 0, "feature map ", row.name,
                    " has two features for each row of its projection and needs an even number, not ",
                    options.features);
  TORCH_CHECK_VALUE(options.epsilon == -1 || (options.epsilon >= 0 && std::isfinite(options.epsilon)),
                    "the epsilon of a feature map must be at least 0, or -1 for its default, not ",
                    options.epsilon);
  TORCH_CHECK_VALUE(options.epsilon <= 0 || row.default_epsilon >= 0, "epsilon ", options.epsilon,
                    " is for element-wise functions and t2r; feature map ", row.name,
                    " has none, leave it at -1");
}

}  // namespace

const MapRow& map_row(const std::string& name) {
  for (const MapRow* row : all_maps()) {
    if (name == row->name) return *row;
  }
  const std::string near = nearest(name, feature_map_names());
  TORCH_CHECK_VALUE(false, "unknown feature map '", name, "'",
                    near.empty() ? "" : fmt::format(" (did you mean {}?)", near),
                    "; known: ", fmt::format("{}", fmt::join(feature_map_names(), ", ")));
}

std::vector<std::string> feature_map_names() {
  std::vector<std::string> names;
  for (const MapRow* row : all_maps()) names.emplace_back(row->name);
  return names;
}

FeatureMapTraits feature_map_traits(const std::string& map) {
  return map_row(map).traits;
}

std::string resolved_projection(const FeatureMapOptions& options) {
  if (options.projection != kProjections[0]) return options.projection;
  return map_row(options.map).traits.projected ? "orthogonal" : kNoProjection;
}

bool draws_projection(const FeatureMapOptions& options) {
  return resolved_projection(options) != kNoProjection;
}

double resolved_epsilon(const FeatureMapOptions& options) {
  return options.epsilon != -1 ? options.epsilon : std::max(0.0, map_row(options.map).default_epsilon);
}

int64_t feature_count(const FeatureMapOptions& options, int64_t head_size) {
  const FeatureCount count = map_row(options.map).count;
  if (count == FeatureCount::twice_head_size) return 2 * head_size;
  return count == FeatureCount::as_asked || draws_projection(options) ? options.features : head_size;
}

void validate(const FeatureMapOptions& options, int64_t head_size) {
  const MapRow& row = map_row(options.map);
  validate_projection(options, row);
  validate_numbers(options, row, head_size);
}

Tensor draw_map_projection(const FeatureMapOptions& options, int64_t heads, int64_t head_size, int64_t seed,
                           int64_t layer, int64_t redraw) {
  validate(options, head_size);
  if (!draws_projection(options)) return {};
  return draw_projection(
      resolved_projection(options), options.row_norm, options.shared_projection ? 1 : heads,
      options.features / map_row(options.map).features_per_row, head_size, seed, layer, redraw);
}

MapWeights initial_map_weights(const FeatureMapOptions& options, int64_t heads, int64_t head_size) {
  validate(options, head_size);
  const auto start = map_row(options.map).start;
  return start != nullptr ? start(options, heads, head_size) : MapWeights{};
}

PreparedMap prepare_feature_map(const FeatureMapOptions& options, const MapWeights& weights,
                                const MapStatistics& statistics, int64_t heads, int64_t head_size) {
  validate(options, head_size);
  PreparedMap result;
  map_row(options.map).prepare(result, {options, weights, statistics, heads, head_size});
  return result;
}

int64_t MapProblem::drawn_rows() const {
  return options.features / map_row(options.map).features_per_row;
}

void MapProblem::check_projection(int64_t columns) const {
  check_shape(weights.projection, "projection", {heads, drawn_rows(), columns}, true);
}

void MapProblem::check_shape(const Tensor& tensor, const char* name, const std::vector<int64_t>& expected,
                             bool shared_heads) const {
  bool fits = tensor.defined() && tensor.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; fits && i < expected.size(); ++i) {
    const int64_t size = fixed_size(tensor, static_cast<int64_t>(i));
    fits = size == expected[i] || expected[i] < 0 || (i == 0 && shared_heads && size == 1);
  }
  TORCH_CHECK_VALUE(fits, "feature map ", options.map, " needs a ", name, " of shape ",
                    at::IntArrayRef(expected), shared_heads ? " (or one head for all)" : "", ", found ",
                    tensor.defined() ? fmt::format("[{}]", fmt::join(tensor.sizes(), ", ")) : "none",
                    "; see draw_map_projection and initial_map_weights");
}

}  // namespace performer::ops
