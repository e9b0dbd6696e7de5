// SPDX-License-Identifier: Apache-2.0
#include "performer/references/keras/attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "performer/base/error.h"
#include "performer/references/keras/features.h"

namespace performer::references::keras {
namespace {

using at::Tensor;

constexpr double kDenominatorGuard = 1e-6;

// Everything is computed in double and rounded to the type of the inputs. Gradients through the maximum of
// exp and expmod cancel almost completely, and what float32 leaves of them depends on the order of sums,
// which is no part of the reference's behaviour.
Tensor in_double(const Tensor& x) {
  return x.to(at::kDouble);
}

// Zeros before the first entry of dimension 1: x moved `by` positions on, at the same length.
Tensor moved(const Tensor& x, int64_t by) {
  if (by == 0) return x;
  if (by >= x.size(1)) return at::zeros_like(x);
  return at::cat({at::zeros_like(x.narrow(1, 0, by)), x.narrow(1, 0, x.size(1) - by)}, 1);
}

void check_window(int64_t window) {
  check<UsageError>(window >= 1, "causal_window_length must be at least 1 chunk, found {}", window);
}

// Zero rows before or after the tokens of x [B, T, H, size].
Tensor padded(const Tensor& x, const Window& window) {
  if (window.padding == "none") return x;
  const int64_t missing = (window.chunk_length - x.size(1) % window.chunk_length) % window.chunk_length;
  check<UsageError>(window.padding == "left" || window.padding == "right",
                    "causal_padding '{}' is unknown; known: none, left, right", window.padding);
  std::vector<int64_t> amounts = {0, 0, 0, 0, 0, 0};
  amounts[window.padding == "left" ? 4 : 5] = missing;
  return at::constant_pad_nd(x, amounts);
}

Tensor chunked(const Tensor& x, const Window& window) {
  const Tensor full = padded(x, window);
  check<UsageError>(full.size(1) % window.chunk_length == 0,
                    "{} tokens cannot be cut into chunks of {}: use causal_padding left or right",
                    full.size(1), window.chunk_length);
  return full.unflatten(1, {full.size(1) / window.chunk_length, window.chunk_length});
}

Tensor divided(const Tensor& numerator, const Tensor& denominator) {
  return numerator / (denominator + kDenominatorGuard).unsqueeze(-1);
}

// In double but for the cache, which has the given type.
Tensor streamed(const Tensor& query, const Tensor& key, const Tensor& value, const Window& window,
                at::ScalarType type, Cache& cache) {
  check<UsageError>(window.decay && *window.decay >= 0 && *window.decay <= 1,
                    "a cache needs causal_window_decay from 0 to 1, found {}",
                    window.decay ? fmt::format("{}", *window.decay) : "none");
  Tensor kv = at::einsum("bthd,btho->bhod", {key, value}), k_sum = key.sum(1);
  if (cache.kv.defined()) kv = kv + *window.decay * in_double(cache.kv);
  if (cache.k_sum.defined()) k_sum = k_sum + *window.decay * in_double(cache.k_sum);
  cache.kv = kv.to(type);
  cache.k_sum = k_sum.to(type);
  return divided(at::einsum("bthd,bhod->btho", {query, kv}), at::einsum("bthd,bhd->bth", {query, k_sum}));
}

Tensor decaying_weights(const Window& window, const Tensor& like) {
  std::vector<double> weights;
  for (int64_t age = window.window_length - 1; age >= 0; --age) {
    weights.push_back(std::pow(*window.decay, static_cast<double>(age)));  // 0^0 = 1
  }
  return at::tensor(weights, like.options());
}

Tensor short_attention(const Tensor& query, const Tensor& key, const Tensor& value) {
  const Tensor scores = at::einsum("btnh,bsnh->btsn", {query, key}).softmax(2);
  return at::einsum("btsn,bsnh->btnh", {scores, value});
}

Tensor long_attention(const Tensor& query, const Tensor& key, const Tensor& value) {
  const Tensor kv = at::einsum("bsnh,bsnd->bndh", {key, value});
  return divided(at::einsum("btnh,bndh->btnd", {query, kv}),
                 at::einsum("btnh,bnh->btn", {query, key.sum(1)}));
}

void check_mask(const Tensor& mask, const Tensor& query, const Tensor& key) {
  check<UsageError>(mask.dim() == 2 && mask.size(0) == key.size(0) && mask.size(1) == key.size(1),
                    "attention_mask must be [{}, {}] (batch, keys), found {} dimensions and {} elements",
                    key.size(0), key.size(1), mask.dim(), mask.numel());
  check<UsageError>(mask.scalar_type() == query.scalar_type(),
                    "attention_mask must have the type of the queries, {}, as in the reference, which "
                    "refuses bool and integers; found {}",
                    c10::toString(query.scalar_type()), c10::toString(mask.scalar_type()));
}

}  // namespace

Tensor rectangular_window_sum(const Tensor& x, int64_t window) {
  check_window(window);
  const Tensor sums = x.cumsum(1);
  return sums - moved(sums, window);
}

Tensor weighted_window_sum(const Tensor& x, int64_t window, const Tensor& weights) {
  check_window(window);
  check<UsageError>(weights.dim() == 1 && weights.size(0) == window,
                    "a window of {} chunks needs as many weights, found {}", window, weights.numel());
  Tensor sum;
  for (int64_t i = 0; i < window; ++i) {
    if (window - 1 - i >= x.size(1) && i + 1 < window) continue;  // before the beginning for every position
    const Tensor term = weights[i] * moved(x, window - 1 - i);
    sum = sum.defined() ? sum + term : term;
  }
  return sum;
}

Tensor causal_windowed_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                 const Window& window, Cache* cache) {
  const at::ScalarType type = value.scalar_type();
  const Tensor in = in_double(query), k_in = in_double(key), v_in = in_double(value);
  if (cache != nullptr) return streamed(in, k_in, v_in, window, type, *cache).to(type);
  check<UsageError>(window.chunk_length >= 1, "causal_chunk_length must be at least 1 token, found {}",
                    window.chunk_length);
  const Tensor q = chunked(in, window), k = chunked(k_in, window), v = chunked(v_in, window);
  check<UsageError>(q.size(1) == k.size(1),
                    "windowed attention needs as many chunks of queries as of keys, found {} and {}",
                    q.size(1), k.size(1));
  Tensor kv = at::einsum("btchd,btcho->bthdo", {k, v});
  Tensor k_sum = k.sum(2, /*keepdim=*/true);
  if (window.decay) {
    check_window(window.window_length);
    const Tensor weights = decaying_weights(window, v);
    kv = weighted_window_sum(kv, window.window_length, weights);
    k_sum = weighted_window_sum(k_sum, window.window_length, weights);
  } else {
    kv = rectangular_window_sum(kv, window.window_length);
    k_sum = rectangular_window_sum(k_sum, window.window_length);
  }
  const Tensor out = divided(at::einsum("btchd,bthdo->btcho", {q, kv}),
                             at::einsum("btchd,bthd->btch", {q, k_sum.squeeze(2)}));
  return out.flatten(1, 2).narrow(1, 0, value.size(1)).to(type);
}

