// SPDX-License-Identifier: Apache-2.0
// Running the same computation twice: same random numbers, same autocast setting.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace performer::nn {

// Remembers the state of the default generator of a device and its autocast setting as they are now.
class Replay {
 public:
  explicit Replay(at::Device device);

  // body() as the first run: under the remembered autocast setting, but without autocast's cache of cast
  // weights: one filled without gradients would be met again with them, one filled in a backward pass would
  // outlive it. Draws go on from where they are.
  at::Tensor first(const std::function<at::Tensor()>& body) const;
  // body() with the numbers and the setting of the first run; generator and setting are put back afterwards.
  at::Tensor again(const std::function<at::Tensor()>& body) const;

 private:
  at::Device device_;
  at::Tensor generator_;
  bool autocast_;
  at::ScalarType autocast_type_;
};

}  // namespace performer::nn
