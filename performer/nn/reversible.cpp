// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/reversible.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <map>
#include <utility>

#include "performer/base/error.h"
#include "performer/nn/replay.h"

namespace performer::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What the backward pass needs besides the outputs.
struct ReversibleRun : torch::CustomClassHolder {
  std::vector<ReversibleLayer> layers;
  std::vector<at::Tensor> used;              // of all layers, each once
  std::vector<std::vector<size_t>> wanting;  // of each layer: which of `used` want gradients
  std::vector<Replay> f_replays, g_replays;
};

c10::intrusive_ptr<ReversibleRun> prepare_run(const std::vector<ReversibleLayer>& layers) {
  auto run = c10::make_intrusive<ReversibleRun>();
  run->layers = layers;
  std::map<const at::TensorImpl*, size_t> places;
  for (const ReversibleLayer& layer : layers) {
    std::vector<size_t>& wanting = run->wanting.emplace_back();
    for (const at::Tensor& tensor : layer.used) {
      const auto [place, added] = places.emplace(tensor.unsafeGetTensorImpl(), run->used.size());
      if (added) run->used.push_back(tensor);
      if (tensor.requires_grad()) wanting.push_back(place->second);
    }
  }
  return run;
}

void add_to(at::Tensor& sum, const at::Tensor& term) {
  if (term.defined()) sum = sum.defined() ? sum + term : term;
}

// Gradients while the backward pass walks through the layers.
struct Walk {
  const ReversibleRun& run;
  std::vector<at::Tensor> sums;  // gradients of run.used

  // Runs one branch of `layer` again: its value at x, and the gradient of x from that of the value. Those of
  // the tensors it uses are added to `sums`.
  struct Result {
    at::Tensor value, gradient;
  };
  Result branch(size_t layer, const std::function<at::Tensor(const at::Tensor&)>& body, const Replay& replay,
                const at::Tensor& x, const at::Tensor& gradient) {
    const at::AutoGradMode grad(true);
    const at::Tensor input = x.detach().requires_grad_();
    const at::Tensor value = replay.again([&] { return body(input); });
    variable_list wanted{input};
    for (const size_t place : run.wanting[layer]) wanted.push_back(run.used[place]);
    const variable_list found =
        torch::autograd::grad({value}, wanted, {gradient}, std::nullopt, false, /*allow_unused=*/true);
    for (size_t i = 1; i < found.size(); ++i) add_to(sums[run.wanting[layer][i - 1]], found[i]);
    return {value.detach(), found[0]};
  }
};

class ReversibleSequence : public torch::autograd::Function<ReversibleSequence> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x1, const at::Tensor& x2,
                               at::TensorList used, const c10::intrusive_ptr<ReversibleRun>& run) {
    at::Tensor y1 = x1, y2 = x2;
    for (const ReversibleLayer& layer : run->layers) {
      const Replay& f = run->f_replays.emplace_back(y2.device());
      y1 = y1 + f.first([&] { return layer.f(y2); });
      const Replay& g = run->g_replays.emplace_back(y1.device());
      y2 = y2 + g.first([&] { return layer.g(y1); });
    }
    variable_list saved{y1, y2};
    saved.insert(saved.end(), used.begin(), used.end());  // LibTorch watches what is saved for changes
    context->save_for_backward(std::move(saved));
    context->saved_data["run"] = c10::IValue::make_capsule(run);
    return {y1, y2};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    check<UsageError>(!at::GradMode::is_enabled(),
                      "gradients of gradients do not exist through reversible layers: build the model "
                      "without reversible layers, or let it keep its activations");
    const auto run =
        c10::static_intrusive_pointer_cast<ReversibleRun>(context->saved_data["run"].toCapsule());
    const variable_list saved = context->get_saved_variables();
    at::Tensor y1 = saved[0].detach(), y2 = saved[1].detach();
    at::Tensor dy1 = gradients[0].defined() ? gradients[0] : at::zeros_like(y1);
    at::Tensor dy2 = gradients[1].defined() ? gradients[1] : at::zeros_like(y2);
    Walk walk{*run, std::vector<at::Tensor>(run->used.size())};
    for (size_t i = run->layers.size(); i-- > 0;) {
      const ReversibleLayer& layer = run->layers[i];
      const auto g = walk.branch(i, layer.g, run->g_replays[i], y1, dy2);
      y2 = y2 - g.value;
      add_to(dy1, g.gradient);
      const auto f = walk.branch(i, layer.f, run->f_replays[i], y2, dy1);
      y1 = y1 - f.value;
      add_to(dy2, f.gradient);
    }
    variable_list result{dy1, dy2};
    for (size_t i = 0; i < run->used.size(); ++i) {
      result.push_back(run->used[i].requires_grad() ? walk.sums[i] : at::Tensor());
    }
    result.emplace_back();  // run
    return result;
  }
};

bool wants_gradients(const ReversibleRun& run, const Streams& x) {
  if (!at::GradMode::is_enabled()) return false;
  if (x.first.requires_grad() || x.second.requires_grad()) return true;
  for (const auto& layer : run.wanting) {
    if (!layer.empty()) return true;
  }
  return false;
}

}  // namespace

Streams reversible_sequence(const std::vector<ReversibleLayer>& layers, const Streams& x, bool reconstruct) {
  if (reconstruct && !layers.empty()) {
    const auto run = prepare_run(layers);
    if (wants_gradients(*run, x)) {
      const auto y = ReversibleSequence::apply(x.first, x.second, at::TensorList(run->used), run);
      return {y[0], y[1]};
    }
  }
  Streams y = x;
  for (const ReversibleLayer& layer : layers) {
    y.first = y.first + layer.f(y.second);
    y.second = y.second + layer.g(y.first);
  }
  return y;
}

}  // namespace performer::nn
