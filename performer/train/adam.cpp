// SPDX-License-Identifier: Apache-2.0
#include "performer/train/adam.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <cmath>
#include <optional>
#include <set>

#include "performer/base/error.h"

namespace performer::train {

Adam::Adam(std::vector<NamedParameter> parameters, const AdamOptions& options) : options_(options) {
  entries_.reserve(parameters.size());
  for (auto& parameter : parameters) {
    const at::Tensor value = parameter.value.detach();
    entries_.push_back({std::move(parameter), at::zeros_like(value), at::zeros_like(value)});
  }
}

void Adam::step(double learning_rate, double gradient_scale) {
  const c10::NoGradGuard no_grad;
  ++steps_;
  std::set<double> rates;
  for (const Entry& entry : entries_) rates.insert(entry.parameter.rate);
  for (const double rate : rates) {
    step_group(true, rate, learning_rate, gradient_scale);
    step_group(false, rate, learning_rate, gradient_scale);
  }
}

void Adam::step_group(bool decays, double rate, double learning_rate, double gradient_scale) {
  std::vector<at::Tensor> parameters, gradients, m, v;
  for (const Entry& entry : entries_) {
    const at::Tensor& gradient = entry.parameter.value.grad();
    if (entry.parameter.decays != decays || entry.parameter.rate != rate || !gradient.defined()) continue;
    parameters.push_back(entry.parameter.value);
    gradients.push_back(gradient);
    m.push_back(entry.m);
    v.push_back(entry.v);
  }
  if (parameters.empty()) return;
  // ATen's fused step scales the parameter by (1 - rate * decay) first, which is the same update.
  const std::vector<at::Tensor> steps(parameters.size(), at::scalar_tensor(steps_, at::kFloat));
  std::optional<at::Tensor> divisor;  // of gradients
  if (gradient_scale != 1 && gradients.front().scalar_type() == at::kDouble) {
    for (at::Tensor& gradient : gradients) gradient.mul_(gradient_scale);  // the divisor is too coarse
  } else if (gradient_scale != 1) {
    divisor = at::scalar_tensor(1 / gradient_scale, at::kFloat);
  }
  at::_fused_adamw_(parameters, gradients, m, v, {}, steps, rate * learning_rate, options_.beta1,
                    options_.beta2, decays ? options_.weight_decay : 0.0, options_.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false, divisor);
}

void Adam::zero_gradients() {
  for (Entry& entry : entries_) entry.parameter.value.mutable_grad().reset();
}

std::vector<at::Tensor> Adam::gradients() const {
  std::vector<at::Tensor> gradients;
  for (const Entry& entry : entries_) {
    const at::Tensor& gradient = entry.parameter.value.grad();
    if (gradient.defined()) gradients.push_back(gradient);
  }
  return gradients;
}

std::map<std::string, at::Tensor> Adam::state() const {
  std::map<std::string, at::Tensor> state{{"steps", at::scalar_tensor(steps_, at::kLong)}};
  for (const Entry& entry : entries_) {
    state[entry.parameter.name + ".m"] = entry.m;
    state[entry.parameter.name + ".v"] = entry.v;
  }
  return state;
}

void Adam::set_state(const std::map<std::string, at::Tensor>& state, const std::string& source) {
  const c10::NoGradGuard no_grad;
  const auto take = [&](const std::string& name, const at::Tensor& like) -> const at::Tensor& {
    const auto found = state.find(name);
    check<InputError>(found != state.end(), "{}: the optimizer state '{}' is missing", source, name);
    check<InputError>(found->second.sizes() == like.sizes(),
                      "{}: the optimizer state '{}' has shape {}, expected {}", source, name,
                      fmt::join(found->second.sizes(), "x"), fmt::join(like.sizes(), "x"));
    return found->second;
  };
  check<InputError>(state.size() == 2 * entries_.size() + 1,
                    "{}: the optimizer state has {} entries, expected {}: it belongs to another model",
                    source, state.size(), 2 * entries_.size() + 1);
  steps_ = take("steps", at::scalar_tensor(0, at::kLong)).item<int64_t>();
  for (Entry& entry : entries_) {
    entry.m.copy_(take(entry.parameter.name + ".m", entry.m));
    entry.v.copy_(take(entry.parameter.name + ".v", entry.v));
  }
}

double global_norm(const std::vector<at::Tensor>& tensors) {
  double sum = 0;
  for (const at::Tensor& tensor : tensors) {
    double norm = at::linalg_vector_norm(tensor).item<double>();
    // Squares overflow or vanish in float32 long before the values do; only then pay for a copy in double.
    if (tensor.scalar_type() != at::kDouble && !(norm > 1e-18 && norm < 1e18)) {
      norm = at::linalg_vector_norm(tensor.to(at::kDouble)).item<double>();
    }
    sum += norm * norm;
  }
  return std::sqrt(sum);
}

double clipping_scale(double norm, double max_norm) {
  return max_norm > 0 && norm >= max_norm && std::isfinite(norm) ? max_norm / norm : 1;
}

}  // namespace performer::train
