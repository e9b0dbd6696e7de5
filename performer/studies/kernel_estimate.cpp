// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/kernel_estimate.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <limits>

#include "performer/base/error.h"

namespace performer::studies {
namespace {

at::Tensor unit(const at::Tensor& x) {
  return x / x.norm(2, -1, /*keepdim=*/true);
}

}  // namespace

at::Tensor Pairs::kernel() const {
  return (x * y).sum(-1).exp();
}
at::Tensor Pairs::squared_sum() const {
  return (x + y).square().sum(-1);
}
at::Tensor Pairs::squared_gap() const {
  return (x - y).square().sum(-1);
}

Pairs pairs_at(double squared_sum, double product, int64_t count, int64_t head_size, int64_t seed) {
  const double squared_gap = squared_sum - 4 * product;  // |x - y|^2
  check<UsageError>(squared_sum >= 0 && squared_gap >= 0, "no x, y have |x + y|^2 = {} and x y = {}",
                    squared_sum, product);
  auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(seed));
  const at::Tensor sum = unit(at::randn({count, head_size}, generator, at::kDouble)) * std::sqrt(squared_sum);
  const at::Tensor gap = unit(at::randn({count, head_size}, generator, at::kDouble)) * std::sqrt(squared_gap);
  // |x|^2 and |y|^2 are left to chance; their sum and the product are not.
  return {(sum + gap) / 2, (sum - gap) / 2};
}

at::Tensor relative_estimates(const Pairs& pairs, const ops::FeatureMapOptions& options, int64_t draws,
                              int64_t seed) {
  const int64_t head_size = pairs.x.size(-1);
  const double unscale = std::pow(static_cast<double>(head_size), 0.25);
  // Each draw is a head with its own projection; tokens are the pairs.
  const auto spread = [&](const at::Tensor& x) {
    return (x * unscale).unsqueeze(0).unsqueeze(2).expand({1, x.size(0), draws, head_size});
  };
  ops::MapWeights weights = ops::initial_map_weights(options, draws, head_size);
  weights.projection = ops::draw_map_projection(options, draws, head_size, seed, /*layer=*/0, /*redraw=*/0);
  ops::AttentionInputs inputs;
  inputs.query = spread(pairs.x);
  inputs.key = spread(pairs.y);
  inputs.value = inputs.key.narrow(-1, 0, 1);
  ops::MapStatistics statistics;
  if (ops::feature_map_traits(options.map).statistics) {
    statistics = ops::pool_statistics(ops::measure_statistics(inputs, options));
  }
  const ops::LogFeatures q = ops::log_features(inputs.query, /*query=*/true, options, weights, statistics);
  const ops::LogFeatures k = ops::log_features(inputs.key, /*query=*/false, options, weights, statistics);
  const at::Tensor log_kernel = (pairs.x * pairs.y).sum(-1).view({1, -1, 1, 1});
  const at::Tensor terms = (q.log_magnitude + k.log_magnitude - log_kernel).exp() * q.sign * k.sign;
  return terms.sum(-1).squeeze(0).t();
}

Mean mean_square_error(const at::Tensor& estimates) {
  return mean_of((estimates - 1).square().mean(-1));  // pairs of one draw are not independent
}

double predicted_mean_square(const ops::FeatureMapOptions& options, double squared_sum, double product) {
  const auto features = static_cast<double>(options.features);
  if (options.row_norm != "chi") return std::numeric_limits<double>::quiet_NaN();
  const double positive = std::expm1(squared_sum) / features;
  if (options.map == "favor+") return positive;
  if (options.map == "hyperbolic") return -std::expm1(-squared_sum) * positive;  // M / 2 directions
  if (options.map == "trigonometric") {
    const double gap = -std::expm1(-(squared_sum - 4 * product));
    return std::exp(squared_sum - 4 * product) * gap * gap / features;  // M / 2 directions
  }
  return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace performer::studies
