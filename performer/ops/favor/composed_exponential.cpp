// SPDX-License-Identifier: Apache-2.0
// The exponential family of the composed backend: phi = exp(u), sums with a log-scale for each feature.
//
// Within a causal chunk no single shift suits all rows: the largest u of the chunk may belong to keys that an
// early row must not see, and its own denominator would then vanish. So the chunk is halved again and again:
// at each level the second half of a block reads all of its first half, in which every key is visible to it,
// with the first half's own largest u. Every factor is then at most 1 and every denominator at least 1,
// whatever the inputs are, without a branch that depends on data. A token's own key is the last level.
#include <ATen/ATen.h>

#include <limits>

#include "performer/ops/favor/composed_family.h"

namespace performer::ops::composed {
namespace {

using at::Tensor;
using kernels::kEmptyLogScale;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The keys' u with minus infinity where they are masked: exp() then leaves them out everywhere.
Tensor visible(const Keys& keys) {
  const Tensor u = keys.u.clamp_min(kEmptyLogScale);
  return keys.keep.defined() ? u.masked_fill(keys.keep.logical_not().unsqueeze(-1), -kInfinity) : u;
}

// The largest u of each feature over the tokens, finite even where there is none: [..., 1, M].
Tensor largest(const Tensor& u) {
  return u.amax(-2, /*keepdim=*/true).clamp_min(kEmptyLogScale);
}

// x [B, H, P, N] cut into blocks of 2 * size tokens; their first or second halves: [B, H, blocks, size, N].
Tensor half(const Tensor& x, int64_t size, int64_t which) {
  return x.unflatten(2, {-1, 2, size}).select(3, which);
}

// Tokens added behind until there are `tokens`.
Tensor padded(const Tensor& x, int64_t tokens, double value) {
  const int64_t missing = tokens - x.size(2);
  if (missing == 0) return x;
  return x.dim() == 4 ? at::constant_pad_nd(x, {0, 0, 0, missing}, value)
                      : at::constant_pad_nd(x, {0, missing}, value);
}

int64_t power_of_two_from(int64_t tokens) {
  int64_t power = 1;
  while (power < tokens) power *= 2;
  return power;
}

// exp of the log of a weight, which is at most 1 but for rounding: that of exponents of 1e12 in fp32 is
// 65536.
Tensor weight_of(const Tensor& exponent) {
  return exponent.clamp_max(0).exp();
}

Tensor row_sums(const Tensor& weights, const Tensor& last) {
  return at::matmul(weights, last.unsqueeze(-1)).squeeze(-1);
}

// Whether reading `size` keys through their sums, M x E numbers, takes fewer products than query by query.
bool reads_sums(int64_t size, int64_t features, int64_t value_size) {
  return size * (features + value_size) > 2 * features * value_size;
}

// Adds exp(log_weight) * (rows, tail) to the sums, and keeps each feature's scale the largest so far.
void add(Sums& sums, const Tensor& log_weight, const Tensor& rows, const Tensor& tail) {
  const Tensor raised = at::maximum(sums.scale, log_weight.amax(-2));
  const Tensor decay = (sums.scale - raised).exp();
  const Tensor weight = (log_weight - raised.unsqueeze(-2)).exp().transpose(-1, -2);
  sums.kv = sums.kv * decay.unsqueeze(-1) + at::matmul(weight, rows);
  sums.last = sums.last * decay + (tail.defined() ? row_sums(weight, tail) : weight.sum(-1));
  sums.scale = raised;
}

class Exponential final : public Family {
 public:
  void absorb(Sums& sums, const Keys& keys) const override { add(sums, visible(keys), keys.value, {}); }
  void absorb(Sums& mirror, const Queries& queries) const override {
    add(mirror, queries.u - queries.normalizer.unsqueeze(-1), queries.grad, -queries.dot);
  }

