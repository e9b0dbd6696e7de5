// SPDX-License-Identifier: Apache-2.0
// Dropout without a stored mask: whether element i is dropped is a hash of (key, i), so the backward pass and
// any number of threads find the same mask again.
#pragma once

#include <cstdint>

namespace performer::kernels {

// output[i] = input[i] / (1 - probability) where element i is kept, else 0, for begin <= i < end. Element i
// is dropped with `probability` in [0, 1): 31 bits of the hash against a threshold. In place is allowed. For
// part of a larger tensor `shift` is added to i in the hash: the element's place there less its place here.
void dropout(const float* input, float* output, int64_t begin, int64_t end, uint64_t key, double probability,
             int64_t shift = 0);

}  // namespace performer::kernels
