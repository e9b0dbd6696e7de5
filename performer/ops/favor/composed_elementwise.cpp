// SPDX-License-Identifier: Apache-2.0
// The element-wise family of the composed backend: phi = g(u) + epsilon, sums without scales.
//
// A causal chunk is cut into blocks that are handled side by side: within a block query by query, and all
// blocks before it by running totals of their sums.
#include <ATen/ATen.h>

#include <algorithm>
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

constexpr int64_t kBlock = 64;

// x [B, H, C, N] as blocks [B, H, blocks, tokens of a block, N], with zeros behind the last token.
Tensor blocks_of(const Tensor& x) {
  const int64_t tokens = x.size(2), size = std::min(kBlock, tokens);
  const int64_t missing = (size - tokens % size) % size;
  const Tensor whole = missing == 0 ? x : at::constant_pad_nd(x, {0, 0, 0, missing});
  return whole.unflatten(2, {-1, size});
}

// And back.
Tensor tokens_of(const Tensor& blocks, int64_t tokens) {
  return blocks.flatten(2, 3).narrow(2, 0, tokens);
}

// Totals of the blocks before each block: x and the result [B, H, blocks, ...].
Tensor before_each(const Tensor& x) {
  const int64_t earlier = x.size(2) - 1;
  return at::cat({at::zeros_like(x.narrow(2, 0, 1)), x.narrow(2, 0, earlier).cumsum(2)}, 2);
}
Tensor after_each(const Tensor& x) {
  return before_each(x.flip(2)).flip(2);
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
    const int64_t count = u.size(2);
    const Tensor q = blocks_of(features(u)), k = blocks_of(key_features(keys)), v = blocks_of(keys.value);
    const Tensor weights = at::matmul(q, k.transpose(-1, -2)).tril();
    Tensor numerator = at::matmul(weights, v), denominator = weights.sum(-1, true);
    if (q.size(2) > 1) {
      const Tensor kv = before_each(at::matmul(k.transpose(-1, -2), v)), key_sum = before_each(k.sum(-2));
      numerator = numerator + at::matmul(q, kv);
      denominator = denominator + at::matmul(q, key_sum.unsqueeze(-1));
    }
    return {tokens_of(numerator, count), tokens_of(denominator, count).squeeze(-1), {}};
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
    const int64_t count = queries.u.size(2);
    const Tensor q = blocks_of(features(queries.u)), k = blocks_of(key_features(keys)),
                 v = blocks_of(keys.value), g = blocks_of(queries.grad),
                 dot = blocks_of(queries.dot.unsqueeze(-1)), scale = blocks_of(inverse(queries));
    const Tensor change = ((at::matmul(g, v.transpose(-1, -2)) - dot) * scale).tril();
    const Tensor weights = (at::matmul(q, k.transpose(-1, -2)) * scale).tril();
    ChunkGradients blocks{at::matmul(change, k), at::matmul(change.transpose(-1, -2), q),
                          at::matmul(weights.transpose(-1, -2), g)};
    if (q.size(2) > 1) {
      const Tensor kv = before_each(at::matmul(k.transpose(-1, -2), v)),
                   key_sum = before_each(k.sum(-2, true));
      blocks.query = blocks.query + (at::matmul(g, kv.transpose(-1, -2)) - dot * key_sum) * scale;
      const Tensor of_queries = (q * scale).transpose(-1, -2);
      const Tensor mirror = after_each(at::matmul(of_queries, g)),
                   dots = after_each(at::matmul(of_queries, dot)).transpose(-1, -2);
      blocks.key = blocks.key + (at::matmul(v, mirror.transpose(-1, -2)) - dots);
      blocks.value = blocks.value + at::matmul(k, mirror);
    }
    return {derivative(function_, queries.u) * tokens_of(blocks.query, count),
            key_slopes(keys) * tokens_of(blocks.key, count), tokens_of(blocks.value, count)};
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
