// SPDX-License-Identifier: Apache-2.0
// Which part of a dropout mask falls to a tensor. Private to this layer; dropout.h is its public side.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "performer/ops/dropout.h"

namespace performer::ops {

// A tensor as runs of consecutive elements of the one that names the mask: run r has `size` elements and
// starts at element first + r * stride there.
struct MaskRuns {
  int64_t size = 0, first = 0, stride = 0;
};

// A window of length 0 is the whole of x.
MaskRuns mask_runs(const at::Tensor& x, const TokenWindow& window);

// Takes the number that names a mask from LibTorch's default CPU generator.
uint64_t draw_mask_key();

// Elements begin .. end - 1 of the tensor in pieces that lie in one run: body(first, last + 1, the place of
// the first one in the mask).
template <class Body>
void for_each_run(const MaskRuns& runs, int64_t begin, int64_t end, const Body& body) {
  while (begin < end) {
    const int64_t run = begin / runs.size, stop = std::min(end, (run + 1) * runs.size);
    body(begin, stop, runs.first + run * runs.stride + begin - run * runs.size);
    begin = stop;
  }
}

}  // namespace performer::ops
