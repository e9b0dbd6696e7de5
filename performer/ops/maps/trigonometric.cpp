// SPDX-License-Identifier: Apache-2.0
// The trigonometric feature map, and its attention.
#include "performer/ops/trigonometric.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "performer/kernels/favor.h"
#include "performer/ops/composed.h"
#include "performer/ops/favor/call.h"
#include "performer/ops/maps/row.h"

namespace performer::ops {
namespace {

using at::Tensor;
using kernels::kEmptyLogScale;

constexpr int64_t kCausalChunk = 64;
constexpr int64_t kLongChunk = 512;  // bidirectional: bounds what the features of one product take

// One sequence batch with heads in front: features [B, H, T, 2m], without 1/m.
class Trigonometric {
 public:
  Trigonometric(const AttentionInputs& in, const Tensor& projection, double scale)
      : in_(in), projection_(projection), scale_(scale) {
    type_ = precise_type(in.query);
    frequencies_ = fixed_size(projection, -2);
    features_ = 2 * frequencies_;
    const auto options = in.query.options().dtype(type_);
    if (in.initial.has_value() && in.initial->defined()) {
      kv_ = in.initial->kv;
      key_sum_ = in.initial->key_sum;
      log_scale_ = in.initial->log_scale.narrow(-1, features_, 1);
    } else {
      const int64_t batch = fixed_size(in.query, 0), heads = fixed_size(in.query, 2);
      kv_ = at::zeros({batch, heads, features_ + 1, fixed_size(in.value, 3)}, options);
      key_sum_ = at::zeros({batch, heads, features_ + 1}, options);
      log_scale_ = at::full({batch, heads, 1}, kEmptyLogScale, options);
    }
  }

