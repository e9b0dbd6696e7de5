// SPDX-License-Identifier: Apache-2.0
// The trigonometric family by definition: one (sequence, head) of a pass.
#pragma once

#include "performer/kernels/favor.h"

namespace performer::kernels::reference {

void trigonometric_forward(const AttentionForward& pass, int64_t sequence, int64_t head);
void trigonometric_backward(const AttentionBackward& pass, int64_t sequence, int64_t head);

}  // namespace performer::kernels::reference
