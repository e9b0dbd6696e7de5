// SPDX-License-Identifier: Apache-2.0
// Tensors as nobody would choose them: sizes of 0 and 1 and around the edges of blocks, unusual strides,
// magnitudes up to what docs/reliability.md promises, masks that hide everything. A draw is a function of its
// number, so that one that fails can be repeated alone.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace performer::hostile {

using at::Tensor;

// The magnitudes within which results are finite (docs/reliability.md): of queries and keys, which are 0 or
// at least `smallest`, of values, and of the product of values and output gradients. In float16 outputs are
// finite within the same magnitudes, but gradients often exceed its largest number.
struct Limits {
  double smallest = 0, inputs = 1e9, values = 1e30, gradients = 1e12;
};
constexpr Limits kSoftmaxLimits{};
constexpr Limits kExactLimits{0, 1e3, 1e30, 1e12};  // of LibTorch's own attention
constexpr Limits kElementwiseLimits{1e-3, 1e3, 1e12, 1e12};
constexpr Limits kVanishingLimits{1e-3, 1, 1e12, 1};  // of functions that fall as exp(x): elu+1 and sigmoid
constexpr Limits kHalfLimits{1e-3, 1, 4, 1e-4};       // within which gradients fit into float16

// As large as numbers get: results may be infinite or NaN, but nothing else may happen.
constexpr Limits kNoLimits{0, 3.4e38, 3.4e38, 3.4e38};

// A tensor to differentiate by, and the view of it that a call is given.
struct Laid {
  Tensor leaf, view;
};

// How many draws the tests make, and from which on.
inline int64_t number_from(const char* variable, int64_t otherwise) {
  const char* text = std::getenv(variable);
  return text != nullptr ? std::strtoll(text, nullptr, 10) : otherwise;
}
inline int64_t first_draw() {
  return number_from("PERFORMER_HOSTILE_FIRST", 0);
}
inline int64_t draws(int64_t otherwise) {
  return number_from("PERFORMER_HOSTILE_DRAWS", otherwise);
}

// Within one thread: the tensors are small, and threads that wait for each other take most of the time.
class OneThread {
 public:
  OneThread() { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(before_); }
  OneThread(const OneThread&) = delete;

 private:
  int before_ = at::get_num_threads();
};

inline double largest_of(at::ScalarType type) {
  return type == at::kHalf ? 65504.0 : std::numeric_limits<float>::max();
}

// What rounding may add to numbers that lie below the normal ones.
inline double tiniest_of(at::ScalarType type) {
  return type == at::kHalf ? 1e-6 : 1e-40;
}

class Draw {
 public:
  explicit Draw(int64_t number) : random_(static_cast<uint64_t>(number) * 0x9E3779B97F4A7C15u + 1) {
    torch::manual_seed(static_cast<uint64_t>(number));
  }

