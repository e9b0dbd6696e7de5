// SPDX-License-Identifier: Apache-2.0
// Linear attention of a slice: the tokens of this rank see those of the others through their states.
#pragma once

#include "performer/nn/attention/kind.h"
#include "performer/nn/state_exchange.h"

namespace performer::nn {

// The parts of it, for a slice that is read piece by piece: what the keys of a piece add to the state of the
// slice, which is undefined at first; what the tokens of a slice see of others, the merged states of the
// slices before it (causal; undefined for the first) or of all slices; and queries [B, C, H, D] that read a
// state of values of size E -> [B, C, H, E]. All ranks call state_seen() together; `anchor` is that of
// StateExchange::exchange().
ops::State add_keys(Attention& kind, const at::Tensor& key, const at::Tensor& value,
                    const ops::State& before);
ops::State state_seen(const Slices& slices, const ops::State& own, bool causal, at::Tensor& anchor);
at::Tensor read_state(Attention& kind, const at::Tensor& query, const ops::State& state);

// Attention of a slice [B, C, H, D] -> [B, C, H, E], causal or not, as forward() of the whole sequences would
// give it at these tokens, up to rounding. `inputs` holds the slice's own masks or segments. All ranks call
// it together. For kinds with Capabilities::chunks.
at::Tensor attend_sliced(Attention& kind, const ops::AttentionInputs& inputs, const Slices& slices);

}  // namespace performer::nn
