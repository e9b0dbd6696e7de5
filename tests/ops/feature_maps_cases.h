// SPDX-License-Identifier: Apache-2.0
// Every feature map with data that fit it, and its attention by the plain formula in double.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "performer/ops/composed.h"
#include "performer/ops/feature_maps.h"

namespace performer::ops::maps_test {

using at::Tensor;

// All maps; element-wise ones with a projection too, and every kind of projection.
inline std::vector<FeatureMapOptions> all_cases(int64_t features = 12) {
  std::vector<FeatureMapOptions> cases;
  for (const std::string& name : feature_map_names()) {
    FeatureMapOptions options;
    options.map = name;
    options.features = features;
    // Signed functions get an epsilon that keeps denominators away from zero; otherwise the problem is
    // ill-posed.
    const bool elementwise = !feature_map_traits(name).exponential && !feature_map_traits(name).learned;
    if (elementwise && feature_map_traits(name).signed_features) options.epsilon = 4;
    if (name == "t2r") options.epsilon = 0.01;
    cases.push_back(options);
    if (elementwise) {
      options.projection = "orthogonal";
      cases.push_back(options);
    }
  }
  for (const char* projection : {"iid", "hadamard", "givens", "simplex"}) {
    FeatureMapOptions options;
    options.features = features;
    options.projection = projection;
    options.shared_projection = std::string(projection) == "iid";
    options.row_norm = std::string(projection) == "givens" ? "sqrt-d" : "chi";
    cases.push_back(options);
  }
  return cases;
}

inline std::string text(const FeatureMapOptions& o) {
  return o.map + " " + o.projection + " " + o.row_norm;
}

// Drawn and learned weights; learned ones moved away from their start.
inline MapWeights weights_for(const FeatureMapOptions& options, int64_t heads, int64_t size,
                              at::ScalarType type = at::kFloat) {
  at::manual_seed(5);
  MapWeights weights = initial_map_weights(options, heads, size);
  weights.projection = draw_map_projection(options, heads, size, 3, 1, 0);
  for (Tensor* learned : {&weights.matrix, &weights.bias}) {
    if (learned->defined()) *learned = (*learned + 0.3 * at::randn_like(*learned)).to(type);
  }
  return weights;
}

// Moments as training data might have left them: anisotropic, with means.
inline MapStatistics frozen_statistics(int64_t heads, int64_t size) {
  at::manual_seed(6);
  const Tensor stretch = at::linspace(0.3, 1.5, size, at::kDouble);
  AttentionInputs data{at::randn({3, 40, heads, size}, at::kDouble) * stretch + 0.3,
                       at::randn({3, 40, heads, size}, at::kDouble) * stretch.flip(0) - 0.2,
                       at::zeros({3, 40, heads, 1}, at::kDouble)};
  FeatureMapOptions any;
  any.map = "oprf";
  return pool_statistics(measure_statistics(data, any));
}

template <class Test>
void for_every_map(const Test& test) {
  for (const FeatureMapOptions& options : all_cases()) {
    SCOPED_TRACE(text(options));
    test(options);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

inline bool needs_statistics(const FeatureMapOptions& options) {
  return feature_map_traits(options.map).statistics;
}
inline MapStatistics statistics_for_case(const FeatureMapOptions& options, int64_t heads, int64_t size) {
  return needs_statistics(options) ? frozen_statistics(heads, size) : MapStatistics{};
}

inline AttentionInputs random_inputs(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t d,
                                     int64_t e, double deviation = 0.7, at::ScalarType type = at::kFloat,
                                     bool causal = false) {
  at::manual_seed(batch + 10 * queries + 100 * keys);
  const auto options = at::TensorOptions(type);
  AttentionInputs inputs{at::randn({batch, queries, heads, d}, options) * deviation,
                         at::randn({batch, keys, heads, d}, options) * deviation,
                         at::randn({batch, keys, heads, e}, options)};
  inputs.causal = causal;
  return inputs;
}

inline double gap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 && b.numel() == 0) return 0;
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

// ---- The plain formulas, in double, of one head: x [T, D] -> features [T, M]. ----

// OPRF's A from E|q + k|^2, by way of rho as Chefs' random tables (2205.15317) has it.
inline double plain_a(double phi, double d) {
  const double rho = (std::sqrt(std::pow(2 * phi + d, 2) + 8 * d * phi) - 2 * phi - d) / (4 * phi);
  return (1 - 1 / rho) / 8;
}

struct PlainMap {
  const FeatureMapOptions& options;
  Tensor w, matrix, bias;  // of this head, double
  Tensor mean_q, mean_k, moment_q, moment_k;
  Tensor query_matrix, key_matrix;  // aderf: given, tested on their own

  Tensor exponent(const Tensor& x, const Tensor& rows) const {  // w x - |x|^2/2
    return at::matmul(x, rows.t()) - half_square(x);
  }
  Tensor tuned(const Tensor& x, double phi) const {  // GERF with A for E|x + y|^2 = phi
    const double a = plain_a(phi, static_cast<double>(x.size(1)));
    return (exponent(x, std::sqrt(1 - 4 * a) * w) + a * w.square().sum(1)).exp();
  }
  double phi_of(const Tensor& mq, const Tensor& mk) const {
    return (mq.trace() + mk.trace() + 2 * mean_q.dot(mean_k)).item<double>();
  }

  Tensor operator()(const Tensor& raw, bool query) const {
    const std::string& map = options.map;
    const Tensor x = raw * std::pow(static_cast<double>(raw.size(1)), -0.25);
    if (map == "favor+") return exponent(x, w).exp();
    if (map == "hyperbolic") return at::cat({exponent(x, w), exponent(x, -w)}, 1).exp();
    if (map == "trigonometric") {
      const Tensor u = at::matmul(x, w.t());
      return at::cat({u.cos(), u.sin()}, 1) * half_square(x).exp();
    }
    if (map == "oprf") return tuned(x, phi_of(moment_q, moment_k));
    if (map == "saderf") {
      const double floor = 1e-4;  // share of the mean moment added to each coordinate
      const Tensor dq = moment_q.diag() + floor * moment_q.diag().mean(),
                   dk = moment_k.diag() + floor * moment_k.diag().mean();
      const Tensor s = (dk / dq).pow(0.25);
      const double phi = ((moment_q.diag() * s * s).sum() + (moment_k.diag() / s / s).sum()).item<double>() +
                         2 * mean_q.dot(mean_k).item<double>();
      return tuned(query ? x * s : x / s, phi);
    }
    if (map == "aderf") {
      const auto turned = [](const Tensor& m, const Tensor& s) {
        return at::matmul(s, at::matmul(m, s.t()));
      };
      return tuned(at::matmul(x, (query ? query_matrix : key_matrix).t()),
                   phi_of(turned(moment_q, query_matrix), turned(moment_k, key_matrix)));
    }
    if (map == "sderf") {
      const Tensor joint = moment_q + moment_k + at::outer(mean_q, mean_k) + at::outer(mean_k, mean_q);
      const auto [values, vectors] = at::linalg_eigh(joint);
      Tensor a = at::empty_like(values);
      for (int64_t i = 0; i < values.size(0); ++i) a[i] = plain_a(values[i].item<double>(), 1);
      const Tensor b = at::matmul(at::diag((1 - 4 * a).sqrt()), vectors.t());
      return (exponent(x, at::matmul(w, b)) + at::matmul(w.square(), a)).exp();
    }
    if (map == "expmod") return (at::matmul(x, w.t())).exp();
    if (map == "geometry") return exponent(at::matmul(x, matrix.t()), w).exp();
    if (map == "hedgehog") {
      const Tensor z = at::matmul(raw, matrix.t()) + bias;
      return at::cat({z.exp(), (-z).exp()}, 1);
    }
    if (map == "t2r") return at::relu(at::matmul(raw, matrix.t()) + bias) + options.epsilon;
    const double epsilon = options.epsilon >= 0 ? options.epsilon : map == "relu" ? 1e-3 : 0;
    return activation(map, w.defined() ? at::matmul(raw, w.t()) : raw) + epsilon;
  }
};

inline PlainMap plain_map(const FeatureMapOptions& options, const MapWeights& weights, const MapStatistics& s,
                          int64_t head, int64_t heads, int64_t size) {
  const auto part = [&](const Tensor& t) {
    return t.defined() ? t.select(0, t.size(0) == 1 ? 0 : head).to(at::kDouble) : t;
  };
  PlainMap map{
      options, part(weights.projection), part(weights.matrix), part(weights.bias), {}, {}, {}, {}, {}, {}};
  if (!s.defined()) return map;
  map.mean_q = part(s.query_mean), map.mean_k = part(s.key_mean);
  map.moment_q = part(s.query_moment), map.moment_k = part(s.key_moment);
  if (options.map == "aderf") {
    const PreparedMap prepared = prepare_feature_map(options, weights, s, heads, size);
    map.query_matrix = part(prepared.query_matrix), map.key_matrix = part(prepared.key_matrix);
  }
  return map;
}

// Attention of unpacked inputs as a quadratic form.
inline Tensor plain_attention(const AttentionInputs& in, const FeatureMapOptions& options,
                              const MapWeights& weights, const MapStatistics& statistics) {
  const int64_t batch = in.query.size(0), heads = in.query.size(2), size = in.query.size(3);
  Tensor out = at::zeros({batch, in.query.size(1), heads, in.value.size(3)}, at::kDouble);
  for (int64_t h = 0; h < heads; ++h) {
    const PlainMap map = plain_map(options, weights, statistics, h, heads, size);
    for (int64_t b = 0; b < batch; ++b) {
      const auto rows = [&](const Tensor& x) { return x[b].select(1, h).to(at::kDouble); };
      Tensor weight = at::matmul(map(rows(in.query), true), map(rows(in.key), false).t());
      if (in.causal) weight = weight.tril();
      if (in.key_mask) weight = weight * (*in.key_mask)[b].to(at::kDouble);
      const Tensor sums = weight.sum(1, true);  // zero where features without an epsilon all vanish
      Tensor result = (at::matmul(weight, rows(in.value)) / sums).masked_fill(sums == 0, 0);
      if (in.query_mask) result = result.masked_fill((*in.query_mask)[b].logical_not().unsqueeze(1), 0);
      out[b].select(1, h).copy_(result);
    }
  }
  return out;
}

}  // namespace performer::ops::maps_test
