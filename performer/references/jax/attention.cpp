// SPDX-License-Identifier: Apache-2.0
#include "performer/references/jax/attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/ops/composed.h"

namespace performer::references::jax {

using at::Tensor;

namespace {

int64_t blocks_for(int64_t rows, int64_t columns) {
  check<UsageError>(rows >= 1 && columns >= 1,
                    "a projection needs at least 1 row and 1 column, found {} x {}", rows, columns);
  return (rows + columns - 1) / columns;
}

// Streams are named as those of ops::draw_projection: one a block of directions, and one for the row lengths.
constexpr uint32_t kRowNormStream = 0xFFFF;

Tensor philox_normal(at::IntArrayRef sizes, const DrawName& name, uint32_t purpose) {
  PhiloxStream stream(static_cast<uint64_t>(name.seed), static_cast<uint32_t>(name.layer),
                      static_cast<uint32_t>(name.head) << 16 | purpose, static_cast<uint32_t>(name.redraw));
  Tensor values = at::empty(sizes, at::kDouble);
  double* to = values.mutable_data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) to[i] = stream.normal();
  return values;
}

// Of [batch..., axes..., C]: the dimensions attended over.
std::vector<int64_t> attended_dimensions(const Tensor& data, int64_t attention_axes) {
  check<UsageError>(
      attention_axes >= 1 && attention_axes <= data.dim() - 1,
      "features of [batch..., attention axes..., D]: {} attention axes do not fit {} dimensions",
      attention_axes, data.dim());
  std::vector<int64_t> dimensions;
  for (int64_t axis = 0; axis < attention_axes; ++axis) dimensions.push_back(data.dim() - 2 - axis);
  return dimensions;
}

double data_scale(const Tensor& data, bool normalize_data) {
  return normalize_data ? std::pow(static_cast<double>(data.size(-1)), -0.25) : 1.0;
}

Tensor projected(const Tensor& data, const Tensor& projection, double scale) {
  check<UsageError>(
      projection.defined() && projection.dim() == 2 && projection.size(1) == data.size(-1),
      "the projection must be [features, {}], one for all heads; found [{}]", data.size(-1),
      projection.defined() ? fmt::format("{}", fmt::join(projection.sizes(), ", ")) : "nothing");
  return ops::project(data * scale, projection);
}

// |x|^2 / 2 of x = scale data.
Tensor scaled_half_square(const Tensor& data, double scale) {
  return ops::half_square(data) * (scale * scale);
}

}  // namespace

Tensor orthogonal_projection(const GaussianDraw& draw, int64_t rows, int64_t scaling) {
  check<UsageError>(scaling == 0 || scaling == 1,
                    "the scaling of orthogonal rows must be 0 (lengths of Gaussian rows) or "
                    "1 (all sqrt(D)), found {}",
                    scaling);
  const Tensor directions = ops::uncorrected_orthogonal_rows(draw.blocks, rows);
  if (scaling == 1) return directions * std::sqrt(static_cast<double>(directions.size(1)));
  check<UsageError>(draw.row_norms.defined() && draw.row_norms.sizes() == directions.sizes(),
                    "row lengths need Gaussians [{}, {}]", rows, directions.size(1));
  return directions * draw.row_norms.norm(2, {1}, /*keepdim=*/true);
}

GaussianDraw draw_gaussians(int64_t rows, int64_t columns, const DrawName& name) {
  std::vector<Tensor> blocks;
  for (int64_t block = 0; block < blocks_for(rows, columns); ++block) {
    blocks.push_back(philox_normal({columns, columns}, name, static_cast<uint32_t>(block)));
  }
  return {at::stack(blocks), philox_normal({rows, columns}, name, kRowNormStream)};
}

