// SPDX-License-Identifier: Apache-2.0
#include "performer/references/darkformer/attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "performer/base/error.h"
#include "performer/ops/composed.h"
#include "performer/ops/projection.h"

namespace performer::references::darkformer {

using at::Tensor;

namespace {

double smallest_normal(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? std::numeric_limits<double>::min()
                                        : static_cast<double>(std::numeric_limits<float>::min());
}

double lowest(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? std::numeric_limits<double>::lowest()
                                        : static_cast<double>(std::numeric_limits<float>::lowest());
}

Tensor quotient(const Tensor& numerator, const Tensor& denominator) {
  const Tensor valid = denominator.gt(smallest_normal(denominator));
  const Tensor divisor = at::where(valid, denominator, at::ones_like(denominator));
  return at::where(valid, numerator / divisor, at::zeros({}, numerator.options()));
}

// (exp(l - shift) + epsilon exp(-shift)) / sqrt(M)
Tensor shifted_features(const Tensor& log_phi, const Tensor& shift, double epsilon) {
  Tensor phi = (log_phi - shift).exp();
  if (epsilon > 0) phi = phi + epsilon * (-shift).exp();
  return phi / std::sqrt(static_cast<double>(log_phi.size(-1)));
}

// Without an epsilon a shift may be negative, which all-small features need; with one, exp(-shift) must not
// overflow.
Tensor bounded(const Tensor& shift, double epsilon) {
  return epsilon > 0 ? shift.clamp_min(0) : shift;
}

Tensor over_tokens(const Tensor& mask) {
  return mask.unsqueeze(-1).unsqueeze(-1);
}

// [B, T, H, C] -> [B, H, T, C] and back.
Tensor heads_first(const Tensor& x) {
  return x.transpose(1, 2);
}

Tensor causal_attention(const Tensor& phi_q, const Tensor& log_phi_k, const Tensor& value,
                        const Tensor& key_mask, const AttentionOptions& options, State* state) {
  const double floor = options.epsilon > 0 ? 0.0 : lowest(log_phi_k);
  Tensor masked = log_phi_k;
  if (key_mask.defined()) masked = log_phi_k.masked_fill(over_tokens(key_mask).logical_not(), -HUGE_VAL);
  // Each key has its own shift; a row sees all of them turned to the largest so far.
  Tensor token_scale = masked.detach().amax({-1}, /*keepdim=*/true);
  token_scale =
      bounded(token_scale.masked_fill(token_scale.isfinite().logical_not(), floor), options.epsilon);
  Tensor phi_k = shifted_features(masked, token_scale, options.epsilon);
  if (key_mask.defined()) phi_k = phi_k.masked_fill(over_tokens(key_mask).logical_not(), 0);

  const Tensor q = heads_first(phi_q), k = heads_first(phi_k), v = heads_first(value),
               scale = heads_first(token_scale).squeeze(-1);  // [B, H, T]
  Tensor kv = at::zeros({q.size(0), q.size(1), q.size(3), v.size(3)}, q.options());
  Tensor key_sum = at::zeros({q.size(0), q.size(1), q.size(3)}, q.options());
  Tensor log_scale = at::full({q.size(0), q.size(1)}, floor, q.options());
  if (state != nullptr && state->kv.defined())
    kv = state->kv, key_sum = state->key_sum, log_scale = state->log_scale;
  std::vector<Tensor> parts;
  for (int64_t begin = 0; begin < q.size(2); begin += options.chunk) {
    const int64_t length = std::min(options.chunk, q.size(2) - begin);
    const Tensor qc = q.narrow(2, begin, length), kc = k.narrow(2, begin, length),
                 vc = v.narrow(2, begin, length), own = scale.narrow(2, begin, length);
    const Tensor running = std::get<0>(at::cat({log_scale.unsqueeze(-1), own}, -1).cummax(-1))
                               .narrow(-1, 1, length);  // [B, H, t]
    const Tensor before = (log_scale.unsqueeze(-1) - running).exp();
    const Tensor factors =
        (own.unsqueeze(-2) - running.unsqueeze(-1)).clamp_max(0).exp();  // [B, H, row, key]
    const Tensor weights = (at::matmul(qc, kc.transpose(-1, -2)) * factors).tril();
    const Tensor numerator = at::matmul(qc, kv) * before.unsqueeze(-1) + at::matmul(weights, vc);
    const Tensor denominator = at::matmul(qc, key_sum.unsqueeze(-1)).squeeze(-1) * before + weights.sum(-1);
    parts.push_back(quotient(numerator, denominator.unsqueeze(-1)));
    const Tensor next = running.select(-1, length - 1);
    const Tensor turned = (log_scale - next).exp();
    const Tensor keys = kc * (own - next.unsqueeze(-1)).exp().unsqueeze(-1);
    kv = kv * turned.unsqueeze(-1).unsqueeze(-1) + at::matmul(keys.transpose(-1, -2), vc);
    key_sum = key_sum * turned.unsqueeze(-1) + keys.sum(2);
    log_scale = next;
  }
  if (state != nullptr) *state = {kv, key_sum, log_scale};
  return parts.empty() ? value : heads_first(at::cat(parts, 2));
}

Tensor bidirectional_attention(const Tensor& phi_q, const Tensor& log_phi_k, const Tensor& value,
                               const Tensor& key_mask, double epsilon) {
  Tensor seen = log_phi_k.detach();
  if (key_mask.defined()) seen = seen.masked_fill(over_tokens(key_mask).logical_not(), -HUGE_VAL);
  Tensor shift = seen.amax({1, 3}, /*keepdim=*/true);
  shift = bounded(shift.masked_fill(shift.isfinite().logical_not(), 0), epsilon);
  Tensor phi_k = shifted_features(log_phi_k, shift, epsilon);
  if (key_mask.defined()) phi_k = phi_k.masked_fill(over_tokens(key_mask).logical_not(), 0);
  const auto sums = ops::attention_sums(phi_q, phi_k, value, /*causal=*/false);
  return quotient(sums.numerator, sums.denominator);
}

Tensor checked_mask(const std::optional<Tensor>& mask, const char* name, const Tensor& x) {
  if (!mask.has_value() || !mask->defined()) return {};
  check<UsageError>(mask->scalar_type() == at::kBool && mask->dim() == 2 && mask->size(0) == x.size(0) &&
                        mask->size(1) == x.size(1),
                    "{} must be bool [{}, {}]", name, x.size(0), x.size(1));
  return *mask;
}

}  // namespace

Tensor log_features(const Tensor& x, const FeatureMap& map) {
  Tensor y = x * std::pow(static_cast<double>(x.size(-1)), -0.25);
  if (map.geometry.defined()) {
    const Tensor geometry = map.geometry.to(x.scalar_type());
    check<UsageError>(geometry.dim() == 3 && geometry.size(2) == x.size(-1) &&
                          (geometry.size(0) == 1 || geometry.size(0) == x.size(2)),
                      "the geometry must be [{} or 1, R, {}], found {} dimensions", x.size(2), x.size(-1),
                      geometry.dim());
    y = at::einsum("bthd,hrd->bthr", {y, geometry.expand({x.size(2), -1, -1})});
  }
  check<UsageError>(map.projection.defined() && map.projection.size(-1) == y.size(-1),
                    "the features need a projection of rows of {} numbers", y.size(-1));
  Tensor projection = map.projection;
  if (projection.dim() == 3) projection = projection.expand({x.size(2), -1, -1});
  const Tensor log_phi = ops::project(y, projection) - ops::half_square(y);
  return map.log_weights.defined() ? log_phi + map.log_weights.to(x.scalar_type()) : log_phi;
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const FeatureMap& map,
                 const AttentionOptions& options, State* state) {
  check<UsageError>(options.epsilon >= 0, "epsilon must not be negative, found {}", options.epsilon);
  check<UsageError>(options.chunk >= 1, "the chunk must be at least 1 token, found {}", options.chunk);
  check<UsageError>(!options.causal || query.size(1) == key.size(1),
                    "causal attention needs as many keys as queries, found {} queries and {} keys",
                    query.size(1), key.size(1));
  check<UsageError>(options.causal || state == nullptr, "a state belongs to causal attention");
  const Tensor key_mask = checked_mask(options.key_mask, "key_mask", key),
               query_mask = checked_mask(options.query_mask, "query_mask", query);
  const Tensor log_phi_q = log_features(query, map);
  const Tensor query_shift = bounded(log_phi_q.detach().amax({-1}, /*keepdim=*/true), options.epsilon);
  const Tensor phi_q = shifted_features(log_phi_q, query_shift, options.epsilon);
  const Tensor log_phi_k = log_features(key, map);
  const Tensor out = options.causal
                         ? causal_attention(phi_q, log_phi_k, value, key_mask, options, state)
                         : bidirectional_attention(phi_q, log_phi_k, value, key_mask, options.epsilon);
  return query_mask.defined() ? out.masked_fill(over_tokens(query_mask).logical_not(), 0) : out;
}

int64_t default_features(int64_t head_size) {
  const auto size = static_cast<double>(head_size);
  return std::max<int64_t>(1, static_cast<int64_t>(size * std::log(std::max(size, 2.0))));
}

Tensor draw_projection(int64_t features, int64_t rank, int64_t seed, int64_t layer, int64_t redraw) {
  return ops::draw_projection("orthogonal", "chi", 1, features, rank, seed, layer, redraw)[0];
}

FeatureMap variance_optimal_proposal(const Tensor& projection, const Tensor& covariance) {
  check<UsageError>(projection.dim() == 2 && covariance.dim() == 3 &&
                        covariance.size(1) == projection.size(1) && covariance.size(2) == projection.size(1),
                    "a proposal needs rows [M, R] and covariances [H, R, R], found {} and {} dimensions",
                    projection.dim(), covariance.dim());
  const Tensor symmetric = (covariance + covariance.transpose(-1, -2)) / 2;
  auto [values, vectors] = at::linalg_eigh(symmetric);
  const double rounding = std::numeric_limits<float>::epsilon() * static_cast<double>(projection.size(1)) *
                          std::max(1.0, covariance.abs().amax().item<double>());
  check<UsageError>(
      values.amin().item<double>() >= -rounding && values.amax().item<double>() < 0.5,
      "the proposal needs covariances with eigenvalues from 0 to below 1/2, found {} to {}; reduce the "
      "scale of the geometry",
      values.amin().item<double>(), values.amax().item<double>());
  values = values.clamp_min(0);
  const Tensor deviations =
      ((1 + 2 * values) / (1 - 2 * values)).sqrt();  // of the proposal along each eigenvector
  const Tensor root = at::matmul(vectors * deviations.unsqueeze(-2), vectors.transpose(-1, -2));
  const Tensor base = projection.to(root.scalar_type());
  const Tensor rows = at::matmul(base.unsqueeze(0), root);  // the root is symmetric
  const Tensor ratio = deviations.log().sum(-1, /*keepdim=*/true) +
                       (base.square().sum(-1).unsqueeze(0) - rows.square().sum(-1)) / 2;
  return {rows, {}, ratio / 2};
}

Tensor whitening_geometry(const Tensor& covariance, double regularization, double shrinkage,
                          std::optional<double> scale) {
  check<UsageError>(regularization >= 0 && shrinkage >= 0 && shrinkage <= 1,
                    "regularization must not be negative and shrinkage be in [0, 1], found {} and {}",
                    regularization, shrinkage);
  const int64_t size = covariance.size(-1);
  const Tensor symmetric = (covariance + covariance.transpose(-1, -2)) / 2;
  const Tensor mean = symmetric.diagonal(0, -2, -1).mean(-1).unsqueeze(-1).unsqueeze(-1);
  const Tensor loaded =
      (1 - shrinkage) * symmetric + (shrinkage + regularization) * mean * at::eye(size, symmetric.options());
  const auto [values, vectors] = at::linalg_eigh(loaded);
  check<UsageError>(
      values.amin().item<double>() > 0,
      "the covariance is not positive definite (smallest eigenvalue {}); raise regularization or shrinkage",
      values.amin().item<double>());
  const double factor = scale.value_or(std::pow(static_cast<double>(size), -0.25));
  return factor * at::matmul(vectors * values.rsqrt().unsqueeze(-2), vectors.transpose(-1, -2));
}

}  // namespace performer::references::darkformer
