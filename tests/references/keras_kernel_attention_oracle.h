// SPDX-License-Identifier: Apache-2.0
// Our own KernelAttention written out densely: every weight of every key, in double, unshifted.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "performer/references/keras/kernel_attention.h"

namespace performer::nn::kernel_attention_test {

inline at::Tensor parameter(KernelAttention& layer, const std::string& name) {
  for (const auto& item : layer->named_parameters()) {
    if (item.key() == name) return item.value().detach().to(at::kDouble);
  }
  for (const auto& item : layer->named_buffers()) {
    if (item.key() == name) return item.value().detach().to(at::kDouble);
  }
  return at::zeros({1}, at::kDouble);  // a bias that is not there
}

inline at::Tensor dense_in(KernelAttention& layer, const std::string& name, const at::Tensor& x) {
  return at::einsum("btw,whd->bthd", {x.to(at::kDouble), parameter(layer, name + ".kernel")}) +
         parameter(layer, name + ".bias");
}

inline at::Tensor dense_out(KernelAttention& layer, const std::string& name, const at::Tensor& x) {
  return at::einsum("bthe,heo->bto", {x, parameter(layer, name + ".kernel").flatten(2)}) +
         parameter(layer, name + ".bias").flatten();
}

struct Dense {
  at::Tensor query, key, value, weight;  // weight [B, S] of keys
  at::Tensor band;                       // [T, S]: decay, or 0 where a query does not see a key
  at::Tensor factor;                     // [B, T, 1, 1] of scale_by_length
};

inline at::Tensor band_of(const KernelAttentionOptions& o, int64_t queries, int64_t keys) {
  if (!o.use_causal_windowed) return at::ones({queries, keys}, at::kDouble);
  const int64_t chunk = o.causal_chunk_length;
  const int64_t front = o.causal_padding == "left" ? (chunk - queries % chunk) % chunk : 0;
  at::Tensor band = at::zeros({queries, keys}, at::kDouble);
  for (int64_t i = 0; i < queries; ++i) {
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t age = (i + front) / chunk - (j + front) / chunk;
      if (age < 0 || (o.causal_window_length > 0 && age >= o.causal_window_length)) continue;
      band[i][j] = std::pow(o.causal_window_decay.value_or(1), static_cast<double>(age));
    }
  }
  return band;
}

// Mean of |x + y|^2 as independent draws of queries x and keys y of [B, tokens, H, D] have it: [B, H].
inline at::Tensor dense_moment(const at::Tensor& x, const at::Tensor& y, const at::Tensor& of_x,
                               const at::Tensor& of_y) {
  const at::Tensor pairs = (x.unsqueeze(2) + y.unsqueeze(1)).square().sum(-1);  // [B, T, S, H]
  const at::Tensor weight = (of_x.unsqueeze(2) * of_y.unsqueeze(1)).unsqueeze(-1);
  return (pairs * weight).sum({1, 2}) / weight.sum({1, 2});
}

// Features [B, T, H, M] and, for exponential maps, their logarithms.
inline at::Tensor dense_features(KernelAttention& layer, const at::Tensor& x, const at::Tensor& moment,
                                 bool logarithms) {
  const auto& o = layer->options();
  const bool projected = o.num_random_features > 0;
  const at::Tensor w = parameter(layer, "projection");
  const at::Tensor u = projected ? at::einsum("bthd,hmd->bthm", {x, w}) : x;
  const at::Tensor half = x.square().sum(-1, true) / 2;
  if (o.feature_transform == "elu") return at::where(u > 0, u + 1, u.exp());
  if (o.feature_transform == "relu") return u.clamp_min(0) + 1e-3;
  if (o.feature_transform == "square") return u * u;
  if (o.feature_transform == "identity") return u;
  at::Tensor logs;
  if (o.feature_transform == "exp") logs = u - half;
  if (o.feature_transform == "expmod") logs = u;
  if (o.feature_transform == "expplus") {
    const auto d = static_cast<double>(o.key_dim);
    const at::Tensor s = moment / d;
    const at::Tensor a =
        ((1 - 2 * s - ((2 * s + 1).square() + 8 * s).sqrt()) / 16).unsqueeze(-1);  // [B, H, 1]
    logs = (1 - 4 * a).sqrt().unsqueeze(1) * u + (a * w.square().sum(-1)).unsqueeze(1) - half;
  }
  return logarithms ? logs : logs.exp();
}

inline at::Tensor dense_moment_of(KernelAttention& layer, const Dense& in, const at::Tensor& query_weight,
                                  const at::Tensor& q, const at::Tensor& k) {
  if (layer->options().feature_transform != "expplus") return {};
  const at::Tensor frozen = parameter(layer, "statistics");
  if (frozen.ge(0).all().item<bool>()) return frozen.unsqueeze(0).expand({q.size(0), -1});
  return dense_moment(q, k, query_weight, in.weight);
}

