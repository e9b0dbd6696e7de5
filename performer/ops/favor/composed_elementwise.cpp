// SPDX-License-Identifier: Apache-2.0
// The element-wise family of the composed backend: phi = g(u) + epsilon, sums without scales.
#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

#include "performer/kernels/function.h"
#include "performer/ops/composed.h"
#include "performer/ops/favor/composed_family.h"

namespace performer::ops::composed {
namespace {

using at::Tensor;
using kernels::Function;

// g'(u), with the choices of kernels/function.h where g has a corner.
Tensor derivative(Function function, const Tensor& u) {
  switch (function) {
    case Function::relu:
      return u.gt(0).to(u.scalar_type());
    case Function::elu1:
      return u.clamp_max(0).exp();
    case Function::square:
      return 2 * u;
    case Function::abs:
      return u.sign();
    case Function::requ:
      return 2 * u.clamp_min(0);
    case Function::gelu: {
      const Tensor density = (-u * u / 2).exp() * (std::numbers::inv_sqrtpi / std::numbers::sqrt2);
      return at::erfc(-u * (std::numbers::sqrt2 / 2)) / 2 + u * density;
    }
    case Function::sigmoid: {
      const Tensor s = u.sigmoid();
      return s * (1 - s);
    }
    case Function::tanh:
      return 1 - u.tanh().square();
    case Function::cos:
      return -u.sin();
    case Function::sin:
      return u.cos();
    case Function::identity:
      return at::ones_like(u);
    case Function::exp:
      return u.exp();
    case Function::leaky_relu:
      return at::where(u.gt(0), at::ones_like(u), at::full_like(u, kernels::kLeakySlope));
  }
  return {};
}

class Elementwise final : public Family {
 public:
  Elementwise(Function function, double epsilon) : function_(function), epsilon_(epsilon) {}

  void absorb(Sums& sums, const Keys& keys) const override {
    const Tensor phi = key_features(keys).transpose(-1, -2);
    sums.kv = sums.kv + at::matmul(phi, keys.value);
    sums.last = sums.last + phi.sum(-1);
  }
  void absorb(Sums& mirror, const Queries& queries) const override {
    const Tensor weight = (features(queries.u) * inverse(queries)).transpose(-1, -2);
    mirror.kv = mirror.kv + at::matmul(weight, queries.grad);
    mirror.last = mirror.last - at::matmul(weight, queries.dot.unsqueeze(-1)).squeeze(-1);
  }

  Part read(const Tensor& u, const Sums& sums) const override {
    const Tensor phi = features(u);
    return {at::matmul(phi, sums.kv), at::matmul(phi, sums.last.unsqueeze(-1)).squeeze(-1), {}};
  }
  Part read_causal(const Tensor& u, const Keys& keys) const override {
    const Tensor weights = at::matmul(features(u), key_features(keys).transpose(-1, -2)).tril();
    return {at::matmul(weights, keys.value), weights.sum(-1), {}};
  }
  Part merge(const Part& a, const Part& b) const override {
    return {a.numerator + b.numerator, a.denominator + b.denominator, {}};
  }

  // Denominators below the smallest normal float count as none, as in kernels/element.h.
  void finish(const Part& part, const Tensor& keep, Tensor& out, Tensor& normalizer) const override {
    Tensor empty = part.denominator.abs().ge(0x1p-126).logical_not();
    if (keep.defined()) empty = empty.logical_or(keep.logical_not());
    out = (part.numerator / part.denominator.unsqueeze(-1)).masked_fill(empty.unsqueeze(-1), 0);
    normalizer = part.denominator.masked_fill(empty, 0);
  }

  Tensor query_gradient(const Queries& queries, const Sums& sums) const override {
    const Tensor inner = at::matmul(queries.grad, sums.kv.transpose(-1, -2)) -
                         queries.dot.unsqueeze(-1) * sums.last.unsqueeze(-2);
    return derivative(function_, queries.u) * inverse(queries) * inner;
  }
  ChunkGradients key_gradient(const Keys& keys, const Sums& mirror) const override {
    const Tensor inner = at::matmul(keys.value, mirror.kv.transpose(-1, -2)) + mirror.last.unsqueeze(-2);
    return {{}, key_slopes(keys) * inner, at::matmul(key_features(keys), mirror.kv)};
  }
  ChunkGradients causal_gradient(const Queries& queries, const Keys& keys) const override {
    const Tensor scale = inverse(queries), phi_q = features(queries.u), phi_k = key_features(keys);
    const Tensor change =
        ((at::matmul(queries.grad, keys.value.transpose(-1, -2)) - queries.dot.unsqueeze(-1)) * scale).tril();
    const Tensor weights = (at::matmul(phi_q, phi_k.transpose(-1, -2)) * scale).tril();
    return {derivative(function_, queries.u) * at::matmul(change, phi_k),
            key_slopes(keys) * at::matmul(change.transpose(-1, -2), phi_q),
            at::matmul(weights.transpose(-1, -2), queries.grad)};
  }

  double empty_scale() const override { return 0; }
  Tensor initial_factor(const Tensor& initial_scale, const Sums&) const override {
    return at::ones_like(initial_scale);
  }

 private:
  Tensor features(const Tensor& u) const {
    return activation(kernels::function_name(function_), u) + epsilon_;
  }
  static Tensor kept(const Tensor& x, const Keys& keys) {
    return keys.keep.defined() ? x.masked_fill(keys.keep.logical_not().unsqueeze(-1), 0) : x;
  }
  Tensor key_features(const Keys& keys) const { return kept(features(keys.u), keys); }
  Tensor key_slopes(const Keys& keys) const { return kept(derivative(function_, keys.u), keys); }
  // One over the denominator [B, H, C, 1], 0 for rows without one.
  static Tensor inverse(const Queries& queries) {
    const Tensor& denominator = queries.normalizer;
    return denominator.reciprocal().masked_fill(denominator.eq(0), 0).unsqueeze(-1);
  }

  Function function_;
  double epsilon_;
};

}  // namespace

std::unique_ptr<Family> elementwise_family(Function function, double epsilon) {
  return std::make_unique<Elementwise>(function, epsilon);
}

}  // namespace performer::ops::composed
