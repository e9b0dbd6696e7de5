// SPDX-License-Identifier: Apache-2.0
// What kinds do alike about masks and packed segments.
#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logical_not.h>
#include <ATen/ops/masked_fill.h>

#include <optional>
#include <vector>

#include "performer/ops/favor.h"

namespace performer::nn {

// Rows [B, T, H, E] with those that query_mask [B, T] hides set to 0.
inline at::Tensor hide_rows(const at::Tensor& rows, const std::optional<at::Tensor>& query_mask) {
  if (!query_mask) return rows;
  return rows.masked_fill(query_mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
}

// Packed attention (inputs.cu_query, and cu_key where keys are of other sequences) of a kind that knows
// single sequences only: `attend` is called for each segment that has queries, with `inputs` cut to it and
// without its bounds.
template <class Attend>
at::Tensor attend_segments(const ops::AttentionInputs& inputs, Attend&& attend) {
  const auto of_query = inputs.cu_query->accessor<int64_t, 1>();
  const auto of_key = (inputs.cu_key ? *inputs.cu_key : *inputs.cu_query).accessor<int64_t, 1>();
  std::vector<at::Tensor> parts = {
      at::empty({1, 0, inputs.value.size(2), inputs.value.size(3)}, inputs.value.options())};
  for (int64_t n = 0; n + 1 < of_query.size(0); ++n) {
    const int64_t begin = of_query[n], length = of_query[n + 1] - begin;
    const int64_t from = of_key[n], keys = of_key[n + 1] - from;
    if (length == 0) continue;
    ops::AttentionInputs segment = inputs;
    segment.query = inputs.query.narrow(1, begin, length);
    segment.key = inputs.key.narrow(1, from, keys);
    segment.value = inputs.value.narrow(1, from, keys);
    if (inputs.key_mask) segment.key_mask = inputs.key_mask->narrow(1, from, keys);
    if (inputs.query_mask) segment.query_mask = inputs.query_mask->narrow(1, begin, length);
    segment.cu_query.reset();
    segment.cu_key.reset();
    parts.push_back(attend(segment));
  }
  return at::cat(parts, 1);
}

}  // namespace performer::nn
