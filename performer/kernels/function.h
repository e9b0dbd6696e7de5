// SPDX-License-Identifier: Apache-2.0
// The element-wise functions g of generalised attention and their derivatives, by definition.
#pragma once

#include <cmath>
#include <numbers>

#include "performer/kernels/favor.h"

namespace performer::kernels {

inline constexpr double kLeakySlope = 0.01;  // leaky-relu below 0, as in the frameworks of the references

template <class T>
T apply_function(Function function, T u) {
  switch (function) {
    case Function::relu:
      return u > 0 ? u : T(0);
    case Function::elu1:
      return u > 0 ? u + 1 : std::exp(u);
    case Function::square:
      return u * u;
    case Function::abs:
      return std::abs(u);
    case Function::requ:
      return u > 0 ? u * u : T(0);
    case Function::gelu:
      return u * std::erfc(-u * std::numbers::sqrt2_v<T> / 2) / 2;
    case Function::sigmoid:
      return 1 / (1 + std::exp(-u));
    case Function::tanh:
      return std::tanh(u);
    case Function::cos:
      return std::cos(u);
    case Function::sin:
      return std::sin(u);
    case Function::identity:
      return u;
    case Function::exp:
      return std::exp(u);
    case Function::leaky_relu:
      return u > 0 ? u : T(kLeakySlope) * u;
  }
  return 0;
}

// relu'(0) = abs'(0) = 0 and leaky-relu'(0) = its slope below 0, as in the references.
template <class T>
T function_derivative(Function function, T u) {
  switch (function) {
    case Function::relu:
      return u > 0 ? T(1) : T(0);
    case Function::elu1:
      return u > 0 ? T(1) : std::exp(u);
    case Function::square:
      return 2 * u;
    case Function::abs:
      return u > 0 ? T(1) : u < 0 ? T(-1) : T(0);
    case Function::requ:
      return u > 0 ? 2 * u : T(0);
    case Function::gelu: {
      const T density = std::exp(-u * u / 2) * std::numbers::inv_sqrtpi_v<T> / std::numbers::sqrt2_v<T>;
      return std::erfc(-u * std::numbers::sqrt2_v<T> / 2) / 2 + u * density;
    }
    case Function::sigmoid: {
      const T s = apply_function(function, u);
      return s * (1 - s);
    }
    case Function::tanh: {
      const T t = std::tanh(u);
      return 1 - t * t;
    }
    case Function::cos:
      return -std::sin(u);
    case Function::sin:
      return std::cos(u);
    case Function::identity:
      return 1;
    case Function::exp:
      return std::exp(u);
    case Function::leaky_relu:
      return u > 0 ? T(1) : T(kLeakySlope);
  }
  return 0;
}

}  // namespace performer::kernels
