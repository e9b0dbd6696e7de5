// SPDX-License-Identifier: Apache-2.0
// The table of feature maps: what a map does is its row, and nothing else asks for its name. Private to this
// layer; ops/feature_maps.h is its public side and says what each map computes. A new map is a row in the
// file of its family.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "performer/ops/feature_maps.h"

namespace performer::ops {

// What a row's prepare() is given: validated options, and weights that it checks.
struct MapProblem {
  const FeatureMapOptions& options;
  const MapWeights& weights;
  const MapStatistics& statistics;
  int64_t heads, head_size;

  // Rows of the projection that the options ask for.
  int64_t drawn_rows() const;
  // Throws c10::ValueError unless weights.projection is [heads or 1, drawn_rows(), columns].
  void check_projection(int64_t columns) const;
  // Throws c10::ValueError unless the tensor called `name` has the expected shape; sizes below 0 are free,
  // and with `shared_heads` the first may be 1.
  void check_shape(const at::Tensor& tensor, const char* name, const std::vector<int64_t>& expected,
                   bool shared_heads = false) const;
};

// How many features a query or key ends up with.
enum class FeatureCount : uint8_t {
  of_projection,    // M with a projection, D without one
  as_asked,         // M
  twice_head_size,  // 2 D
};

struct MapRow {
  const char* name;
  FeatureMapTraits traits = {};
  int64_t features_per_row = 1;  // of the projection
  FeatureCount count = FeatureCount::of_projection;
  // The epsilon that -1 stands for; below 0: the map has none.
  double default_epsilon = -1;
  // Attention is favor_attention of mapped queries and keys, with as many features in a state as count says.
  bool fused = true;
  // Fills a PreparedMap without constants.
  void (*prepare)(PreparedMap&, const MapProblem&) = nullptr;
  // The learned weights at their start; null: nothing is learned.
  MapWeights (*start)(const FeatureMapOptions&, int64_t heads, int64_t head_size) = nullptr;
};

// Throws c10::ValueError naming the known maps, and the nearest, for an unknown one.
const MapRow& map_row(const std::string& name);

// Whether the options ask for a random projection.
bool draws_projection(const FeatureMapOptions& options);

// The families.
std::span<const MapRow> exponential_maps();        // maps/exponential.cpp
std::span<const MapRow> dense_exponential_maps();  // maps/dense_exponential.cpp
std::span<const MapRow> learned_maps();            // maps/learned.cpp
std::span<const MapRow> trigonometric_maps();      // maps/trigonometric.cpp
std::span<const MapRow> elementwise_maps();        // maps/elementwise.cpp

// What the exponential families share: inputs scaled by D^(-1/4), and the projection as it was drawn, with
// its constant 1/sqrt(rows). `columns` is the size of what the projection is applied to.
void prepare_projected(PreparedMap& result, const MapProblem& problem, int64_t columns);

}  // namespace performer::ops
