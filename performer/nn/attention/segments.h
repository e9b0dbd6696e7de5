// SPDX-License-Identifier: Apache-2.0
// What kinds do alike about masks and packed segments.
#pragma once

#include <ATen/ops/cat.h>
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

// Packed self-attention (inputs.cu_query) of a kind that knows single sequences only: `attend` is called for
// each segment that has tokens, with `inputs` cut to it and without its bounds.
template <class Attend>
at::Tensor attend_segments(const ops::AttentionInputs& inputs, Attend&& attend) {
  const auto bounds = inputs.cu_query->accessor<int64_t, 1>();
  std::vector<at::Tensor> parts = {inputs.value.narrow(1, 0, 0)};
  for (int64_t n = 0; n + 1 < bounds.size(0); ++n) {
    const int64_t length = bounds[n + 1] - bounds[n];
    if (length == 0) continue;
    ops::AttentionInputs segment = inputs;
    segment.query = inputs.query.narrow(1, bounds[n], length);
    segment.key = inputs.key.narrow(1, bounds[n], length);
    segment.value = inputs.value.narrow(1, bounds[n], length);
    if (inputs.key_mask) segment.key_mask = inputs.key_mask->narrow(1, bounds[n], length);
    if (inputs.query_mask) segment.query_mask = inputs.query_mask->narrow(1, bounds[n], length);
    segment.cu_query.reset();
    segment.cu_key.reset();
    parts.push_back(attend(segment));
  }
  return at::cat(parts, 1);
}

}  // namespace performer::nn
