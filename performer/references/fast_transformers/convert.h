// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "performer/models/convert/convert.h"

namespace performer::references::fast_transformers {

// State dictionaries of models around a TransformerEncoder of fast-transformers, with an embedding, an output
// layer and perhaps a table of positions. The number of heads is no part of the file: model.heads must be
// given.
convert::Family family();

}  // namespace performer::references::fast_transformers
