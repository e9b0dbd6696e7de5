// SPDX-License-Identifier: Apache-2.0
#include "performer/ops/linear.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string_view>

namespace performer::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Scalars = c10::List<std::optional<at::Scalar>>;
using OneDnnSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                   std::string_view, Scalars, std::optional<std::string_view>);

// The operator by which LibTorch's compiler calls oneDNN's inner product; undefined in a LibTorch without it.
const std::optional<c10::OperatorHandle>& onednn_operator() {
  static const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  return found;
}

bool is_faster_by_onednn() {
#if defined(__x86_64__)
  static const bool faster = !__builtin_cpu_is("intel") && onednn_operator().has_value();
  return faster;
#else
  return false;
#endif
}

constexpr int64_t kSmallest = 1 << 24;  // multiplications below which setting up a call counts

bool goes_to_onednn(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const auto fits = [](const at::Tensor& tensor) {
    return tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat && tensor.layout() == at::kStrided;
  };
  return is_faster_by_onednn() && fits(x) && fits(weight) && (!bias.defined() || fits(bias)) &&
         !at::autocast::is_autocast_enabled(at::kCPU) && x.dim() >= 2 && weight.dim() == 2 &&
         x.size(-1) == weight.size(1) && x.numel() * weight.size(0) >= kSmallest;
}

// Rows [N, size] that lie behind each other: for others, such as a third of the rows of a joint projection,
// oneDNN falls back to its reference code, which is sixty times slower.
at::Tensor plain_rows(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)}).contiguous();
}

// a b^T, matrices
at::Tensor product(const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& bias = {}) {
  static const auto op = onednn_operator()->typed<OneDnnSignature>();
  return op.call(a, b, bias, "none", Scalars(), std::nullopt);
}

struct OneDnnLinear : torch::autograd::Function<OneDnnLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, weight});
    context->saved_data["bias"] = bias.has_value();
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = weight.size(0);
    return product(plain_rows(x), weight.contiguous(), bias).view(sizes);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const at::Tensor gradient = plain_rows(gradients[0]);
    variable_list result(3);
    if (context->needs_input_grad(0)) result[0] = product(gradient, weight.contiguous().t()).view(x.sizes());
    if (context->needs_input_grad(1)) result[1] = product(gradient.t(), plain_rows(x).t());
    if (context->saved_data["bias"].toBool() && context->needs_input_grad(2)) result[2] = gradient.sum(0);
    return result;
  }
};

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (!goes_to_onednn(x, weight, bias)) return at::linear(x, weight, bias);
  return OneDnnLinear::apply(x, weight, bias.defined() ? std::optional(bias) : std::nullopt);
}

}  // namespace performer::ops