  Part read(const Tensor& u, const Sums& sums) const override {
    Tensor weight = u + sums.scale.unsqueeze(-2);
    const Tensor shift = weight.amax(-1);
    weight = (weight - shift.unsqueeze(-1)).exp();
    return {at::matmul(weight, sums.kv), row_sums(weight, sums.last), shift};
  }

  Part read_causal(const Tensor& given_u, const Keys& keys) const override {
    const int64_t count = given_u.size(2), tokens = power_of_two_from(count);
    const Tensor q = padded(given_u, tokens, 0), k = padded(visible(keys), tokens, -kInfinity),
                 value = padded(keys.value, tokens, 0);
    const Tensor own = q + k;
    Part total;
    total.shift = own.amax(-1).clamp_min(kEmptyLogScale);
    total.denominator = (own - total.shift.unsqueeze(-1)).exp().sum(-1);
    total.numerator = total.denominator.unsqueeze(-1) * value;
    for (int64_t size = 1; size < tokens; size *= 2) {
      const Part part = read_half(half(q, size, 1), half(k, size, 0), half(value, size, 0));
      // Views of the rows that this level adds to.
      Tensor numerator = half(total.numerator, size, 1),
             shift = total.shift.unflatten(2, {-1, 2, size}).select(3, 1),
             denominator = total.denominator.unflatten(2, {-1, 2, size}).select(3, 1);
      const Part merged = merge({numerator, denominator, shift}, part);
      numerator.copy_(merged.numerator);
      denominator.copy_(merged.denominator);
      shift.copy_(merged.shift);
    }
    const auto cut = [&](const Tensor& x) { return x.narrow(2, 0, count); };
    return {cut(total.numerator), cut(total.denominator), cut(total.shift)};
  }

  Part merge(const Part& a, const Part& b) const override {
    const Tensor shift = at::maximum(a.shift, b.shift);
    const Tensor of_a = (a.shift - shift).exp(), of_b = (b.shift - shift).exp();
    return {a.numerator * of_a.unsqueeze(-1) + b.numerator * of_b.unsqueeze(-1),
            a.denominator * of_a + b.denominator * of_b, shift};
  }

  void finish(const Part& part, const Tensor& keep, Tensor& out, Tensor& normalizer) const override {
    Tensor empty = part.shift.lt(kEmptyLogScale / 2).logical_or_(part.denominator.ge(0x1p-126).logical_not());
    if (keep.defined()) empty = empty.logical_or(keep.logical_not());
    out = (part.numerator / part.denominator.unsqueeze(-1)).masked_fill(empty.unsqueeze(-1), 0);
    normalizer = (part.shift + part.denominator.log()).masked_fill(empty, kInfinity);
  }

  // With the normalizers of the forward pass every weight below is part of an attention probability, at most
  // 1; rows without keys have the normalizer +infinity and get the weight 0.
  Tensor query_gradient(const Queries& queries, const Sums& sums) const override {
    const Tensor weight = weight_of(queries.u + sums.scale.unsqueeze(-2) - queries.normalizer.unsqueeze(-1));
    const Tensor inner = at::matmul(queries.grad, sums.kv.transpose(-1, -2)) -
                         queries.dot.unsqueeze(-1) * sums.last.unsqueeze(-2);
    return weight * inner;
  }

  ChunkGradients key_gradient(const Keys& keys, const Sums& mirror) const override {
    const Tensor weight = weight_of(visible(keys) + mirror.scale.unsqueeze(-2));
    const Tensor inner = at::matmul(keys.value, mirror.kv.transpose(-1, -2)) + mirror.last.unsqueeze(-2);
    return {{}, weight * inner, at::matmul(weight, mirror.kv)};
  }

