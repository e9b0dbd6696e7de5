// SPDX-License-Identifier: Apache-2.0
// What kinds need to give rows of the matrix that they apply to the values (Attention::rows).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "performer/nn/attention/block_softmax.h"
#include "performer/nn/attention/kind.h"

namespace performer::nn {

// Of single sequences: which keys the queries of the range see by causality and key_mask, bool [B or 1, R,
// S].
at::Tensor visible_keys(const ops::AttentionInputs& inputs, const RowRange& range);

// Of a batch of single sequences of T tokens: which pairs of the pattern lie in the range, bool [B, H, R, T].
at::Tensor visible_pairs(const BlockPattern& pattern, const ops::AttentionInputs& inputs,
                         const RowRange& range);

// rows [B, H, R, S] of self-attention, with 0 in those of tokens that key_mask hides.
at::Tensor without_hidden_tokens(const at::Tensor& rows, const ops::AttentionInputs& inputs,
                                 const RowRange& range);

// softmax(q k / sqrt(D)) over the visible keys, float64 [B, H, R, S]; rows that see nothing are 0. `visible`
// as visible_keys() or visible_pairs() gives it.
at::Tensor score_rows(const ops::AttentionInputs& inputs, const RowRange& range, const at::Tensor& visible);

// Rows of linear attention: sum_f phi_f(q_i) phi_f(k_j), divided by the sum of the row.
struct FeatureRows {
  ops::LogFeatures query;  // float64 [B, R, H, M]
  // The features of `count` keys from `begin` on, [B, count, H, M]: asked for in parts, twice, so that not
  // all are held at once.
  std::function<ops::LogFeatures(int64_t begin, int64_t count)> keys;
  at::Tensor visible;     // bool [B or 1, R, S]
  at::Tensor log_factor;  // of each weight, [R, S]; undefined: none
  // A denominator of smaller size than `floor` times |phi(q)| sum_j |phi(k_j)| is replaced by that, with its
  // own sign (ops/trigonometric.h).
  double floor = 0;
  // Rows whose denominator is below the smallest normal float32 are 0, as in the kernels; else no row is.
  bool may_vanish = false;
};
// Float64 [B, H, R, S]. Each feature is shifted by its largest value among the visible keys, and each query
// by its largest shifted feature. Rows in which all that they see is too small beside what other rows see are
// computed again alone.
at::Tensor feature_rows(const FeatureRows& features);

// Rows of linear attention to the keys of a single sequence with a feature map.
at::Tensor mapped_rows(const ops::AttentionInputs& inputs, const RowRange& range,
                       const ops::FeatureMapOptions& options, const ops::MapWeights& weights,
                       const ops::MapStatistics& statistics, const at::Tensor& visible,
                       const at::Tensor& log_factor = {});

// Checks the range, cuts packed inputs into their segments, and clears the rows of masked queries:
// `of_sequence` gives the rows of one sequence (or of a batch of them, a row each), without bounds. It need
// not care for the query mask, which only statistics read.
using RowsOfSequence = std::function<at::Tensor(const ops::AttentionInputs&, const RowRange&)>;
at::Tensor rows_of_sequences(const ops::AttentionInputs& inputs, const RowRange& range,
                             const RowsOfSequence& of_sequence);

}  // namespace performer::nn
