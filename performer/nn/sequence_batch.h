// SPDX-License-Identifier: Apache-2.0
// What a model reads: padded rows, or packed segments without any padding.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>

#include "performer/ops/dropout.h"

namespace performer::nn {
struct Slices;
}

namespace performer {

// Padded: tokens [B, T], key_mask [B, T] false at padding, no cu_seqlens. Packed: tokens [1, total],
// cu_seqlens [N + 1] int64 on CPU with the bounds of N segments that never see each other, no key_mask.
struct SequenceBatch {
  at::Tensor
      tokens;  // int64; or soft tokens: floating-point distributions with a last dimension of the vocabulary
  at::Tensor positions;                // int64, of the tokens' shape: place within the sequence, from 0
  std::optional<at::Tensor> key_mask;  // bool
  std::optional<at::Tensor> cu_seqlens;
  // Of the positions (nn::rotary_table), for all layers at once; undefined: each layer computes its own.
  at::Tensor rotary = {};
  // Where these tokens stand in the batch that they are a part of, for dropout; by default they are all of
  // it.
  ops::TokenWindow window = {};
  // Set where the tokens are a slice of sequences that lie on several ranks (nn/state_exchange.h).
  std::shared_ptr<const nn::Slices> slices = nullptr;
};

}  // namespace performer
