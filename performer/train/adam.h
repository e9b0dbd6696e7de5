// SPDX-License-Identifier: Apache-2.0
// Adam with decoupled weight decay as in protein_lm (flax 0.3 optim/adam.py), and clipping by the global
// norm.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace performer::train {

struct AdamOptions {
  double beta1 = 0.9, beta2 = 0.98;
  double epsilon = 1e-9;  // added outside the square root
  double weight_decay = 0.1;
};

struct NamedParameter {
  std::string name;
  at::Tensor value;    // a leaf; its gradient is read by every step
  bool decays = true;  // false: exempt from weight decay
  double rate = 1;     // factor on the learning rate
};

// One step, t counting from 1, g the gradient, p the parameter before the step:
//   m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2
//   p <- p - rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon) - rate * weight_decay * p
class Adam {
 public:
  Adam(std::vector<NamedParameter> parameters, const AdamOptions& options);

  // Parameters that got no gradient stay as they are. Gradients are multiplied by `gradient_scale` first, in
  // the same pass, and left so.
  void step(double learning_rate, double gradient_scale = 1);
  void zero_gradients();  // drops them: the next backward pass writes instead of adding
  std::vector<at::Tensor> gradients() const;

  // Moments as "NAME.m" and "NAME.v" and the number of steps as "steps"; state() shares memory with the
  // optimizer.
  std::map<std::string, at::Tensor> state() const;
  // Throws InputError naming `source` and the first entry that is missing, unknown or of another shape.
  void set_state(const std::map<std::string, at::Tensor>& state, const std::string& source);

 private:
  struct Entry {
    NamedParameter parameter;
    at::Tensor m, v;
  };
  void step_group(bool decays, double rate, double learning_rate, double gradient_scale);

  AdamOptions options_;
  std::vector<Entry> entries_;
  int64_t steps_ = 0;
};

// Euclidean norm over all elements of all tensors; infinite only if the true norm exceeds a double's range,
// NaN if an element is NaN.
double global_norm(const std::vector<at::Tensor>& tensors);

// What gradients of this global norm are multiplied by: max_norm / norm when norm >= max_norm and finite,
// else 1 (max_norm 0: always 1).
double clipping_scale(double norm, double max_norm);

}  // namespace performer::train