Tensor draw_projection(const ProjectionOptions& options, const DrawName& name) {
  blocks_for(options.rows, options.columns);  // checks the sizes
  const Tensor drawn = options.orthogonal
                           ? orthogonal_projection(draw_gaussians(options.rows, options.columns, name),
                                                   options.rows, options.scaling)
                           : philox_normal({options.rows, options.columns}, name, 0);
  return drawn.to(at::kFloat);
}

Tensor draw_jax_projection(const ProjectionOptions& options, JaxKey key) {
  const int64_t count = blocks_for(options.rows, options.columns);
  const Tensor lengths = jax_normal(key, {options.rows, options.columns});
  if (!options.orthogonal) return lengths;
  std::vector<Tensor> blocks;
  JaxKey chain = key;
  for (int64_t block = 0; block < count; ++block) {
    const auto [next, drawn] = jax_split(chain);
    blocks.push_back(jax_normal(drawn, {options.columns, options.columns}));
    chain = next;
  }
  return orthogonal_projection({at::stack(blocks), lengths}, options.rows, options.scaling);
}

Tensor draw_jax_projection(const ProjectionOptions& options, int32_t seed) {
  return draw_jax_projection(options, jax_split(jax_key(seed)).first);
}

float redraw_sum(const Tensor& query) {
  if (query.scalar_type() != at::kDouble) return jax_sum(query) * 1e7F;
  return static_cast<float>(query.detach().sum().item<double>()) * 1e7F;
}

int32_t redraw_seed(const Tensor& query) {
  const float seed = std::ceil(redraw_sum(query));
  if (std::isnan(seed)) return 0;
  if (seed >= 2147483648.0F) return std::numeric_limits<int32_t>::max();
  if (seed <= -2147483648.0F) return std::numeric_limits<int32_t>::min();
  return static_cast<int32_t>(seed);
}

Tensor positive_features(const Tensor& data, const Tensor& projection,
                         const PositiveFeatureOptions& options) {
  const double scale = data_scale(data, options.normalize_data);
  const Tensor u = projected(data, projection, scale);
  Tensor shift;
  if (options.is_query) {
    shift = u.amax({-1}, /*keepdim=*/true);
  } else if (options.key_shift == KeyShift::tensor) {
    shift = u.amax();
  } else {
    std::vector<int64_t> dimensions = attended_dimensions(data, options.attention_axes);
    dimensions.push_back(-1);
    shift = u.amax(dimensions, /*keepdim=*/true);
  }
  const double ratio = 1 / std::sqrt(static_cast<double>(projection.size(0)));
  return ((u - scaled_half_square(data, scale) - shift).exp() + options.epsilon) * ratio;
}

Tensor trigonometric_features(const Tensor& data, const Tensor& projection, int64_t attention_axes,
                              bool normalize_data) {
  const double scale = data_scale(data, normalize_data);
  const Tensor u = projected(data, projection, scale);
  const Tensor h = scaled_half_square(data, scale);
  const Tensor largest = h.amax(attended_dimensions(data, attention_axes), /*keepdim=*/true);
  const double ratio = 1 / std::sqrt(static_cast<double>(projection.size(0)));
  return at::cat({u.cos() * ratio, u.sin() * ratio}, -1) * (h - largest).exp();
}

Tensor generalized_features(const Tensor& data, const std::optional<Tensor>& projection,
                            const std::string& function, double epsilon, bool normalize_data) {
  const double scale = data_scale(data, normalize_data);
  const bool given = projection.has_value() && projection->defined();
  const Tensor u = given ? projected(data, *projection, scale) : data * scale;
  // JAX's gradient of |u| is 1 at 0, LibTorch's is 0.
  if (function == "abs") return at::where(u.ge(0), u, -u) + epsilon;
  return ops::activation(function, u) + epsilon;
}

