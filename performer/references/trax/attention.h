// SPDX-License-Identifier: Apache-2.0
// Trax's FavorAttention and CausalFavorAttention (trax/layers/research/sparsity.py) as they compute: ReLU
// features by default, a key mask on the features, no guard of the denominator.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "performer/references/jax/attention.h"

namespace performer::references::trax {

struct FavorOptions {
  bool approximate_softmax =
      false;                 // use_approximate_softmax; otherwise relu(x) + stabilizer without a projection
  double stabilizer = 1e-3;  // numerical_stabilizer, of the ReLU features
  bool normalize_data = false;  // x D^(-1/4) of softmax features; false estimates exp(q k) without 1/sqrt(D)
  double epsilon = 1e-4;        // of the softmax features, inside 1/sqrt(M)
};

// Bidirectional: query [B, T, H, D], key [B, S, H, D], value [B, S, H, E], projection [M, D] (softmax only),
// key_mask [B, S], bool or numbers that weight the features of each key -> [B, T, H, E]. A row whose keys are
// all masked is NaN.
at::Tensor favor_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const FavorOptions& options = {}, const std::optional<at::Tensor>& projection = {},
                           const std::optional<at::Tensor>& key_mask = {});

// Causal: ReLU features only, and no mask.
at::Tensor causal_favor_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                  double stabilizer = 1e-3);

// scale_by_norm: lengths of Gaussian rows, else all sqrt(D). The class FavorAttention has it on by default,
// the function Favor off. Uncorrected QR; [rows, columns] float32 of the counter-based generator.
at::Tensor draw_projection(int64_t rows, int64_t columns, bool scale_by_norm, const jax::DrawName& name);

}  // namespace performer::references::trax
