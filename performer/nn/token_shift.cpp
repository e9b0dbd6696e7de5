// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/token_shift.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <cstdlib>

#include "performer/base/error.h"

namespace performer::nn {
namespace {

// Bool [1, T, 1]: tokens whose neighbour `shift` tokens earlier is of another segment, or none.
at::Tensor crosses_segments(const at::Tensor& cu_seqlens, int64_t shift) {
  const int64_t segments = cu_seqlens.size(0) - 1;
  const at::Tensor segment = at::arange(segments, at::kLong).repeat_interleave(cu_seqlens.diff());
  const at::Tensor neighbour = at::constant_pad_nd(segment, {shift, -shift}, -1);
  return segment.ne(neighbour).view({1, -1, 1});
}

}  // namespace

at::Tensor shift_tokens(const at::Tensor& x, const std::vector<int64_t>& shifts,
                        const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& cu_seqlens) {
  check<UsageError>(x.dim() == 3, "tokens to shift must be [B, T, C], not [{}]", fmt::join(x.sizes(), ", "));
  const auto groups = static_cast<int64_t>(shifts.size());
  const int64_t length = x.size(1), channels = x.size(2);
  check<UsageError>(groups >= 1 && channels >= groups, "{} shifts need at least as many features, not {}",
                    groups, channels);
  at::Tensor kept = x;  // what shifted groups read
  if (mask) {
    check<UsageError>(mask->scalar_type() == at::kBool && mask->sizes().equals(x.sizes().slice(0, 2)),
                      "the mask of a token shift must be bool [{}, {}], not {} [{}]", x.size(0), length,
                      toString(mask->scalar_type()), fmt::join(mask->sizes(), ", "));
    kept = x.masked_fill(mask->logical_not().unsqueeze(-1), 0);
  }
  const int64_t width = channels / groups;
  std::vector<at::Tensor> parts;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t shift = shifts[group];
    if (shift == 0) {
      parts.push_back(x.narrow(2, group * width, width));
    } else if (std::abs(shift) >= length) {
      parts.push_back(at::zeros({x.size(0), length, width}, x.options()));
    } else {
      at::Tensor part = at::constant_pad_nd(kept.narrow(2, group * width, width), {0, 0, shift, -shift});
      if (cu_seqlens) part = part.masked_fill(crosses_segments(*cu_seqlens, shift), 0);
      parts.push_back(part);
    }
  }
  if (groups * width < channels) parts.push_back(x.narrow(2, groups * width, channels - groups * width));
  return at::cat(parts, 2);
}

std::vector<int64_t> stack_shifts(bool causal) {
  return causal ? std::vector<int64_t>{0, 1} : std::vector<int64_t>{-1, 0, 1};
}

}  // namespace performer::nn
