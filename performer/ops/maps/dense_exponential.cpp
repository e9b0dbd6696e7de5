// SPDX-License-Identifier: Apache-2.0
#include "performer/ops/map_statistics.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "performer/base/error.h"

namespace performer::ops {
namespace {

using at::Tensor;

// aderf and saderf divide by second moments. This share of their mean over the coordinates is added to each,
// so that directions without data (fewer tokens than dimensions) get a bounded factor. The estimate stays
// unbiased whatever the factors are; only its variance depends on them.
constexpr double kMomentFloor = 1e-4;
// Below this trace there is no data to divide by.
constexpr double kNoMoment = 1e-30;

struct SideMoments {
  Tensor mean, moment;  // [N, H, D], [N, H, D, D]
};

// x [B, T, H, D], kept tokens only.
SideMoments moments_of_padded(const Tensor& x, const Tensor& mask) {
  Tensor kept = x, count = at::full({x.size(0), 1, 1}, x.size(1), x.options());
  if (mask.defined()) {
    kept = x.masked_fill(mask.logical_not().unsqueeze(-1).unsqueeze(-1), 0);
    count = mask.sum(1).to(x.scalar_type()).view({-1, 1, 1});
  }
  count = count.clamp_min(1);
  return {kept.sum(1) / count, at::einsum("bthi,bthj->bhij", {kept, kept}) / count.unsqueeze(-1)};
}

SideMoments moments_of(const Tensor& given, double scale, const std::optional<Tensor>& mask,
                       const std::optional<Tensor>& cu) {
  const Tensor x = (given.scalar_type() == at::kDouble ? given : given.to(at::kFloat)) * scale;
  const Tensor keep = mask.has_value() ? *mask : Tensor();
  if (!cu.has_value() || !cu->defined()) return moments_of_padded(x, keep);
  std::vector<Tensor> means, moments;
  const int64_t* bounds = cu->const_data_ptr<int64_t>();
  for (int64_t n = 0; n + 1 < cu->size(0); ++n) {
    const auto part = [&](const Tensor& t) { return t.defined() ? t.slice(1, bounds[n], bounds[n + 1]) : t; };
    const SideMoments one = moments_of_padded(part(x), part(keep));
    means.push_back(one.mean);
    moments.push_back(one.moment);
  }
  check<UsageError>(!means.empty(), "second moments need at least one packed segment, found none");
  return {at::cat(means), at::cat(moments)};
}

// E|q + k|^2 over all pairs, of moments [..., D, D] and means [..., D].
Tensor mean_square_of_sums(const Tensor& query_moment, const Tensor& key_moment, const Tensor& mean_product) {
  const auto trace = [](const Tensor& m) { return m.diagonal(0, -2, -1).sum(-1); };
  return (trace(query_moment) + trace(key_moment) + 2 * mean_product).clamp_min(0);
}

// Second moments that can be divided by: the identity where there are no data.
Tensor floored(const Tensor& moment) {
  const int64_t size = moment.size(-1);
  const Tensor identity = at::eye(size, moment.options());
  const Tensor mean = moment.diagonal(0, -2, -1).mean(-1).unsqueeze(-1).unsqueeze(-1);
  return at::where(mean * static_cast<double>(size) > kNoMoment, moment + kMomentFloor * mean * identity,
                   identity.expand_as(moment));
}

// Eigenvectors in columns times a function of the eigenvalues, and back.
Tensor spectral(const Tensor& vectors, const Tensor& values) {
  return at::matmul(vectors * values.unsqueeze(-2), vectors.transpose(-1, -2));
}

// The pair of matrices S and S^-T that minimises E|S q + S^-T k|^2: both sides then have the same diagonal
// second moment. S^T S is the geometric mean of the key's moment and the inverse of the query's.
std::pair<Tensor, Tensor> balancing_matrices(const Tensor& query_moment, const Tensor& key_moment) {
  const auto [values, vectors] = at::linalg_eigh(floored(query_moment));
  const Tensor root = spectral(vectors, values.sqrt()), inverse_root = spectral(vectors, values.rsqrt());
  const auto [squares, turn] = at::linalg_eigh(at::matmul(root, at::matmul(floored(key_moment), root)));
  const Tensor quarter = squares.clamp_min(squares.amax(-1, true) * 1e-14).pow(0.25).unsqueeze(-1);
  const Tensor turned = turn.transpose(-1, -2);
  return {quarter * at::matmul(turned, inverse_root), at::matmul(turned, root) / quarter};
}

}  // namespace

Tensor optimal_a(const Tensor& s) {
  return (1 - 2 * s - ((2 * s + 1).square() + 8 * s).sqrt()) / 16;
}

MapStatistics measure_statistics(const AttentionInputs& inputs, const FeatureMapOptions& options) {
  check<UsageError>(feature_map_traits(options.map).statistics,
                    "feature map {} does not depend on second moments; there is nothing to measure",
                    options.map);
  check<UsageError>(inputs.query.dim() == 4 && inputs.key.dim() == 4,
                    "second moments need query and key as [batch, tokens, heads, size], found {} and {} "
                    "dimensions",
                    inputs.query.dim(), inputs.key.dim());
  const at::NoGradGuard no_grad;
  const double scale = std::pow(static_cast<double>(inputs.query.size(3)), -0.25);
  const auto& cu_key = inputs.cu_key.has_value() ? inputs.cu_key : inputs.cu_query;
  const SideMoments query = moments_of(inputs.query, scale, inputs.query_mask, inputs.cu_query);
  const SideMoments key = moments_of(inputs.key, scale, inputs.key_mask, cu_key);
  return {query.mean, key.mean, query.moment, key.moment};
}

MapStatistics pool_statistics(const MapStatistics& measured, const Tensor& tokens) {
  check<UsageError>(measured.defined() && measured.query_mean.dim() == 3,
                    "only statistics of several sequences, [N, H, D], can be pooled; found {} dimensions",
                    measured.defined() ? measured.query_mean.dim() : 0);
  const int64_t sequences = measured.query_mean.size(0);
  check<UsageError>(!tokens.defined() || (tokens.dim() == 1 && tokens.size(0) == sequences),
                    "pooling {} sequences needs as many token counts", sequences);
  const at::NoGradGuard no_grad;
  Tensor weights = tokens.defined() ? tokens.to(measured.query_mean.scalar_type())
                                    : at::ones({sequences}, measured.query_mean.options());
  weights = weights / weights.sum();
  const auto mean = [&](const Tensor& t) { return at::tensordot(weights, t, {0}, {0}); };
  return {mean(measured.query_mean), mean(measured.key_mean), mean(measured.query_moment),
          mean(measured.key_moment)};
}

DenseExponential dense_exponential(const std::string& map, const Tensor& projection,
                                   const MapStatistics& statistics) {
  const at::NoGradGuard no_grad;
  const auto exact = [](const Tensor& t) { return t.detach().to(at::kDouble); };
  const Tensor w = exact(projection), mean_q = exact(statistics.query_mean),
               mean_k = exact(statistics.key_mean);
  Tensor moment_q = exact(statistics.query_moment), moment_k = exact(statistics.key_moment);
  const Tensor mean_product = (mean_q * mean_k).sum(-1);  // S q . S^-T k = q . k: no balance changes it
  DenseExponential result;
  if (map == "sderf") {
    const Tensor cross = mean_q.unsqueeze(-1) * mean_k.unsqueeze(-2);
    const Tensor joint = moment_q + moment_k + cross + cross.transpose(-1, -2);
    const auto [values, vectors] = at::linalg_eigh(joint);
    const Tensor a = optimal_a(values.clamp_min(0)), b = (1 - 4 * a).sqrt();
    result.projection = at::matmul(w * b.unsqueeze(-2), vectors.transpose(-1, -2)).to(at::kFloat);
    result.offset = at::matmul(w.square(), a.unsqueeze(-1)).squeeze(-1).to(at::kFloat);
    result.log_constant = (1 - 4 * a).log().sum(-1) / 4;
    return result;
  }
  if (map == "saderf") {
    const auto diagonal = [](const Tensor& m) { return floored(m).diagonal(0, -2, -1); };
    result.query_factor = (diagonal(moment_k) / diagonal(moment_q)).pow(0.25);
    result.key_factor = result.query_factor.reciprocal();
    const auto turn = [](const Tensor& m, const Tensor& f) {
      return m * (f.unsqueeze(-1) * f.unsqueeze(-2));
    };
    moment_q = turn(moment_q, result.query_factor);
    moment_k = turn(moment_k, result.key_factor);
  } else if (map == "aderf") {
    std::tie(result.query_matrix, result.key_matrix) = balancing_matrices(moment_q, moment_k);
    const auto turn = [](const Tensor& m, const Tensor& s) {
      return at::matmul(s, at::matmul(m, s.transpose(-1, -2)));
    };
    moment_q = turn(moment_q, result.query_matrix);
    moment_k = turn(moment_k, result.key_matrix);
  }
  const double size = static_cast<double>(w.size(-1));
  const Tensor a = optimal_a(mean_square_of_sums(moment_q, moment_k, mean_product) / size);
  result.projection = (w * (1 - 4 * a).sqrt().unsqueeze(-1).unsqueeze(-1)).to(at::kFloat);
  result.offset = (w.square().sum(-1) * a.unsqueeze(-1)).to(at::kFloat);
  result.log_constant = (1 - 4 * a).log() * (size / 4);
  return result;
}

}  // namespace performer::ops
