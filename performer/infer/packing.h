// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "performer/nn/sequence_batch.h"

namespace performer {

// Segments side by side that never see each other.
struct Packing {
  std::vector<int64_t> tokens, positions, bounds = {0};

  void add(int64_t token) {
    positions.push_back(static_cast<int64_t>(tokens.size()) - bounds.back());
    tokens.push_back(token);
  }
  void end_segment() { bounds.push_back(static_cast<int64_t>(tokens.size())); }
  int64_t size() const { return static_cast<int64_t>(tokens.size()); }

  SequenceBatch batch() const {
    return {.tokens = at::tensor(tokens, at::kLong).unsqueeze(0),
            .positions = at::tensor(positions, at::kLong).unsqueeze(0),
            .key_mask = std::nullopt,
            .cu_seqlens = at::tensor(bounds, at::kLong)};
  }
};

}  // namespace performer