FastAttention::FastAttention(Features features, const Options& options, Tensor projection,
                             std::optional<ProjectionOptions> redraw)
    : features_(std::move(features)), options_(options), projection_(std::move(projection)), redraw_(redraw) {
  check<UsageError>(options.chunk >= 1, "the chunk of a causal pass must be at least 1 token, found {}",
                    options.chunk);
  check<UsageError>(options.stabilizer >= 0, "the stabilizer must not be negative, found {}",
                    options.stabilizer);
}

Tensor FastAttention::projection_for(const Tensor& query) const {
  return redraw_ ? draw_jax_projection(*redraw_, redraw_seed(query)) : projection_;
}

namespace {

// The reference's order of dimensions, (batch, others, heads), (attention axes), channels, and back.
struct Arrangement {
  std::vector<int64_t> order, inverse;
  int64_t batch_dimensions = 0, axes = 0;

  Arrangement(int64_t dimensions, std::vector<int64_t> axis) {
    check<UsageError>(dimensions >= 4, "fast attention needs [B, tokens..., H, D], found {} dimensions",
                      dimensions);
    if (axis.empty()) {
      for (int64_t i = 1; i < dimensions - 2; ++i) axis.push_back(i);
    }
    for (int64_t i : axis) {
      check<UsageError>(
          i >= 1 && i < dimensions - 2 && std::count(axis.begin(), axis.end(), i) == 1,
          "attention axes must be different dimensions from 1 to {}, between batch and heads; found {}",
          dimensions - 3, fmt::join(axis, ", "));
    }
    for (int64_t i = 0; i < dimensions - 1; ++i) {
      if (std::count(axis.begin(), axis.end(), i) == 0) order.push_back(i);
    }
    batch_dimensions = static_cast<int64_t>(order.size());
    axes = static_cast<int64_t>(axis.size());
    order.insert(order.end(), axis.begin(), axis.end());
    order.push_back(dimensions - 1);
    inverse.resize(order.size());
    for (size_t i = 0; i < order.size(); ++i) inverse[order[i]] = static_cast<int64_t>(i);
  }

  // [batch..., axes..., C] -> [batch, axes, 1, C]: one head each, as ops::attention_sums wants it.
  Tensor flat(const Tensor& arranged) const {
    return arranged.flatten(batch_dimensions, batch_dimensions + axes - 1)
        .flatten(0, batch_dimensions - 1)
        .unsqueeze(2);
  }
};

void check_shapes(const Tensor& query, const Tensor& key, const Tensor& value, const Arrangement& arrangement,
                  bool unidirectional) {
  const int64_t dimensions = query.dim();
  check<UsageError>(key.dim() == dimensions && value.dim() == dimensions,
                    "query, key and value must have as many dimensions, found {}, {} and {}", dimensions,
                    key.dim(), value.dim());
  check<UsageError>(query.size(-1) == key.size(-1), "query and key must have one head size, found {} and {}",
                    query.size(-1), key.size(-1));
  for (int64_t i = 0; i < dimensions - 1; ++i) {
    check<UsageError>(key.size(i) == value.size(i), "dimension {} of key is {}, of value {}: they must agree",
                      i, key.size(i), value.size(i));
  }
  for (int64_t i = 0; i < arrangement.batch_dimensions; ++i) {
    const int64_t dimension = arrangement.order[i];
    check<UsageError>(query.size(dimension) == key.size(dimension),
                      "dimension {} is not attended over, so query and key must agree in it; found {} and {}",
                      dimension, query.size(dimension), key.size(dimension));
  }
  check<UsageError>(
      !unidirectional || arrangement.axes == 1,
      "unidirectional attention needs an order of its tokens and so exactly one attention axis, found {}; "
      "name one in `axis`",
      arrangement.axes);
}

}  // namespace

