// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/sampling.h"

#include <ATen/ATen.h>

#include <limits>

#include "performer/base/error.h"

namespace performer::references::performer_pytorch {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

}  // namespace

at::Tensor keep_top_k(const at::Tensor& logits, double threshold) {
  // In double and truncated, as there: 0.1 * 10 is not quite 1.
  const auto k = static_cast<int64_t>((1 - threshold) * static_cast<double>(logits.size(-1)));
  check<UsageError>(k >= 0 && k <= logits.size(-1),
                    "filter top_k with threshold {} cannot keep {} of {} tokens", threshold, k,
                    logits.size(-1));
  const auto [values, places] = logits.topk(k, -1);
  return at::full_like(logits, kNever).scatter(-1, places, values);
}

at::Tensor keep_top_p(const at::Tensor& logits, double threshold) {
  const auto [sorted, places] = logits.sort(-1, /*descending=*/true);
  const at::Tensor beyond = sorted.softmax(-1).cumsum(-1).gt(1 - threshold);
  // A token goes when those before it already exceed the bound; the first one never does.
  const at::Tensor gone = at::constant_pad_nd(beyond.narrow(-1, 0, beyond.size(-1) - 1), {1, 0}, false);
  return at::empty_like(logits).scatter(-1, places, sorted.masked_fill(gone, kNever));
}

at::Tensor penalize_repetition(const at::Tensor& logits, const at::Tensor& context, double theta) {
  const at::Tensor divisor = at::ones({logits.size(-1)}, logits.options().dtype(at::kFloat));
  divisor.index_fill_(0, context.flatten(), theta);
  return logits / divisor;
}

}  // namespace performer::references::performer_pytorch