Tensor compute_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                         const AttentionOptions& options, const std::optional<Tensor>& projection,
                         const std::optional<Tensor>& mask, Cache* cache) {
  check<UsageError>(!options.window || !options.is_short_seq,
                    "use_causal_windowed and is_short_seq exclude each other");
  check<UsageError>(mask || !options.scale_by_length, "scale_by_length needs an attention_mask");
  if (mask) check_mask(*mask, query, key);
  const at::ScalarType type = value.scalar_type();
  Tensor q = in_double(query), k = in_double(key);
  const Tensor v = in_double(value);
  if (options.scale_by_length) {
    const Tensor scale =
        (in_double(*mask).sum(-1).log() * options.scale / std::log(512.0)).view({-1, 1, 1, 1});
    q = q * (options.is_short_seq ? scale : scale.sqrt());
    if (!options.is_short_seq) k = k * scale.sqrt();
  } else {
    q = q * (options.is_short_seq ? options.scale : std::sqrt(options.scale));
    if (!options.is_short_seq) k = k * std::sqrt(options.scale);
  }
  Tensor phi_k = transform(options.feature_transform, k, q, /*is_query=*/false, projection);
  const Tensor phi_q = transform(options.feature_transform, q, k, /*is_query=*/true, projection);
  if (mask) phi_k = phi_k * in_double(*mask).unsqueeze(-1).unsqueeze(-1);
  if (options.is_short_seq) return short_attention(phi_q, phi_k, v).to(type);
  if (!options.window) return long_attention(phi_q, phi_k, v).to(type);
  if (cache != nullptr) return streamed(phi_q, phi_k, v, *options.window, type, *cache).to(type);
  return causal_windowed_attention(phi_q, phi_k, v, *options.window).to(type);
}

}  // namespace performer::references::keras
