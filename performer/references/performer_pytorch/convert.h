// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "performer/models/convert/convert.h"

namespace performer::references::performer_pytorch {

// PerformerLM, alone or within an AutoregressiveWrapper, reversible or not, with rotary or learned positions.
// Its attention is a kind of performer-pytorch with the projections of the file.
convert::Family family();

}  // namespace performer::references::performer_pytorch
