// SPDX-License-Identifier: Apache-2.0
// Linear attention of a slice: the tokens of this rank see those of the others through their states.
#pragma once

#include "performer/nn/attention/kind.h"
#include "performer/nn/state_exchange.h"

namespace performer::nn {

// Attention of a slice [B, C, H, D] -> [B, C, H, E], causal or not, as forward() of the whole sequences would
// give it at these tokens, up to rounding. `inputs` holds the slice's own masks or segments. All ranks call
// it together. For kinds with Capabilities::chunks.
at::Tensor attend_sliced(Attention& kind, const ops::AttentionInputs& inputs, const Slices& slices);

}  // namespace performer::nn