  template <class T>
  T pick(const std::vector<T>& choices) {
    return choices[random_() % choices.size()];
  }
  bool chance(double probability) { return std::generate_canonical<double, 32>(random_) < probability; }
  int64_t up_to(int64_t largest) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(largest + 1));
  }

  at::ScalarType type() {
    return pick<at::ScalarType>({at::kFloat, at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  }
  int64_t tokens() {
    return pick<int64_t>({0, 1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 193});
  }
  int64_t size() { return pick<int64_t>({1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33}); }

  // Numbers of at most `largest`, or 0, and at least `smallest` in magnitude.
  Tensor values(at::IntArrayRef shape, at::ScalarType type, double smallest, double largest) {
    const double top = std::min(largest, largest_of(type)),
                 bottom = std::max(smallest, type == at::kHalf ? 6e-8 : 1e-42);
    const auto exact = at::TensorOptions(at::kDouble);
    const auto signs = [&] { return at::randint(0, 2, shape, exact) * 2 - 1; };
    const auto spread = [&] {  // evenly over the orders of magnitude
      return (at::rand(shape, exact) * (std::log(top) - std::log(bottom)) + std::log(bottom)).exp() * signs();
    };
    Tensor x;
    switch (up_to(7)) {
      case 0:
        x = at::zeros(shape, exact);
        break;
      case 1:
        x = at::full(shape, top, exact) * (chance(0.5) ? 1 : -1);
        break;
      case 2:
        x = signs() * top;
        break;
      case 3:
        x = spread();
        break;
      case 4:
        x = spread() * at::randint(0, 2, shape, exact);
        break;
      case 5:
        x = signs() * bottom;
        break;
      case 6:
        x = at::where(at::rand(shape, exact) < 0.05, signs() * top, clipped(at::randn(shape, exact), bottom));
        break;
      default:
        x = clipped(at::randn(shape, exact), bottom);
    }
    return x.clamp(-top, top).to(type);
  }

  // [B, T, H, size] in one of several layouts.
  Laid laid(const std::vector<int64_t>& shape, at::ScalarType type, double smallest, double largest) {
    const int64_t b = shape[0], t = shape[1], h = shape[2], d = shape[3];
    const auto leaf_of = [&](const std::vector<int64_t>& whole) {
      return values(whole, type, smallest, largest);
    };
    Laid x;
    const auto set = [&](const Tensor& leaf) { return x.leaf = leaf.requires_grad_(true); };
    switch (up_to(6)) {
      case 0:
        x.view = set(leaf_of({b, h, t, d})).transpose(1, 2);
        break;
      case 1:
        x.view = set(leaf_of({b, t, h, 2 * d})).slice(3, 0, 2 * d, 2);
        break;
      case 2:
        x.view = set(leaf_of({chance(0.5) ? 1 : b, chance(0.5) ? 1 : t, 1, d})).expand(shape);
        break;
      case 3:
        x.view = set(leaf_of({b + 1, t + 3, h + 2, d + 5}))
                     .narrow(0, 1, b)
                     .narrow(1, 2, t)
                     .narrow(2, 1, h)
                     .narrow(3, 3, d);
        break;
      case 4: {
        const int64_t row = d + 61, token = h * row + 257, batch = t * token + 13;
        set(at::empty_strided(shape, {batch, token, row, 1}, at::TensorOptions(type)).copy_(leaf_of(shape)));
        x.view = x.leaf;
        break;
      }
      case 5:
        x.view = set(leaf_of({d, t, h, b})).permute({3, 1, 2, 0});
        break;
      default:
        x.view = set(leaf_of(shape));
    }
    return x;
  }

  // Bool [B, T], true keeps; nothing: no mask.
  std::optional<Tensor> mask(int64_t batch, int64_t count) {
    const auto options = at::TensorOptions(at::kBool);
    const std::vector<int64_t> shape{batch, count};
    switch (up_to(6)) {
      case 0:
        return at::ones(shape, options);
      case 1:
        return at::zeros(shape, options);
      case 2:
        return at::rand(shape) < 0.5;
      case 3:
        return (at::rand({batch, 1}) < 0.5).expand(shape);  // whole sequences
      case 4:
        return at::arange(count).ge(count / 2).expand(shape);  // the first half hidden
      default:
        return std::nullopt;
    }
  }

  // Bounds of packed segments that cover `count` tokens, empty ones among them.
  Tensor bounds(int64_t count, int64_t segments) {
    std::vector<int64_t> cuts = {0, count};
    for (int64_t n = 1; n < segments; ++n) cuts.push_back(chance(0.3) ? cuts.back() : up_to(count));
    std::sort(cuts.begin(), cuts.end());
    return at::tensor(cuts, at::kLong);
  }

 private:
  static Tensor clipped(const Tensor& x, double bottom) {
    return at::where(x.abs() < bottom, at::full_like(x, bottom), x);
  }

  std::mt19937_64 random_;
};

inline bool finite(const Tensor& x) {
  return !x.defined() || x.numel() == 0 || x.isfinite().all().item<bool>();
}

}  // namespace performer::hostile
