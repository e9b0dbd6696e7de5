// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/recompute.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <optional>

#include "performer/nn/replay.h"

namespace performer::nn {
namespace {

namespace autograd = torch::autograd;

// What the second run needs besides x.
struct Run : torch::CustomClassHolder {
  std::function<at::Tensor(const at::Tensor&)> body;
  std::vector<at::Tensor> parameters;
  std::optional<Replay> replay;
};

class Recompute : public autograd::Function<Recompute> {
 public:
  static at::Tensor forward(autograd::AutogradContext* context, const at::Tensor& x,
                            at::TensorList /*parameters*/, const c10::intrusive_ptr<Run>& run) {
    context->save_for_backward({x});
    context->saved_data["run"] = c10::IValue::make_capsule(run);
    run->replay.emplace(x.device());
    return run->replay->first([&] { return run->body(x); });
  }

  static autograd::variable_list backward(autograd::AutogradContext* context,
                                          autograd::variable_list gradients) {
    const auto run = c10::static_intrusive_pointer_cast<Run>(context->saved_data["run"].toCapsule());
    const at::Tensor saved = context->get_saved_variables()[0];
    const at::Tensor x = saved.detach().requires_grad_(saved.requires_grad());
    const at::AutoGradMode grad(true);
    const at::Tensor y = run->replay->again([&] { return run->body(x); });
    autograd::variable_list wanted;
    if (x.requires_grad()) wanted.push_back(x);
    for (const at::Tensor& parameter : run->parameters) {
      if (parameter.requires_grad()) wanted.push_back(parameter);
    }
    const auto found =
        autograd::grad({y}, wanted, {gradients[0]}, std::nullopt, false, /*allow_unused=*/true);

    autograd::variable_list
        result;  // one entry an argument of forward(), undefined where no gradient is wanted
    auto next = found.begin();
    result.push_back(x.requires_grad() ? *next++ : at::Tensor());
    for (const at::Tensor& parameter : run->parameters) {
      result.push_back(parameter.requires_grad() ? *next++ : at::Tensor());
    }
    result.emplace_back();  // run
    return result;
  }
};

}  // namespace

at::Tensor recompute(const std::function<at::Tensor(const at::Tensor&)>& body, const at::Tensor& x,
                     const std::vector<at::Tensor>& parameters) {
  auto run = c10::make_intrusive<Run>();
  run->body = body;
  run->parameters = parameters;
  return Recompute::apply(x, at::TensorList(parameters), run);
}

}  // namespace performer::nn
