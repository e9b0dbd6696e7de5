// SPDX-License-Identifier: Apache-2.0
// What attention with a prepared map and the operators over it share. Private to this layer;
// ops/feature_maps.h is the public side.
#pragma once

#include "performer/ops/feature_maps.h"

namespace performer::ops {

// Throw c10::ValueError naming what was found.
void check_four_dimensions_of(const at::Tensor& tensor, const char* name);
void check_token(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value);

// mapped_attention as the operators return it: the state's parts have no elements unless a state is asked
// for.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> mapped_results(const AttentionInputs& inputs,
                                                                          const PreparedMap& prepared);

// The empty state of a stream whose first token is query [B, H, D] with value [B, H, E].
State new_state(const PreparedMap& prepared, const at::Tensor& query, const at::Tensor& value);

}  // namespace performer::ops
