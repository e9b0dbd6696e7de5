// SPDX-License-Identifier: Apache-2.0
#include "performer/references/keras/kernel_attention_windows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "performer/base/error.h"
#include "performer/ops/composed.h"

namespace performer::references::keras::windowed {
namespace {

using at::Tensor;

Tensor at_least_float(const Tensor& x) {
  return x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf ? x.to(at::kFloat) : x;
}

Tensor present(const Tensor& log_weight) {
  return log_weight.gt(kLogZero / 2);
}

// Features of keys times their weights, divided by exp(log_scale): the largest of the keys in dimension 2.
struct ScaledKeys {
  Tensor values, log_scale;
};

ScaledKeys scaled_keys(const Features& keys, const Tensor& log_weight) {
  const Tensor absent = present(log_weight).logical_not().unsqueeze(-1).unsqueeze(-1);
  const Tensor weight = log_weight.unsqueeze(-1).unsqueeze(-1);
  if (keys.logarithms) {
    const Tensor logs = (keys.values + weight).masked_fill(absent, kLogZero);
    const Tensor scale = at::amax(logs, {2}).detach();  // a representation, not a value: it cancels
    return {at::exp(logs - scale.unsqueeze(2)).masked_fill(absent, 0), scale};
  }
  const Tensor scale = at::amax(weight, {2});
  return {(keys.values * at::exp(weight - scale.unsqueeze(2))).masked_fill(absent, 0), scale};
}

// Features of queries in the scale of the keys they see; the largest term of the denominator is then
// at least 1.
Tensor scaled_queries(const Features& queries, const Tensor& log_scale) {
  if (!queries.logarithms) return queries.values;
  const Tensor logs = queries.values + log_scale.unsqueeze(2);
  return at::exp(logs - at::amax(logs, {-1}, /*keepdim=*/true).detach());
}

Tensor quotient(const Tensor& numerator, const Tensor& denominator) {
  const double least = denominator.scalar_type() == at::kDouble ? std::numeric_limits<double>::min()
                                                                : std::numeric_limits<float>::min();
  const Tensor empty = denominator.abs().lt(least);
  return (numerator / denominator.masked_fill(empty, 1).unsqueeze(-1)).masked_fill(empty.unsqueeze(-1), 0);
}

// Entries of dimension 1 moved `by` < size places on, `fill` before them.
Tensor moved(const Tensor& x, int64_t by, double fill) {
  if (by == 0) return x;
  return at::cat({at::full_like(x.narrow(1, 0, by), fill), x.narrow(1, 0, x.size(1) - by)}, 1);
}

Sums moved(const Sums& sums, int64_t by, double log_decay) {
  const Tensor scale = moved(sums.log_scale, by, kLogZero);
  return {moved(sums.kv, by, 0), moved(sums.key_sum, by, 0),
          by == 0 ? scale : scale + static_cast<double>(by) * log_decay};
}

Sums merged(const Sums& a, const Sums& b) {
  const Tensor scale = at::maximum(a.log_scale, b.log_scale);
  const Tensor of_a = at::exp(a.log_scale - scale), of_b = at::exp(b.log_scale - scale);
  return {a.kv * of_a.unsqueeze(-1) + b.kv * of_b.unsqueeze(-1), a.key_sum * of_a + b.key_sum * of_b, scale};
}

}  // namespace

Features features(const Tensor& x, const ops::FeatureMap& map, bool is_query) {
  const Tensor scaled = at_least_float(x) * map.scale;
  Tensor u = ops::project(scaled, map.projection);
  if (map.offset) u = u + map.offset->to(u.scalar_type()).unsqueeze(-3);
  if (map.family != "exponential") return {ops::activation(map.family, u) + map.epsilon, false};
  if (!is_query && map.norm_weight != 0) u = u - 2 * map.norm_weight * ops::half_square(scaled);
  return {u, true};
}

Tensor log_weights(const Tensor& mask, at::ScalarType type) {
  if (!mask.is_floating_point()) {
    return at::zeros(mask.sizes(), mask.options().dtype(type)).masked_fill(mask.eq(0), kLogZero);
  }
  check<UsageError>(mask.ge(0).all().item<bool>(),
                    "attention_mask: weights of keys must not be negative or NaN, found a smallest of {}",
                    mask.min().item<double>());
  const Tensor weights = mask.to(type);
  return weights.log().masked_fill(weights.eq(0), kLogZero);
}

Sums chunk_sums(const Features& keys, const Tensor& value, const Tensor& log_weight) {
  const ScaledKeys scaled = scaled_keys(keys, log_weight);
  const Tensor absent = present(log_weight).logical_not().unsqueeze(-1).unsqueeze(-1);
  const Tensor seen = at_least_float(value).masked_fill(absent, 0);
  return {at::einsum("bnchm,bnche->bnhme", {scaled.values, seen}), scaled.values.sum(2), scaled.log_scale};
}

Sums joined(const Sums& before, const Sums& after) {
  if (!before.defined()) return after;
  if (!after.defined()) return before;
  return {at::cat({before.kv, after.kv}, 1), at::cat({before.key_sum, after.key_sum}, 1),
          at::cat({before.log_scale, after.log_scale}, 1)};
}

Sums last(const Sums& sums, int64_t chunks) {
  const int64_t size = sums.kv.size(1);
  if (chunks >= size) return sums;
  const auto cut = [&](const Tensor& x) { return x.narrow(1, size - chunks, chunks); };
  return {cut(sums.kv), cut(sums.key_sum), cut(sums.log_scale)};
}

Sums window_sums(const Sums& sums, int64_t window, double log_decay) {
  Sums power = sums, result;  // of `width` chunks, of the last `done`
  const int64_t size = sums.kv.size(1);
  window = std::min(window, size);
  for (int64_t width = 1, done = 0; done < window; width *= 2) {
    if ((window & width) != 0) {
      result = result.defined() ? merged(result, moved(power, done, log_decay)) : power;
      done += width;
    }
    if (done < window) power = merged(power, moved(power, width, log_decay));
  }
  return result;
}

Tensor window_sums(const Tensor& x, int64_t window) {
  Tensor power = x, result;
  window = std::min(window, x.size(1));
  for (int64_t width = 1, done = 0; done < window; width *= 2) {
    if ((window & width) != 0) {
      result = result.defined() ? result + moved(power, done, 0) : power;
      done += width;
    }
    if (done < window) power = power + moved(power, width, 0);
  }
  return result;
}

Tensor read_out(const Features& queries, const Sums& sums) {
  const Tensor q = scaled_queries(queries, sums.log_scale);
  return quotient(at::einsum("bnchm,bnhme->bnche", {q, sums.kv}),
                  at::einsum("bnchm,bnhm->bnch", {q, sums.key_sum}));
}

Tensor window_tokens(const Tensor& x, int64_t window, int64_t count, double fill) {
  const int64_t missing = std::max<int64_t>(0, count + window - 1 - x.size(1));
  Tensor padded = x;
  if (missing > 0) {
    std::vector<int64_t> shape = x.sizes().vec();
    shape[1] = missing;
    padded = at::cat({at::full(shape, fill, x.options()), x}, 1);
  }
  const int64_t first = padded.size(1) - count - (window - 1);
  std::vector<Tensor> parts;
  for (int64_t i = 0; i < window; ++i) parts.push_back(padded.narrow(1, first + i, count));
  return at::cat(parts, 2);
}

Tensor pair_attention(const Features& queries, const Features& keys, const Tensor& value,
                      const Tensor& log_weight) {
  const ScaledKeys k = scaled_keys(keys, log_weight);
  const Tensor q = scaled_queries(queries, k.log_scale);
  const Tensor scores = at::einsum("bnchm,bnkhm->bnchk", {q, k.values});
  const Tensor absent = present(log_weight).logical_not().unsqueeze(-1).unsqueeze(-1);
  const Tensor seen = at_least_float(value).masked_fill(absent, 0);
  return quotient(at::einsum("bnchk,bnkhe->bnche", {scores, seen}), scores.sum(-1));
}

Tensor softmax_attention(const Tensor& scores, const Tensor& log_weight, const Tensor& value) {
  const Tensor absent = present(log_weight).logical_not();
  const Tensor weights =
      (at_least_float(scores) + log_weight).masked_fill(absent, kLogZero).softmax(-1).masked_fill(absent, 0);
  return at::einsum("bhts,bshe->bthe", {weights, at_least_float(value)});
}

}  // namespace performer::references::keras::windowed