  ChunkGradients causal_gradient(const Queries& queries, const Keys& keys) const override {
    const int64_t count = queries.u.size(2), tokens = power_of_two_from(count);
    const Tensor q = padded(queries.u, tokens, 0), k = padded(visible(keys), tokens, -kInfinity),
                 value = padded(keys.value, tokens, 0), grad = padded(queries.grad, tokens, 0);
    const Tensor normalizer = padded(queries.normalizer, tokens, kInfinity).unsqueeze(-1),
                 dot = padded(queries.dot, tokens, 0).unsqueeze(-1);
    // Each token's own key.
    const Tensor own = weight_of(q + k - normalizer);
    ChunkGradients total;
    total.query = own * ((grad * value).sum(-1, true) - dot);
    total.key = total.query.clone();
    total.value = own.sum(-1, true) * grad;
    for (int64_t size = 1; size < tokens; size *= 2) {
      const Tensor keys_u = half(k, size, 0), scale = largest(keys_u);
      const Tensor of_queries = weight_of(half(q, size, 1) + scale - half(normalizer, size, 1)),
                   of_keys = (keys_u - scale).exp();
      const ChunkGradients part =
          half_gradient(of_queries, of_keys, half(value, size, 0), half(grad, size, 1), half(dot, size, 1));
      half(total.query, size, 1).add_(part.query);
      half(total.key, size, 0).add_(part.key);
      half(total.value, size, 0).add_(part.value);
    }
    const auto cut = [&](const Tensor& x) { return x.narrow(2, 0, count); };
    return {cut(total.query), cut(total.key), cut(total.value)};
  }

  double empty_scale() const override { return kEmptyLogScale; }
  Tensor initial_factor(const Tensor& initial_scale, const Sums& mirror) const override {
    return weight_of(initial_scale + mirror.scale);
  }

 private:
  // Queries that see all of the keys, as many as there are queries.
  Part read_half(const Tensor& q, const Tensor& k, const Tensor& value) const {
    const Tensor scale = largest(k), of_keys = (k - scale).exp();
    Tensor of_queries = q + scale;
    const Tensor shift = of_queries.amax(-1);
    of_queries = (of_queries - shift.unsqueeze(-1)).exp();
    if (reads_sums(q.size(-2), q.size(-1), value.size(-1))) {
      const Tensor kv = at::matmul(of_keys.transpose(-1, -2), value);
      return {at::matmul(of_queries, kv), row_sums(of_queries, of_keys.sum(-2)), shift};
    }
    const Tensor weights = at::matmul(of_queries, of_keys.transpose(-1, -2));
    return {at::matmul(weights, value), weights.sum(-1), shift};
  }

  // The gradients of what read_half() computes. `of_queries` and `of_keys` are the two factors of attention
  // probabilities; g and dot as in Queries, dot [..., C, 1].
  ChunkGradients half_gradient(const Tensor& of_queries, const Tensor& of_keys, const Tensor& value,
                               const Tensor& g, const Tensor& dot) const {
    if (reads_sums(g.size(-2), of_keys.size(-1), value.size(-1))) {
      const Tensor kv = at::matmul(of_keys.transpose(-1, -2), value), key_sum = of_keys.sum(-2, true);
      const Tensor queries = of_queries.transpose(-1, -2);
      const Tensor mirror = at::matmul(queries, g), dots = at::matmul(queries, dot).transpose(-1, -2);
      return {of_queries * (at::matmul(g, kv.transpose(-1, -2)) - dot * key_sum),
              of_keys * (at::matmul(value, mirror.transpose(-1, -2)) - dots), at::matmul(of_keys, mirror)};
    }
    const Tensor probability = at::matmul(of_queries, of_keys.transpose(-1, -2));
    const Tensor change = at::matmul(g, value.transpose(-1, -2)) - dot;
    return {of_queries * at::matmul(change, of_keys),
            of_keys * at::matmul(change.transpose(-1, -2), of_queries),
            at::matmul(probability.transpose(-1, -2), g)};
  }
};

}  // namespace

std::unique_ptr<Family> exponential_family() {
  return std::make_unique<Exponential>();
}

}  // namespace performer::ops::composed