  Tensor run() {
    const int64_t queries = fixed_size(in_.query, 1), keys = fixed_size(in_.key, 1);
    std::vector<Tensor> parts;
    if (in_.causal) {
      const int64_t chunk = in_.chunk > 0 ? in_.chunk : kCausalChunk;
      for (int64_t t = 0; t < queries; t += chunk) {
        const int64_t count = std::min(chunk, queries - t);
        const Keys loaded = load_keys(t, count);
        parts.push_back(read_causal(t, loaded));
        absorb(loaded);
      }
    } else {
      for (int64_t t = 0; t < keys; t += kLongChunk) absorb(load_keys(t, std::min(kLongChunk, keys - t)));
      for (int64_t t = 0; t < queries; t += kLongChunk)
        parts.push_back(read_state(t, std::min(kLongChunk, queries - t)));
    }
    if (parts.empty())
      return in_.value.new_zeros(
          {fixed_size(in_.query, 0), 0, fixed_size(in_.query, 2), fixed_size(in_.value, 3)});
    Tensor out = at::cat(parts, 2).transpose(1, 2);
    if (in_.query_mask.has_value() && in_.query_mask->defined())
      out = out.masked_fill(in_.query_mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
    return out.to(in_.value.scalar_type());
  }

  State state() const { return {kv_, key_sum_, log_scale_.detach().expand_as(key_sum_).contiguous()}; }

 private:
  // A chunk of keys: features with a constant 1 behind them [B, H, C, 2m + 1], values [B, H, C, E], exponents
  // |k|^2/2 [B, H, C], with kEmptyLogScale where masked, and which are kept [B, 1, C] (undefined: all).
  struct Keys {
    Tensor phi, value, exponent, keep;
  };

  Tensor scaled(const Tensor& x, int64_t first, int64_t count) const {
    return x.narrow(1, first, count).to(type_) * scale_;
  }
  // [B, H, C, 2m] of scaled rows [B, C, H, D].
  Tensor waves(const Tensor& x) const {
    const Tensor u = project(x, projection_).transpose(1, 2);
    return at::cat({u.cos(), u.sin()}, -1);
  }

  Keys load_keys(int64_t first, int64_t count) const {
    const Tensor x = scaled(in_.key, first, count), phi = waves(x);
    Keys keys;
    keys.phi = at::cat({phi, at::ones_like(phi.narrow(-1, 0, 1))}, -1);
    keys.value = in_.value.narrow(1, first, count).to(type_).transpose(1, 2);
    keys.exponent = half_square(x).squeeze(-1).transpose(1, 2);
    if (in_.key_mask.has_value() && in_.key_mask->defined()) {
      keys.keep = in_.key_mask->narrow(1, first, count).unsqueeze(1);
      keys.exponent = keys.exponent.masked_fill(keys.keep.logical_not(), kEmptyLogScale);
    }
    return keys;
  }

  // The state brought to the largest exponent so far, and the chunk added to it. Scales are representations,
  // not values, and get no gradient.
  void absorb(const Keys& keys) {
    const Tensor raised = at::maximum(log_scale_, keys.exponent.detach().amax(-1, /*keepdim=*/true));
    Tensor weight = (keys.exponent - raised).exp();
    if (keys.keep.defined()) weight = weight.masked_fill(keys.keep.logical_not(), 0);
    const Tensor decay = (log_scale_ - raised).exp(), weighted = keys.phi * weight.unsqueeze(-1);
    kv_ = kv_ * decay.unsqueeze(-1) + at::matmul(weighted.transpose(-1, -2), keys.value);
    key_sum_ = key_sum_ * decay + weighted.sum(-2);
    log_scale_ = raised;
  }

  Tensor read_state(int64_t first, int64_t count) const {
    const Tensor phi = waves(scaled(in_.query, first, count));
    return divide(at::matmul(phi, kv_.narrow(2, 0, features_)), denominator_of(phi),
                  key_sum_.narrow(2, features_, 1));
  }

  // Every row is shifted by the largest exponent that it sees itself, so all factors are at most 1.
  Tensor read_causal(int64_t first, const Keys& keys) const {
    const int64_t count = fixed_size(keys.exponent, -1);
    const Tensor phi = waves(scaled(in_.query, first, count));
    const Tensor largest =
        at::maximum(std::get<0>(keys.exponent.detach().cummax(-1)), log_scale_);  // [B, H, C]
    const Tensor earlier = (log_scale_ - largest).exp();                          // of the state
    Tensor hidden = at::ones({count, count}, keys.phi.options().dtype(at::kBool)).triu(1);
    if (keys.keep.defined()) hidden = hidden.logical_or(keys.keep.logical_not().unsqueeze(-2));
    // Filled before exp: what is hidden may be far above the row's own scale.
    const Tensor weight =
        (keys.exponent.unsqueeze(-2) - largest.unsqueeze(-1)).masked_fill(hidden, kEmptyLogScale).exp();
    const Tensor own = at::matmul(phi, keys.phi.narrow(-1, 0, features_).transpose(-1, -2)) * weight;
    const Tensor numerator =
        at::matmul(own, keys.value) + at::matmul(phi, kv_.narrow(2, 0, features_)) * earlier.unsqueeze(-1);
    return divide(numerator, own.sum(-1) + denominator_of(phi) * earlier,
                  weight.sum(-1) + key_sum_.narrow(2, features_, 1) * earlier);
  }

  Tensor denominator_of(const Tensor& phi) const {
    return at::matmul(phi, key_sum_.narrow(2, 0, features_).unsqueeze(-1)).squeeze(-1);
  }

  // `weights` is the sum of the keys' factors, 0 for a row that sees no key.
  Tensor divide(const Tensor& numerator, const Tensor& denominator, const Tensor& weights) const {
    const Tensor floor =
        (weights * (kTrigonometricFloor * static_cast<double>(frequencies_))).expand_as(denominator);
    Tensor safe =
        at::where(denominator.abs() < floor, at::where(denominator < 0, -floor, floor), denominator);
    safe = at::where(weights > 0, safe, at::ones_like(safe));
    return numerator / safe.unsqueeze(-1);
  }

  const AttentionInputs& in_;
  const Tensor& projection_;
  double scale_;
  at::ScalarType type_;
  int64_t frequencies_ = 0, features_ = 0;
  Tensor kv_, key_sum_, log_scale_;  // [B, H, 2m + 1, E], [B, H, 2m + 1], [B, H, 1]
};

void check_trigonometric(const AttentionInputs& in, const Tensor& projection) {
  for (const auto& [tensor, name] : {std::pair{&in.query, "query"}, {&in.key, "key"}, {&in.value, "value"}}) {
    TORCH_CHECK_VALUE(tensor->dim() == 4, "trigonometric attention: ", name,
                      " must be [batch, tokens, heads, size], found ", tensor->dim(), " dimensions");
  }
  TORCH_CHECK_VALUE(
      fixed_size(in.key, 0) == fixed_size(in.query, 0) && fixed_size(in.key, 2) == fixed_size(in.query, 2) &&
          fixed_size(in.key, 3) == fixed_size(in.query, 3) &&
          fixed_size(in.value, 0) == fixed_size(in.key, 0) &&
          fixed_size(in.value, 1) == fixed_size(in.key, 1) &&
          fixed_size(in.value, 2) == fixed_size(in.key, 2),
      "trigonometric attention: query [B, T, H, D], key [B, S, H, D] and value [B, S, H, E] must "
      "agree in B, S, H and D, found ",
      in.query.sym_sizes(), ", ", in.key.sym_sizes(), " and ", in.value.sym_sizes());
  TORCH_CHECK_VALUE(!in.causal || fixed_size(in.query, 1) == fixed_size(in.key, 1),
                    "trigonometric attention: causal attention needs as many keys as queries, found ",
                    fixed_size(in.query, 1), " queries and ", fixed_size(in.key, 1),
                    " keys; continue a sequence by its state instead");
  TORCH_CHECK_VALUE(
      projection.defined() && projection.dim() == 3 &&
          (fixed_size(projection, 0) == 1 || fixed_size(projection, 0) == fixed_size(in.query, 2)) &&
          fixed_size(projection, 2) == fixed_size(in.query, 3),
      "trigonometric attention: the projection must be [1 or ", fixed_size(in.query, 2),
      " heads, frequencies, ", fixed_size(in.query, 3), "]");
  const auto fits = [](const std::optional<Tensor>& mask, const Tensor& x) {
    return !mask.has_value() || !mask->defined() ||
           (mask->scalar_type() == at::kBool && mask->dim() == 2 &&
            fixed_size(*mask, 0) == fixed_size(x, 0) && fixed_size(*mask, 1) == fixed_size(x, 1));
  };
  TORCH_CHECK_VALUE(fits(in.key_mask, in.key) && fits(in.query_mask, in.query),
                    "trigonometric attention: masks must be bool, key_mask [", fixed_size(in.key, 0), ", ",
                    fixed_size(in.key, 1), "] and query_mask [", fixed_size(in.query, 0), ", ",
                    fixed_size(in.query, 1), "]");
  check_backend_name(in.backend);
}

// Whether LibTorch operations compute it, and not the kernels of a backend.
bool is_composed(const AttentionInputs& in) {
  return backend_for(in.query.device(), in.backend).name == "composed";
}

FeatureMap kernel_map(const Tensor& projection, double scale) {
  FeatureMap map;
  map.family = "trigonometric";
  map.projection = projection;
  map.scale = scale;
  map.norm_weight = -0.5;
  return map;
}

void check_trigonometric_state(const State& state, int64_t batch, const AttentionInputs& in,
                               const Tensor& projection) {
  const int64_t heads = fixed_size(in.query, 2), features = 2 * fixed_size(projection, 1) + 1;
  const std::vector<int64_t> sums{batch, heads, features},
      kv{batch, heads, features, fixed_size(in.value, 3)};
  const auto has_shape = [](const Tensor& tensor, const std::vector<int64_t>& shape) {
    return tensor.sym_sizes() == c10::fromIntArrayRefSlow(shape);
  };
  TORCH_CHECK_VALUE(
      has_shape(state.kv, kv) && has_shape(state.key_sum, sums) && has_shape(state.log_scale, sums),
      "trigonometric attention: the state must have kv ", at::IntArrayRef(kv),
      " with key_sum and log_scale alike; found kv ", state.kv.sizes());
}

// Bounds of packed segments, as favor_attention checks them.
std::vector<int64_t> segment_bounds(const Tensor& cu, const char* name, int64_t tokens) {
  TORCH_CHECK_VALUE(cu.scalar_type() == at::kLong && cu.dim() == 1 && fixed_size(cu, 0) >= 1 && cu.is_cpu(),
                    "trigonometric attention: ", name,
                    " must be an int64 vector of at least one bound on the CPU");
  const Tensor row = cu.contiguous();
  std::vector<int64_t> bounds(row.const_data_ptr<int64_t>(),
                              row.const_data_ptr<int64_t>() + fixed_size(row, 0));
  TORCH_CHECK_VALUE(
      bounds.front() == 0 && bounds.back() == tokens && std::is_sorted(bounds.begin(), bounds.end()),
      "trigonometric attention: ", name, " must rise from 0 to the ", tokens, " packed tokens");
  return bounds;
}

struct Segments {
  std::vector<int64_t> queries, keys;  // bounds
  int64_t count() const { return static_cast<int64_t>(queries.size()) - 1; }
};

Segments checked_segments(const AttentionInputs& in) {
  TORCH_CHECK_VALUE(fixed_size(in.query, 0) == 1,
                    "trigonometric attention: packed sequences need batch size 1, found ",
                    fixed_size(in.query, 0));
  auto queries = segment_bounds(*in.cu_query, "cu_query", fixed_size(in.query, 1));
  const bool own_keys = in.cu_key.has_value() && in.cu_key->defined();
  auto keys = own_keys ? segment_bounds(*in.cu_key, "cu_key", fixed_size(in.key, 1)) : queries;
  TORCH_CHECK_VALUE(
      queries.size() == keys.size() && keys.back() == fixed_size(in.key, 1) &&
          (!in.causal || queries == keys),
      "trigonometric attention: cu_query and cu_key must have the same number of segments, and be "
      "equal when causal");
  return {std::move(queries), std::move(keys)};
}

std::tuple<Tensor, State> packed_attention(const AttentionInputs& in, const Segments& bounds,
                                           const Tensor& projection, double scale) {
  const auto& [queries, keys] = bounds;
  const int64_t segments = bounds.count();
  const bool stateful = in.initial.has_value() && in.initial->defined();
  std::vector<Tensor> outs, kvs, sums, scales;
  for (int64_t n = 0; n < segments; ++n) {
    const auto cut = [&](const Tensor& t, const std::vector<int64_t>& cu) {
      return t.slice(1, cu[n], cu[n + 1]);
    };
    AttentionInputs one{cut(in.query, queries), cut(in.key, keys), cut(in.value, keys)};
    one.causal = in.causal;
    one.chunk = in.chunk;
    if (in.key_mask.has_value() && in.key_mask->defined()) one.key_mask = cut(*in.key_mask, keys);
    if (in.query_mask.has_value() && in.query_mask->defined()) one.query_mask = cut(*in.query_mask, queries);
    const auto row = [&](const Tensor& t) { return t.narrow(0, n, 1); };
    if (stateful)
      one.initial = State{row(in.initial->kv), row(in.initial->key_sum), row(in.initial->log_scale)};
    Trigonometric attention(one, projection, scale);
    outs.push_back(attention.run());
    if (!in.return_state) continue;
    const State final = attention.state();
    kvs.push_back(final.kv);
    sums.push_back(final.key_sum);
    scales.push_back(final.log_scale);
  }
  Tensor out = outs.empty() ? in.value.new_zeros({1, 0, fixed_size(in.query, 2), fixed_size(in.value, 3)})
                            : at::cat(outs, 1);
  if (!in.return_state || kvs.empty()) return {out, State{}};
  return {out, State{at::cat(kvs), at::cat(sums), at::cat(scales)}};
}

void prepare_trigonometric(PreparedMap& result, const MapProblem& problem) {
  prepare_projected(result, problem, problem.head_size);
  result.trigonometric = true;
}

constexpr MapRow kTrigonometricMaps[] = {
    {.name = "trigonometric",
     .traits = {.exponential = true, .projected = true, .signed_features = true},
     .features_per_row = 2,
     .fused = false,
     .prepare = prepare_trigonometric},
};

}  // namespace

std::span<const MapRow> trigonometric_maps() {
  return kTrigonometricMaps;
}

std::tuple<Tensor, State> trigonometric_attention(const AttentionInputs& in, const Tensor& projection,
                                                  double scale) {
  check_trigonometric(in, projection);
  std::optional<Segments> segments;
  if (in.cu_query.has_value() && in.cu_query->defined()) segments = checked_segments(in);
  if (in.initial.has_value() && in.initial->defined()) {
    check_trigonometric_state(*in.initial, segments ? segments->count() : fixed_size(in.query, 0), in,
                              projection);
  }
  if (!is_composed(in)) return favor_attention(in, kernel_map(projection, scale));
  if (segments) return packed_attention(in, *segments, projection, scale);
  Trigonometric attention(in, projection, scale);
  Tensor out = attention.run();
  return {out, in.return_state ? attention.state() : State{}};
}

Tensor trigonometric_step(const Tensor& query, const Tensor& key, const Tensor& value, State& state,
                          const Tensor& projection, double scale, const std::string& backend,
                          const std::optional<Tensor>& factors) {
  const at::NoGradGuard no_grad;
  AttentionInputs one{query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)};
  one.causal = one.return_state = true;
  one.backend = backend;
  if (state.defined()) one.initial = state;
  if (!is_composed(one)) {
    check_trigonometric(one, projection);
    if (!state.defined()) {
      state = empty_state(fixed_size(query, 0), fixed_size(query, 1), 2 * fixed_size(projection, -2) + 1,
                          fixed_size(value, 2), "trigonometric", query.options().dtype(precise_type(query)));
    }
    FeatureMap map = kernel_map(projection, scale);
    map.factors = factors;
    return favor_step(query, key, value, state, map, backend);
  }
  auto [out, after] = trigonometric_attention(one, projection, scale);
  if (state.defined()) {
    state.kv.copy_(after.kv);
    state.key_sum.copy_(after.key_sum);
    state.log_scale.copy_(after.log_scale);
  } else {
    state = after;
  }
  return out.squeeze(1);
}

}  // namespace performer::ops
