// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/recompute.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <mutex>
#include <utility>

namespace performer::nn {
namespace {

namespace autograd = torch::autograd;

at::Tensor generator_state(at::Generator& generator) {
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

void set_generator_state(at::Generator& generator, const at::Tensor& state) {
  const std::lock_guard lock(generator.mutex());
  generator.set_state(state);
}

// Puts the generator of a device back where it was.
class GeneratorGuard {
 public:
  explicit GeneratorGuard(at::Device device)
      : generator_(at::globalContext().defaultGenerator(device)), saved_(generator_state(generator_)) {}
  ~GeneratorGuard() { set_generator_state(generator_, saved_); }
  GeneratorGuard(const GeneratorGuard&) = delete;
  GeneratorGuard& operator=(const GeneratorGuard&) = delete;
  void start_at(const at::Tensor& state) { set_generator_state(generator_, state); }

 private:
  at::Generator generator_;
  at::Tensor saved_;
};

struct Autocast {
  bool enabled, cache;
  at::ScalarType type;
  static Autocast now(at::DeviceType device) {
    return {at::autocast::is_autocast_enabled(device), at::autocast::is_autocast_cache_enabled(),
            at::autocast::get_autocast_dtype(device)};
  }
  void apply(at::DeviceType device) const {
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_cache_enabled(cache);
    at::autocast::set_autocast_dtype(device, type);
  }
};

// Sets autocast for a scope, without its cache of cast weights: one filled without gradients would be met
// again with them, one filled in the backward pass would outlive it.
class AutocastGuard {
 public:
  AutocastGuard(at::DeviceType device, Autocast wanted) : device_(device), saved_(Autocast::now(device)) {
    wanted.cache = false;
    wanted.apply(device);
  }
  ~AutocastGuard() { saved_.apply(device_); }
  AutocastGuard(const AutocastGuard&) = delete;
  AutocastGuard& operator=(const AutocastGuard&) = delete;

 private:
  at::DeviceType device_;
  Autocast saved_;
};

// What the second run needs besides x.
struct Run : torch::CustomClassHolder {
  std::function<at::Tensor(const at::Tensor&)> body;
  std::vector<at::Tensor> parameters;
  at::Tensor generator;
  Autocast autocast{};
};

class Recompute : public autograd::Function<Recompute> {
 public:
  static at::Tensor forward(autograd::AutogradContext* context, const at::Tensor& x,
                            at::TensorList /*parameters*/, const c10::intrusive_ptr<Run>& run) {
    context->save_for_backward({x});
    context->saved_data["run"] = c10::IValue::make_capsule(run);
    auto generator = at::globalContext().defaultGenerator(x.device());
    run->generator = generator_state(generator);
    run->autocast = Autocast::now(x.device().type());
    const AutocastGuard autocast(x.device().type(), run->autocast);
    return run->body(x);
  }

  static autograd::variable_list backward(autograd::AutogradContext* context,
                                          autograd::variable_list gradients) {
    const auto run = c10::static_intrusive_pointer_cast<Run>(context->saved_data["run"].toCapsule());
    const at::Tensor saved = context->get_saved_variables()[0];
    const at::Tensor x = saved.detach().requires_grad_(saved.requires_grad());
    const at::AutoGradMode grad(true);
    at::Tensor y;
    {
      GeneratorGuard generator(x.device());
      generator.start_at(run->generator);
      const AutocastGuard autocast(x.device().type(), run->autocast);
      y = run->body(x);
    }
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
