// SPDX-License-Identifier: Apache-2.0
// Attention with a prepared map: learned matrices, factors and biases are applied to queries and keys, and
// the operators of ops/favor.h do the rest. The operators that take a map by its name are in
// mapped_operators.cpp.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <vector>

#include "performer/ops/composed.h"
#include "performer/ops/favor/call.h"
#include "performer/ops/feature_maps.h"
#include "performer/ops/maps/mapped.h"
#include "performer/ops/maps/row.h"
#include "performer/ops/trigonometric.h"

namespace performer::ops {
namespace {

using at::Tensor;

bool given(const std::optional<Tensor>& tensor) {
  return tensor.has_value() && tensor->defined();
}

// x [B, T, H, D] times a matrix [H, R, D] or one a sequence [N, H, R, D].
Tensor turn(const Tensor& x, const Tensor& matrix, const std::optional<Tensor>& cu) {
  if (matrix.dim() == 3) return at::einsum("bthd,hrd->bthr", {x, matrix});
  if (!given(cu)) return at::einsum("bthd,bhrd->bthr", {x, matrix});
  const int64_t* bounds = cu->const_data_ptr<int64_t>();
  std::vector<Tensor> parts;
  for (int64_t n = 0; n + 1 < fixed_size(*cu, 0); ++n) {
    parts.push_back(at::einsum("bthd,hrd->bthr", {x.slice(1, bounds[n], bounds[n + 1]), matrix[n]}));
  }
  return parts.empty() ? x : at::cat(parts, 1);
}

// x [B, T, H, D] times a factor [H, D] or one a sequence [N, H, D].
Tensor stretch(const Tensor& x, const Tensor& factor, const std::optional<Tensor>& cu) {
  if (factor.dim() == 2) return x * factor;
  if (!given(cu)) return x * factor.unsqueeze(1);
  return x * factor.repeat_interleave(cu->diff().to(factor.device()), 0).unsqueeze(0);
}

// A constant has the dimensions of all sequences' sharing it, or the sequences of x in front.
void check_sequences(const Tensor& constant, int64_t shared_dims, const Tensor& x,
                     const std::optional<Tensor>& cu) {
  if (!constant.defined() || constant.dim() == shared_dims) return;
  const int64_t sequences = given(cu) ? fixed_size(*cu, 0) - 1 : fixed_size(x, 0);
  TORCH_CHECK_VALUE(fixed_size(constant, 0) == sequences, "second moments of ", fixed_size(constant, 0),
                    " sequences were given for ", sequences, " sequences");
}

Tensor transform(const Tensor& x, const Tensor& matrix, const Tensor& bias, const Tensor& factor,
                 const std::optional<Tensor>& cu) {
  if (!matrix.defined() && !factor.defined()) return x;
  check_sequences(matrix, 3, x, cu);
  check_sequences(factor, 2, x, cu);
  const at::ScalarType type = precise_type(x);
  Tensor y = x.to(type);
  if (matrix.defined()) y = turn(y, matrix.to(type), cu);
  if (factor.defined()) y = stretch(y, factor.to(type), cu);
  return bias.defined() ? y + bias.to(type) : y;
}

Tensor transform_query(const Tensor& x, const PreparedMap& prepared, const std::optional<Tensor>& cu) {
  return transform(x, prepared.query_matrix, prepared.bias, prepared.query_factor, cu);
}
Tensor transform_key(const Tensor& x, const PreparedMap& prepared, const std::optional<Tensor>& cu) {
  return transform(x, prepared.key_matrix, prepared.bias, prepared.key_factor, cu);
}

MappedInputs apply_prepared(const AttentionInputs& inputs, const PreparedMap& prepared) {
  const auto& cu_key = given(inputs.cu_key) ? inputs.cu_key : inputs.cu_query;
  return {transform_query(inputs.query, prepared, inputs.cu_query),
          transform_key(inputs.key, prepared, cu_key), prepared.map};
}

}  // namespace

void check_four_dimensions_of(const Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.dim() == 4, "attention: ", name, " must be [batch, tokens, heads, size], found ",
                    tensor.dim(), " dimensions");
}

void check_token(const Tensor& query, const Tensor& key, const Tensor& value) {
  TORCH_CHECK_VALUE(query.dim() == 3 && key.dim() == 3 && value.dim() == 3,
                    "a step needs query, key and value as [batch, heads, size], found ", query.dim(), ", ",
                    key.dim(), " and ", value.dim(), " dimensions");
}

State new_state(const PreparedMap& prepared, const Tensor& query, const Tensor& value) {
  const auto& projection = prepared.map.projection;
  int64_t features = projection ? projection->size(-2) : query.size(2);
  if (!projection && prepared.query_matrix.defined()) features = prepared.query_matrix.size(-2);
  if (prepared.trigonometric) features = 2 * features + 1;
  return empty_state(query.size(0), query.size(1), features, value.size(2), prepared.map.family,
                     query.options().dtype(precise_type(query)));
}