inline at::Tensor normalised(const at::Tensor& weights, const at::Tensor& value) {  // weights [B, H, T, S]
  const at::Tensor total = weights.sum(-1, true);
  const at::Tensor shares = at::where(total.eq(0), at::zeros_like(weights), weights / total);
  return at::einsum("bhts,bshe->bthe", {shares, value});
}

inline at::Tensor dense_long(KernelAttention& layer, const Dense& in, const at::Tensor& query_weight) {
  const auto& o = layer->options();
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(o.key_dim)));
  at::Tensor q = in.query * std::sqrt(scale), k = in.key * std::sqrt(scale);
  if (o.use_causal_windowed) {
    q = q * in.factor;
  } else {
    q = q * in.factor.sqrt();
    k = k * in.factor.narrow(1, 0, 1).sqrt();
  }
  const at::Tensor moment = dense_moment_of(layer, in, query_weight, q, k);
  const at::Tensor kernel = at::einsum(
      "bthm,bshm->bhts", {dense_features(layer, q, moment, false), dense_features(layer, k, moment, false)});
  return normalised(kernel * in.band * in.weight.unsqueeze(1).unsqueeze(1), in.value);
}

inline at::Tensor dense_short(KernelAttention& layer, const Dense& in, const at::Tensor& query_weight) {
  const auto& o = layer->options();
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(o.key_dim)));
  const at::Tensor q = in.query * scale * in.factor, k = in.key;
  const at::Tensor moment = dense_moment_of(layer, in, query_weight, q, k);
  const bool exponential = o.feature_transform.starts_with("exp");
  at::Tensor phi_q = dense_features(layer, q, moment, exponential),
             phi_k = dense_features(layer, k, moment, exponential);
  if (exponential) {
    const at::Tensor seen = phi_k.masked_fill(in.weight.eq(0).unsqueeze(-1).unsqueeze(-1),
                                              -std::numeric_limits<double>::infinity());
    phi_k = (phi_k - at::amax(seen, {1, 3}, true)).exp();
    phi_q = (phi_q - at::amax(phi_q, {-1}, true)).exp();
  }
  at::Tensor scores = at::einsum("bthm,bshm->bhts", {phi_q, phi_k});
  if (o.num_random_features > 0) scores = scores / static_cast<double>(o.num_random_features);
  return normalised(scores.exp() * in.weight.unsqueeze(1).unsqueeze(1), in.value);
}

// The module's output [B, T, out] by the definition, in double.
inline at::Tensor dense_attention(KernelAttention& layer, const KernelAttentionInputs& inputs) {
  const at::NoGradGuard no_grad;
  const auto& o = layer->options();
  Dense in;
  in.query = dense_in(layer, "query", inputs.query);
  in.key = dense_in(layer, "key", inputs.key.value_or(inputs.value));
  in.value = dense_in(layer, "value", inputs.value);
  const int64_t tokens = in.query.size(1), keys = in.key.size(1), batch = in.query.size(0);
  in.weight =
      inputs.attention_mask ? inputs.attention_mask->to(at::kDouble) : at::ones({batch, keys}, at::kDouble);
  in.band = band_of(o, tokens, keys);
  const at::Tensor seen = at::einsum("ts,bs->bt", {in.band.gt(0).to(at::kDouble), in.weight});
  in.factor = o.scale_by_length ? seen.clamp_min(1).log() / std::log(512.0) : at::ones_like(seen);
  in.factor = in.factor.unsqueeze(-1).unsqueeze(-1);
  const at::Tensor query_weight =
      inputs.query_mask ? inputs.query_mask->to(at::kDouble) : at::ones({batch, tokens}, at::kDouble);

  const int64_t first = std::min(o.begin_kernel, tokens);
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(o.key_dim)));
  at::Tensor softmax = at::einsum("bthd,bshd->bhts", {in.query * scale * in.factor, in.key}).exp();
  softmax = normalised(softmax * in.band * in.weight.unsqueeze(1).unsqueeze(1), in.value);
  Dense rest = in;  // the first rows belong to the softmax part, statistics included
  rest.query = in.query.slice(1, first);
  rest.band = in.band.slice(0, first);
  rest.factor = in.factor.slice(1, first);
  const at::Tensor rest_weight = query_weight.slice(1, first);
  at::Tensor kernel = at::empty({batch, 0, o.num_heads, in.value.size(-1)}, at::kDouble);
  if (first < tokens) {
    kernel = o.is_short_seq ? dense_short(layer, rest, rest_weight) : dense_long(layer, rest, rest_weight);
  }
  const auto rows = [&](const at::Tensor& x, int64_t begin) {
    return x * query_weight.narrow(1, begin, x.size(1)).unsqueeze(-1).unsqueeze(-1);
  };
  if (first == 0) return dense_out(layer, "attention_output", rows(kernel, 0));
  return at::cat({dense_out(layer, "attention_output_softmax", rows(softmax.slice(1, 0, first), 0)),
                  dense_out(layer, "attention_output", rows(kernel, first))},
                 1);
}

}  // namespace performer::nn::kernel_attention_test
