// SPDX-License-Identifier: Apache-2.0
#include "performer/ops/dropout.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <mutex>
#include <vector>

#include "performer/kernels/dropout.h"
#include "performer/ops/mask_runs.h"

namespace performer::ops {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least

template <class T>
void drop(const at::Tensor& input, at::Tensor& output, const kernels::DropoutMask& mask,
          const MaskRuns& runs) {
  const auto* from = static_cast<const T*>(input.const_data_ptr());
  auto* to = static_cast<T*>(output.mutable_data_ptr());
  at::parallel_for(0, input.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for_each_run(runs, begin, end, [&](int64_t first, int64_t last, int64_t place) {
      kernels::dropout(from, to, first, last, mask, place - first);
    });
  });
}

at::Tensor masked(const at::Tensor& x, uint64_t key, double probability, const MaskRuns& runs) {
  // Doubles keep their precision: only the mask comes from the kernel. So it does for other devices.
  if (x.scalar_type() == at::kDouble || !x.device().is_cpu()) {
    const at::Tensor ones = at::ones(x.sizes(), at::TensorOptions(at::kFloat));
    const at::Tensor kept = masked(ones, key, probability, runs).ne(0).to(x.device());
    return (x / (1 - probability)).masked_fill(kept.logical_not(), 0).contiguous();
  }
  const bool half = x.scalar_type() == at::kBFloat16;
  const at::Tensor input = (half ? x : x.to(at::kFloat)).contiguous();
  at::Tensor output = at::empty_like(input);
  half ? drop<uint16_t>(input, output, {key, probability}, runs)
       : drop<float>(input, output, {key, probability}, runs);
  return output.to(x.scalar_type());
}

using DrawnSignature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, double, int64_t, int64_t);
using MaskedSignature = at::Tensor(const at::Tensor&, const at::Tensor&, double, int64_t, int64_t);

// What keeps the mask drawn in the forward pass for the backward pass: its key, one int64 on the CPU. As a
// tensor it is not frozen into a traced program, which would drop the same elements in every step.
std::tuple<at::Tensor, at::Tensor> drawn_dropout(const at::Tensor& x, double probability, int64_t start,
                                                 int64_t length) {
  const MaskRuns runs = mask_runs(x, {start, length});
  const auto key = static_cast<int64_t>(draw_mask_key());
  return {masked(x, static_cast<uint64_t>(key), probability, runs), at::full({}, key, at::kLong)};
}

std::tuple<at::Tensor, at::Tensor> drawn_dropout_meta(const at::Tensor& x, double, int64_t, int64_t) {
  return {at::empty_like(x, at::MemoryFormat::Contiguous),
          at::empty({}, at::TensorOptions(at::kLong).device(x.is_meta() ? at::kMeta : at::kCPU))};
}

at::Tensor masked_dropout(const at::Tensor& x, const at::Tensor& key, double probability, int64_t start,
                          int64_t length) {
  return masked(x, static_cast<uint64_t>(key.item<int64_t>()), probability, mask_runs(x, {start, length}));
}

at::Tensor masked_dropout_meta(const at::Tensor& x, const at::Tensor&, double, int64_t, int64_t) {
  return at::empty_like(x, at::MemoryFormat::Contiguous);
}

struct DrawnDropout : torch::autograd::Function<DrawnDropout> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& x, double probability, int64_t start,
                                                int64_t length) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("performer::drawn_dropout", "")
                               .typed<DrawnSignature>();
    auto [out, key] = op.call(x, probability, start, length);
    context->save_for_backward({key});
    context->saved_data["probability"] = probability;
    context->saved_data["start"] = start;
    context->saved_data["length"] = length;
    context->mark_non_differentiable({key});
    return {out, key};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("performer::masked_dropout", "")
                               .typed<MaskedSignature>();
    return {op.call(gradients[0], context->get_saved_variables()[0],
                    context->saved_data["probability"].toDouble(), context->saved_data["start"].toInt(),
                    context->saved_data["length"].toInt()),
            {},
            {},
            {}};
  }
};

std::tuple<at::Tensor, at::Tensor> drawn_dropout_autograd(const at::Tensor& x, double probability,
                                                          int64_t start, int64_t length) {
  auto results = DrawnDropout::apply(x, probability, start, length);
  return {results[0], results[1]};
}

at::Tensor dropout_op(const at::Tensor& x, double probability, int64_t start, int64_t length) {
  TORCH_CHECK_VALUE(probability >= 0 && probability < 1,
                    "a dropout probability must be at least 0 and below 1, not ", probability);
  if (probability == 0) return x;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("performer::drawn_dropout", "").typed<DrawnSignature>();
  return std::get<0>(op.call(x, probability, start, length));
}

}  // namespace

MaskRuns mask_runs(const at::Tensor& x, const TokenWindow& window) {
  if (window.length == 0 && window.start == 0) return {x.numel(), 0, 0};
  TORCH_CHECK_VALUE(x.dim() >= 2 && window.start >= 0 && window.length > 0 &&
                        window.start % window.length + x.size(1) <= window.length,
                    "dropout of a chunk needs [batch, tokens, ...] with the tokens within rows of ",
                    window.length, ", found ", x.dim(), " dimensions and the tokens ", window.start, " to ",
                    window.start + (x.dim() >= 2 ? x.size(1) : 0));
  int64_t token = 1;
  for (int64_t dim = 2; dim < x.dim(); ++dim) token *= x.size(dim);
  return {x.size(1) * token, window.start * token, window.length * token};
}

uint64_t draw_mask_key() {
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard lock(generator->mutex_);
  return generator->random64();
}

TORCH_LIBRARY_FRAGMENT(performer, library) {
  const std::vector<at::Tag> random{at::Tag::nondeterministic_seeded};
  library.def("dropout(Tensor x, float probability, int start=0, int length=0) -> Tensor", dropout_op);
  library.def(
      "drawn_dropout(Tensor x, float probability, int start=0, int length=0) -> (Tensor out, Tensor key)",
      random);
  library.def("masked_dropout(Tensor x, Tensor key, float probability, int start=0, int length=0) -> Tensor");
}

TORCH_LIBRARY_IMPL(performer, CompositeExplicitAutograd, library) {
  library.impl("drawn_dropout", drawn_dropout);
  library.impl("masked_dropout", masked_dropout);
}

TORCH_LIBRARY_IMPL(performer, Meta, library) {
  library.impl("drawn_dropout", drawn_dropout_meta);
  library.impl("masked_dropout", masked_dropout_meta);
}

TORCH_LIBRARY_IMPL(performer, Autograd, library) {
  library.impl("drawn_dropout", drawn_dropout_autograd);
}

at::Tensor dropout(const at::Tensor& x, double probability) {
  return dropout(x, probability, TokenWindow{});
}

at::Tensor dropout(const at::Tensor& x, double probability, const TokenWindow& window) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("performer::dropout", "")
                             .typed<at::Tensor(const at::Tensor&, double, int64_t, int64_t)>();
  return op.call(x, probability, window.start, window.length);
}

}  // namespace performer::ops
