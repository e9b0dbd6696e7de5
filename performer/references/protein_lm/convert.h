// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "performer/models/convert/convert.h"

namespace performer::references::protein_lm {

// Flax checkpoints of protein_lm (FlaxLM, FlaxBERT), whose parameters import.h describes.
convert::Family family();

}  // namespace performer::references::protein_lm
