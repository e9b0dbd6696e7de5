// SPDX-License-Identifier: Apache-2.0
#include "performer/ops/dropout.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <mutex>

#include "performer/base/error.h"
#include "performer/kernels/dropout.h"

namespace performer::ops {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least

at::Tensor masked(const at::Tensor& x, uint64_t key, double probability) {
  const at::Tensor input = x.to(at::kFloat).contiguous();
  at::Tensor output = at::empty_like(input);
  const float* from = input.const_data_ptr<float>();
  float* to = output.mutable_data_ptr<float>();
  at::parallel_for(0, input.numel(), kGrain, [&](int64_t begin, int64_t end) {
    kernels::dropout(from, to, begin, end, key, probability);
  });
  return output.to(x.scalar_type());
}

struct Dropout : torch::autograd::Function<Dropout> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, int64_t key,
                            double probability) {
    context->saved_data["key"] = key;
    context->saved_data["probability"] = probability;
    return masked(x, static_cast<uint64_t>(key), probability);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto key = static_cast<uint64_t>(context->saved_data["key"].toInt());
    return {masked(gradients[0], key, context->saved_data["probability"].toDouble()), {}, {}};
  }
};

uint64_t draw_key() {
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard lock(generator->mutex_);
  return generator->random64();
}

}  // namespace

at::Tensor dropout(const at::Tensor& x, double probability) {
  check<UsageError>(probability >= 0 && probability < 1,
                    "a dropout probability must be at least 0 and below 1, not {}", probability);
  if (probability == 0) return x;
  return Dropout::apply(x, static_cast<int64_t>(draw_key()), probability);
}

}  // namespace performer::ops
