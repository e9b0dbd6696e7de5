// SPDX-License-Identifier: Apache-2.0
#include "performer/ops/dropout.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "performer/base/error.h"
#include "performer/kernels/dropout.h"

namespace performer::ops {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least

// x as runs of consecutive elements of the tensor that names the mask: run r starts at element first +
// r * stride there.
struct Runs {
  int64_t size = 0, first = 0, stride = 0;
};

Runs runs_of(const at::Tensor& x, const TokenWindow& window) {
  check<UsageError>(
      x.dim() >= 2 && window.start >= 0 && window.start + x.size(1) <= window.length,
      "dropout of a chunk needs [batch, tokens, ...] with the tokens within rows of {}, found {} "
      "dimensions and the tokens {} to {}",
      window.length, x.dim(), window.start, window.start + (x.dim() >= 2 ? x.size(1) : 0));
  int64_t token = 1;
  for (int64_t dim = 2; dim < x.dim(); ++dim) token *= x.size(dim);
  return {x.size(1) * token, window.start * token, window.length * token};
}

at::Tensor masked(const at::Tensor& x, uint64_t key, double probability, const Runs& runs) {
  if (x.scalar_type() == at::kDouble) {  // keeps its precision: only the mask comes from the kernel
    const at::Tensor kept = masked(at::ones_like(x, at::kFloat), key, probability, runs).ne(0);
    return (x / (1 - probability)).masked_fill(kept.logical_not(), 0);
  }
  const at::Tensor input = x.to(at::kFloat).contiguous();
  at::Tensor output = at::empty_like(input);
  const float* from = input.const_data_ptr<float>();
  float* to = output.mutable_data_ptr<float>();
  at::parallel_for(0, input.numel(), kGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t run = begin / runs.size, stop = std::min(end, (run + 1) * runs.size);
      kernels::dropout(from, to, begin, stop, key, probability, runs.first + run * (runs.stride - runs.size));
      begin = stop;
    }
  });
  return output.to(x.scalar_type());
}

struct Dropout : torch::autograd::Function<Dropout> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, int64_t key,
                            double probability, const Runs& runs) {
    context->saved_data["key"] = key;
    context->saved_data["probability"] = probability;
    context->saved_data["runs"] = std::vector<int64_t>{runs.size, runs.first, runs.stride};
    return masked(x, static_cast<uint64_t>(key), probability, runs);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto key = static_cast<uint64_t>(context->saved_data["key"].toInt());
    const auto runs = context->saved_data["runs"].toIntVector();
    const double probability = context->saved_data["probability"].toDouble();
    return {masked(gradients[0], key, probability, {runs[0], runs[1], runs[2]}), {}, {}, {}};
  }
};

uint64_t draw_key() {
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard lock(generator->mutex_);
  return generator->random64();
}

at::Tensor drop(const at::Tensor& x, double probability, const Runs& runs) {
  check<UsageError>(probability >= 0 && probability < 1,
                    "a dropout probability must be at least 0 and below 1, not {}", probability);
  if (probability == 0) return x;
  return Dropout::apply(x, static_cast<int64_t>(draw_key()), probability, runs);
}

}  // namespace

at::Tensor dropout(const at::Tensor& x, double probability) {
  return drop(x, probability, {.size = x.numel()});
}

at::Tensor dropout(const at::Tensor& x, double probability, const TokenWindow& window) {
  return drop(x, probability, runs_of(x, window));
}

}  // namespace performer::ops
