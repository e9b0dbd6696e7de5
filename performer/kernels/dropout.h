// SPDX-License-Identifier: Apache-2.0
// Dropout without a stored mask: whether element i is dropped is a hash of (key, i), so the backward pass and
// any number of threads find the same mask again.
#pragma once

#include <cstdint>

namespace performer::kernels {

// Element i of the tensor that names the mask is dropped with `probability` in [0, 1), rounded to a multiple
// of 2^-16; the others are divided by 1 - probability.
struct DropoutMask {
  uint64_t key = 0;
  double probability = 0;  // 0: nothing is dropped
};

// output[i] = input[i] / (1 - probability) where element i is kept, else 0, for begin <= i < end. In place is
// allowed. For part of a larger tensor `shift` is added to i in the hash: the element's place there less its
// place here.
void dropout(const float* input, float* output, int64_t begin, int64_t end, const DropoutMask& mask,
             int64_t shift = 0);
// The same of bfloat16 elements, given as their bits; computed in float32 and rounded once.
void dropout(const uint16_t* input, uint16_t* output, int64_t begin, int64_t end, const DropoutMask& mask,
             int64_t shift = 0);

}  // namespace performer::kernels
