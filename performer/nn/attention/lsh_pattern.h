// SPDX-License-Identifier: Apache-2.0
// Which tokens attend to which when tokens are hashed into buckets (Reformer, arXiv 2001.04451, section 2).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "performer/nn/attention/block_softmax.h"
#include "performer/ops/favor.h"

namespace performer::nn {

struct LshSizes {
  int64_t rounds = 4;    // hash rounds R
  int64_t buckets = 32;  // of a round, an even number
  int64_t chunk = 64;    // neighbours in a bucket that a token sees, and tokens of a block
  bool causal = true;
};

// Buckets int64 [T, R] of vectors x [T, D] by random rotations [R buckets / 2, D] (float32 or float64): of
// the rotated vector and its negative, the index of the largest number (Andoni et al. 2015, as in the paper).
at::Tensor lsh_buckets(const at::Tensor& x, const at::Tensor& rotations, const LshSizes& sizes);

// In each round the tokens of a sequence are sorted by bucket, and by position within a bucket. A token sees
// the `chunk` tokens before it in its bucket, and when not causal the `chunk` tokens behind it; not itself. A
// pair that meets in several rounds is in the tile of the first one only.
//
// query [B, T, H, D], rotations [H, R buckets / 2, D]. Of `inputs` the query, its mask (key_mask) and its
// segments (cu_query) are used: hidden tokens are in no bucket, and segments share none.
std::shared_ptr<const BlockPattern> lsh_pattern(const ops::AttentionInputs& inputs,
                                                const at::Tensor& rotations, const LshSizes& sizes);

}  // namespace performer::nn
