// SPDX-License-Identifier: Apache-2.0
#include "performer/references/keras/features.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "performer/base/error.h"
#include "performer/ops/composed.h"

namespace performer::references::keras {
namespace {

using at::Tensor;

constexpr double kReluEpsilon = 1e-3;

// Of the largest by rounding: products of equal rows by blocks need not be equal to the last digit, and rows
// may come from float32.
constexpr double kTie = 4e-7;

// The maximum over `dims`, part of the graph: elements that tie for it share its gradient equally. Equal
// tokens, such as padding, tie.
Tensor maximum(const Tensor& u, at::IntArrayRef dims) {
  const Tensor largest = at::amax(u.detach(), dims, /*keepdim=*/true);
  if (!u.requires_grad()) return largest;
  const Tensor ties = u.detach().ge(largest - kTie * largest.abs());
  const Tensor shared = (u * ties).sum(dims, /*keepdim=*/true) / ties.sum(dims, /*keepdim=*/true);
  return largest + (shared - shared.detach());
}

Tensor shifted_exp(const Tensor& u) {  // over everything but the batch
  return u.numel() == 0 ? at::exp(u) : at::exp(u - maximum(u, {1, 2, 3}));
}

// A and the factors made of it, [B, 1, H, 1], from the second-moment statistic |x + y|^2 of the two tensors.
struct Coefficients {
  Tensor a, b, d;
};

Coefficients coefficients(const Tensor& data, const Tensor& other, double normalizer, double dim) {
  const auto length = static_cast<double>(data.size(1));  // of `data`, for both sums
  const double squared = normalizer * normalizer;
  const auto mean_square = [&](const Tensor& x) {
    return x.square().sum({1, 3}, /*keepdim=*/true) * squared / length;
  };
  const Tensor product = (data.sum(1, true) * other.sum(1, true)).sum(-1, /*keepdim=*/true);
  const Tensor moment =
      mean_square(data) + mean_square(other) + product * squared * (2.0 / (length * length));
  const Tensor rho =
      1.0 / (4.0 * moment) *
      (((2.0 * moment + dim) * (2.0 * moment + dim) + 8.0 * dim * moment).sqrt() - 2.0 * moment - dim);
  Coefficients result;
  result.a = ((1.0 - 1.0 / rho) / 8.0).detach();
  result.b = (1.0 - 4.0 * result.a).sqrt();
  result.d = (1.0 - 4.0 * result.a).pow(dim / 4.0);
  return result;
}

}  // namespace

std::vector<std::string> transform_names() {
  return {"elu", "exp", "expmod", "expplus", "identity", "relu", "square"};
}

void check_transform(const std::string& name) {
  const auto names = transform_names();
  check<UsageError>(std::find(names.begin(), names.end(), name) != names.end(),
                    "feature_transform '{}' is unknown; known: {}", name, fmt::join(names, ", "));
}

bool transform_streams(const std::string& name) {
  return name != "expplus";
}

Tensor transform(const std::string& name, const Tensor& given, const Tensor& other, bool is_query,
                 const std::optional<Tensor>& projection) {
  check_transform(name);
  if (name == "expplus") return expplus(given, other, is_query, projection);
  const Tensor x = given.to(at::kDouble);
  const Tensor u = ops::project(x, projection);
  Tensor features;
  if (name == "exp") {
    features = at::exp(-ops::half_square(x)) * shifted_exp(u);
  } else if (name == "expmod") {
    features = shifted_exp(u) * std::exp(-0.5 * std::sqrt(static_cast<double>(x.size(-1))));
  } else if (name == "relu") {
    features = u * u.gt(0) + kReluEpsilon;  // a product: gradients that are NaN stay NaN, as they do there
  } else {
    features = ops::activation(name == "elu" ? "elu+1" : name, u);
  }
  if (projection) features = features / std::sqrt(static_cast<double>(projection->size(0)));
  return features.to(given.scalar_type());
}

Tensor expplus(const Tensor& given, const Tensor& given_other, bool is_query,
               const std::optional<Tensor>& projection, const ExpPlusOptions& options) {
  if (!projection) return given;
  const Tensor x = given.to(at::kDouble), other = given_other.to(at::kDouble);
  const Tensor w = projection->to(x.scalar_type());
  const auto dim = static_cast<double>(w.size(1));
  double normalizer = 1;
  Tensor data = x;
  if (options.normalize_data) {
    normalizer = 1 / std::sqrt(std::sqrt(static_cast<double>(x.size(-1))));
  } else {
    data = x / x.square().sum(-1, /*keepdim=*/true).sqrt();
  }
  const Tensor u = ops::project(normalizer * data, w);
  const Tensor half = ops::half_square(data) * (normalizer * normalizer);
  const Coefficients c = coefficients(data, other, normalizer, dim);
  const Tensor offset = c.a * w.square().sum(-1);  // [B, 1, H, M]
  Tensor exponent = c.b * u;
  if (options.numerical_renormalizer) {
    Tensor shift = c.b * (is_query || u.numel() == 0 ? maximum(u, {-1}) : maximum(u, {0, 1, 2, 3}));
    if (options.extra_renormalize_exp_fun) {
      const Tensor least = at::amax(half, {1}, /*keepdim=*/true);
      shift = at::where(shift >= least, shift, least);
    }
    exponent = exponent - shift;
  }
  const double ratio = 1 / std::sqrt(static_cast<double>(w.size(0)));
  return (ratio * c.d * (at::exp(exponent - half + offset) + options.numerical_stabilizer))
      .to(given.scalar_type());
}

}  // namespace performer::references::keras