Attended FastAttention::attend(const Tensor& query, const Tensor& key, const Tensor& value,
                               const std::vector<int64_t>& axis) const {
  const Arrangement arrangement(query.dim(), axis);
  check_shapes(query, key, value, arrangement, options_.unidirectional);
  const Tensor projection = projection_for(query);
  const Tensor q = query.permute(arrangement.order);
  const Tensor phi_q = features_(q, projection, true, arrangement.axes);
  const Tensor phi_k = features_(key.permute(arrangement.order), projection, false, arrangement.axes);
  const auto sums = ops::attention_sums(arrangement.flat(phi_q), arrangement.flat(phi_k),
                                        arrangement.flat(value.permute(arrangement.order)),
                                        options_.unidirectional, options_.chunk);
  std::vector<int64_t> sizes = q.sizes().vec();
  sizes.back() = value.size(-1);
  Tensor output = sums.numerator.reshape(sizes);
  sizes.back() = 1;
  const Tensor denominator = sums.denominator.reshape(sizes);
  if (options_.renormalize) {
    const Tensor small = denominator.abs().le(options_.stabilizer).to(denominator.scalar_type());
    output = output / (denominator + 2 * options_.stabilizer * small);
  }
  return {output.permute(arrangement.inverse), denominator.squeeze(-1)};
}

Tensor FastAttention::operator()(const Tensor& query, const Tensor& key, const Tensor& value,
                                 const std::vector<int64_t>& axis) const {
  return attend(query, key, value, axis).output;
}

namespace {

// The projection of an attention: the given one, or the reference's without redraws, and what redraws draw.
struct Source {
  Tensor projection;
  std::optional<ProjectionOptions> redraw;
};

Source projection_source(const ProjectionOptions& draws, bool redraw, const std::optional<Tensor>& given) {
  if (given.has_value() && given->defined()) {
    check<UsageError>(given->dim() == 2 && given->size(1) == draws.columns,
                      "the projection must be [features, {}], one for all heads; found [{}]", draws.columns,
                      fmt::join(given->sizes(), ", "));
    return {*given, {}};
  }
  if (redraw) return {{}, draws};
  return {draw_jax_projection(draws, 0), {}};
}

}  // namespace

FastAttention make_fast_softmax_attention(const SoftmaxAttentionOptions& options,
                                          const std::optional<Tensor>& projection) {
  check<UsageError>(options.scaling == 0 || options.scaling == 1, "scaling must be 0 or 1, found {}",
                    options.scaling);
  const ProjectionOptions draws{options.features, options.head_size, options.orthogonal, options.scaling};
  const Source source = projection_source(draws, options.redraw, projection);
  FastAttention::Features features;
  if (options.nonnegative) {
    features = [options](const Tensor& data, const Tensor& w, bool is_query, int64_t axes) {
      return positive_features(data, w, {is_query, axes, true, options.stabilizer, options.key_shift});
    };
  } else {
    features = [](const Tensor& data, const Tensor& w, bool, int64_t axes) {
      return trigonometric_features(data, w, axes);
    };
  }
  return FastAttention(features,
                       {options.renormalize, options.stabilizer, options.unidirectional, options.chunk},
                       source.projection, source.redraw);
}

FastAttention make_fast_generalized_attention(const GeneralizedAttentionOptions& options,
                                              const std::optional<Tensor>& projection) {
  const bool given = projection.has_value() && projection->defined();
  const std::string& type = options.features_type;
  check<UsageError>(type == "ortho" || type == "iid" || type == "deterministic",
                    "features_type must be deterministic, ortho or iid, found '{}'", type);
  Source source;
  if (given || type != "deterministic") {
    source = projection_source({options.features, options.head_size, type != "iid", 0}, options.redraw,
                               projection);
  }
  ops::activation(options.function, at::zeros({}));  // an unknown name is refused here, not at the first call
  const auto features = [options](const Tensor& data, const Tensor& w, bool, int64_t) {
    return generalized_features(data, w, options.function, options.epsilon);
  };
  return FastAttention(features,
                       {options.renormalize, options.stabilizer, options.unidirectional, options.chunk},
                       source.projection, source.redraw);
}

}  // namespace performer::references::jax