MappedInputs apply_feature_map(const AttentionInputs& inputs, const FeatureMapOptions& options,
                               const MapWeights& weights, const MapStatistics& statistics) {
  check_four_dimensions_of(inputs.query, "query");
  check_four_dimensions_of(inputs.key, "key");
  TORCH_CHECK_VALUE(map_row(options.map).fused, options.map,
                    " features have no form in the fused kernels; call mapped_attention");
  return apply_prepared(
      inputs, prepare_feature_map(options, weights, statistics, inputs.query.size(2), inputs.query.size(3)));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mapped_results(const AttentionInputs& inputs,
                                                          const PreparedMap& prepared) {
  if (prepared.trigonometric) {
    auto [out, state] = trigonometric_attention(inputs, *prepared.map.projection, prepared.map.scale);
    if (state.defined()) return {out, state.kv, state.key_sum, state.log_scale};
    const auto none = [&] {
      return at::empty({0}, inputs.query.options().dtype(precise_type(inputs.query)));
    };
    return {out, none(), none(), none()};
  }
  const MappedInputs mapped = apply_prepared(inputs, prepared);
  AttentionInputs call = inputs;
  call.query = mapped.query;
  call.key = mapped.key;
  auto [out, normalizer, kv, key_sum, log_scale] = favor_results(call, mapped.map);
  return {out, kv, key_sum, log_scale};
}

std::tuple<Tensor, State> mapped_attention(const AttentionInputs& inputs, const PreparedMap& prepared) {
  auto [out, kv, key_sum, log_scale] = mapped_results(inputs, prepared);
  return {out, inputs.return_state ? State{kv, key_sum, log_scale} : State{}};
}

Tensor mapped_step(const Tensor& query, const Tensor& key, const Tensor& value, State& state,
                   const PreparedMap& prepared, const std::string& backend) {
  check_token(query, key, value);
  if (!state.defined()) state = new_state(prepared, query, value);
  if (prepared.trigonometric)
    return trigonometric_step(query, key, value, state, *prepared.map.projection, prepared.map.scale, backend,
                              prepared.map.factors);
  const at::NoGradGuard no_grad;
  const AttentionInputs token{query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)};
  const MappedInputs mapped = apply_prepared(token, prepared);
  return favor_step(mapped.query.squeeze(1), mapped.key.squeeze(1), value, state, mapped.map, backend);
}

State key_state(const KeyInputs& inputs, const PreparedMap& prepared) {
  check_four_dimensions_of(inputs.key, "key");
  check_four_dimensions_of(inputs.value, "value");
  if (prepared.trigonometric) {
    AttentionInputs call{inputs.key.narrow(1, 0, 0), inputs.key, inputs.value};
    call.key_mask = inputs.key_mask;
    if (given(inputs.cu_key)) call.cu_query = at::zeros_like(*inputs.cu_key), call.cu_key = inputs.cu_key;
    call.initial = inputs.initial;
    call.return_state = true;
    call.backend = inputs.backend;
    return std::get<1>(trigonometric_attention(call, *prepared.map.projection, prepared.map.scale));
  }
  KeyInputs mapped = inputs;
  mapped.key = transform_key(inputs.key, prepared, inputs.cu_key);
  return key_state(mapped, prepared.map);
}

LogFeatures log_features(const Tensor& x, bool query, const FeatureMapOptions& options,
                         const MapWeights& weights, const MapStatistics& statistics) {
  check_four_dimensions_of(x, "x");
  const PreparedMap prepared = prepare_feature_map(options, weights, statistics, x.size(2), x.size(3));
  const at::ScalarType type = precise_type(x);
  const Tensor exact = x.to(type);
  const Tensor scaled = (query ? transform_query(exact, prepared, {}) : transform_key(exact, prepared, {})) *
                        prepared.map.scale;
  Tensor u = project(scaled, prepared.map.projection);
  if (prepared.map.offset.has_value()) {
    const Tensor offset = prepared.map.offset->to(type);
    u = u + (offset.dim() == 3 ? offset.unsqueeze(1) : offset);
  }
  Tensor common = at::full({1}, prepared.log_number, x.options().dtype(at::kDouble));
  if (prepared.log_constant.defined()) common = common + prepared.log_constant.to(x.device());
  common = common.to(type).unsqueeze(-1);  // [..., H or 1, 1]
  if (common.dim() == 3) common = common.unsqueeze(1);
  if (prepared.trigonometric) {
    const Tensor waves = at::cat({u.cos(), u.sin()}, -1);
    return {waves.abs().log() + half_square(scaled) + common, waves.sign()};
  }
  if (family_of(prepared.map.family) == kernels::Family::exponential) {
    const Tensor norm = half_square(scaled) * (2 * prepared.map.norm_weight);
    return {u - norm + common, at::ones_like(u)};
  }
  const Tensor features = activation(prepared.map.family, u) + prepared.map.epsilon;
  return {features.abs().log() + common, features.sign()};
}

}  // namespace performer::ops
