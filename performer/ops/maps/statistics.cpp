// SPDX-License-Identifier: Apache-2.0
// Second moments of queries and keys, which some feature maps depend on.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "performer/ops/favor/call.h"
#include "performer/ops/feature_maps.h"

namespace performer::ops {
namespace {

using at::Tensor;

struct SideMoments {
  Tensor mean, moment;  // [N, H, D], [N, H, D, D]
};

// x [B, T, H, D], kept tokens only.
SideMoments moments_of_padded(const Tensor& x, const Tensor& mask) {
  Tensor kept = x, count = at::full({fixed_size(x, 0), 1, 1}, fixed_size(x, 1), x.options());
  if (mask.defined()) {
    kept = x.masked_fill(mask.logical_not().unsqueeze(-1).unsqueeze(-1), 0);
    count = mask.sum(1).to(x.scalar_type()).view({-1, 1, 1});
  }
  count = count.clamp_min(1);
  return {kept.sum(1) / count, at::einsum("bthi,bthj->bhij", {kept, kept}) / count.unsqueeze(-1)};
}

SideMoments moments_of(const Tensor& given, double scale, const std::optional<Tensor>& mask,
                       const std::optional<Tensor>& cu) {
  const Tensor x = given.to(precise_type(given)) * scale;
  const Tensor keep = mask.has_value() ? *mask : Tensor();
  if (!cu.has_value() || !cu->defined()) return moments_of_padded(x, keep);
  std::vector<Tensor> means, moments;
  const int64_t* bounds = cu->const_data_ptr<int64_t>();
  for (int64_t n = 0; n + 1 < fixed_size(*cu, 0); ++n) {
    const auto part = [&](const Tensor& t) { return t.defined() ? t.slice(1, bounds[n], bounds[n + 1]) : t; };
    const SideMoments one = moments_of_padded(part(x), part(keep));
    means.push_back(one.mean);
    moments.push_back(one.moment);
  }
  TORCH_CHECK_VALUE(!means.empty(), "second moments need at least one packed segment, found none");
  return {at::cat(means), at::cat(moments)};
}

}  // namespace

MapStatistics measure_statistics(const AttentionInputs& inputs, const FeatureMapOptions& options) {
  TORCH_CHECK_VALUE(feature_map_traits(options.map).statistics, "feature map ", options.map,
                    " does not depend on second moments; there is nothing to measure");
  TORCH_CHECK_VALUE(inputs.query.dim() == 4 && inputs.key.dim() == 4,
                    "second moments need query and key as [batch, tokens, heads, size], found ",
                    inputs.query.dim(), " and ", inputs.key.dim(), " dimensions");
  const at::NoGradGuard no_grad;
  const double scale = std::pow(static_cast<double>(fixed_size(inputs.query, 3)), -0.25);
  const auto& cu_key = inputs.cu_key.has_value() ? inputs.cu_key : inputs.cu_query;
  const SideMoments query = moments_of(inputs.query, scale, inputs.query_mask, inputs.cu_query);
  const SideMoments key = moments_of(inputs.key, scale, inputs.key_mask, cu_key);
  return {query.mean, key.mean, query.moment, key.moment};
}

MapStatistics pool_statistics(const MapStatistics& measured, const Tensor& tokens) {
  TORCH_CHECK_VALUE(measured.defined() && measured.query_mean.dim() == 3,
                    "only statistics of several sequences, [N, H, D], can be pooled; found ",
                    measured.defined() ? measured.query_mean.dim() : 0, " dimensions");
  const int64_t sequences = fixed_size(measured.query_mean, 0);
  TORCH_CHECK_VALUE(!tokens.defined() || (tokens.dim() == 1 && fixed_size(tokens, 0) == sequences),
                    "pooling ", sequences, " sequences needs as many token counts");
  const at::NoGradGuard no_grad;
  Tensor weights = tokens.defined() ? tokens.to(measured.query_mean.scalar_type())
                                    : at::ones({sequences}, measured.query_mean.options());
  weights = weights / weights.sum();
  const auto mean = [&](const Tensor& t) { return at::tensordot(weights, t, {0}, {0}); };
  return {mean(measured.query_mean), mean(measured.key_mean), mean(measured.query_moment),
          mean(measured.key_moment)};
}

}  // namespace performer::ops
