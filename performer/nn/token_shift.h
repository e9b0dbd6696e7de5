// SPDX-License-Identifier: Apache-2.0
// Features of neighbouring tokens, without parameters.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace performer::nn {

// x [B, T, C] with group i of floor(C / n) features taken from shifts[i] tokens earlier (later when
// negative), n = shifts.size(); beyond the ends of the sequence it is zero. The features left over stay. With
// `mask` (bool [B, T], true keeps) groups whose shift is not 0 read zero from masked tokens; a group with
// shift 0 keeps even those, as in performer-pytorch 1.1.4 (the idea is from RWKV's time shift). Throws
// UsageError for fewer than n features, no shifts, or a mask of another shape or type.
// With `cu_seqlens` (int64 [N + 1] on the CPU, B = 1) segments do not reach each other: beyond the ends of a
// segment it is zero.
at::Tensor shift_tokens(const at::Tensor& x, const std::vector<int64_t>& shifts,
                        const std::optional<at::Tensor>& mask = {},
                        const std::optional<at::Tensor>& cu_seqlens = {});

// Shifts of a stack: (0, 1) when causal, else (-1, 0, 1).
std::vector<int64_t> stack_shifts(bool causal);

}  // namespace performer::nn
