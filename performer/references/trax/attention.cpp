// SPDX-License-Identifier: Apache-2.0
#include "performer/references/trax/attention.h"

#include <ATen/ATen.h>

#include "performer/base/error.h"
#include "performer/ops/composed.h"

namespace performer::references::trax {

using at::Tensor;

Tensor favor_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                       const FavorOptions& options, const std::optional<Tensor>& projection,
                       const std::optional<Tensor>& key_mask) {
  check<UsageError>(
      query.dim() == 4 && key.dim() == 4 && value.dim() == 4,
      "attention needs query [B, T, H, D], key [B, S, H, D] and value [B, S, H, E], found {}, {} and {} "
      "dimensions",
      query.dim(), key.dim(), value.dim());
  const auto features = [&](const Tensor& x, bool is_query) -> Tensor {
    if (!options.approximate_softmax) return at::relu(x) + options.stabilizer;
    return jax::positive_features(
               x.transpose(1, 2), projection.value_or(Tensor()),
               {.is_query = is_query, .normalize_data = options.normalize_data, .epsilon = options.epsilon})
        .transpose(1, 2);
  };
  Tensor phi_k = features(key, false);
  if (key_mask.has_value() && key_mask->defined()) {
    check<UsageError>(
        key_mask->dim() == 2 && key_mask->size(0) == key.size(0) && key_mask->size(1) == key.size(1),
        "the key mask must be [{}, {}], found {} dimensions", key.size(0), key.size(1), key_mask->dim());
    phi_k = phi_k * key_mask->to(phi_k.scalar_type()).unsqueeze(-1).unsqueeze(-1);
  }
  const auto sums = ops::attention_sums(features(query, true), phi_k, value, /*causal=*/false);
  return sums.numerator / sums.denominator;
}

Tensor causal_favor_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                              double stabilizer) {
  const auto sums =
      ops::attention_sums(at::relu(query) + stabilizer, at::relu(key) + stabilizer, value, /*causal=*/true);
  return sums.numerator / sums.denominator;
}

Tensor draw_projection(int64_t rows, int64_t columns, bool scale_by_norm, const jax::DrawName& name) {
  return jax::draw_projection({rows, columns, true, scale_by_norm ? 0 : 1}, name);
}

}  // namespace performer::references::trax
