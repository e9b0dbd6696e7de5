// SPDX-License-Identifier: Apache-2.0
// The fused parts of a block against the LibTorch operations that they stand for, in double.
#include "performer/ops/block.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <functional>
#include <vector>

#include "performer/ops/composed.h"
#include "performer/ops/linear.h"

namespace performer::ops {
namespace {

using Tensors = std::vector<at::Tensor>;
using Function = std::function<at::Tensor(const Tensors&)>;

// The result and the gradients of all inputs, for a gradient of the result that depends on nothing else.
Tensors outcome(const Function& function, const Tensors& inputs, uint64_t seed) {
  Tensors leaves;
  for (const at::Tensor& input : inputs) {
    if (input.defined()) leaves.push_back(input.detach().clone().requires_grad_());
  }
  at::manual_seed(seed);  // the same dropout
  const at::Tensor result = function(leaves);
  auto generator = at::detail::createCPUGenerator(5);
  // Of values that every type has, so that only what is tested is rounded.
  const at::Tensor gradient = at::randn(result.sizes(), generator).to(at::kBFloat16);
  Tensors all{result.detach()};
  for (const at::Tensor& each : torch::autograd::grad({result}, leaves, {gradient.to(result.scalar_type())}))
    all.push_back(each);
  return all;
}

// `fused` of inputs in `types` against `plain` of the same values in double, relative to the largest value.
void compare(const Function& fused, const Function& plain, const Tensors& inputs,
             const std::vector<at::ScalarType>& types, double tolerance, const std::string& what) {
  Tensors given, exact;
  for (size_t i = 0; i < inputs.size(); ++i) {
    given.push_back(inputs[i].to(types[i]));
    exact.push_back(given.back().to(at::kDouble));
  }
  const Tensors found = outcome(fused, given, 7), expected = outcome(plain, exact, 7);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    if (i > 0) {
      EXPECT_EQ(found[i].scalar_type(), types[i - 1]) << what << ", gradient " << i;
    }
    const double scale = std::max(1.0, expected[i].abs().max().item<double>());
    const double error = (found[i].to(at::kDouble) - expected[i]).abs().max().item<double>();
    EXPECT_LE(error, tolerance * scale) << what << (i == 0 ? ", result" : ", gradient ") << i;
  }
}

// Widths around vectors and the blocks of a mask, and one beyond the pieces that masks are made in.
const std::vector<std::vector<int64_t>> kShapes = {{2, 3, 1},   {1, 70, 24},  {3, 5, 33},
                                                   {2, 41, 64}, {1, 3, 1100}, {300, 48}};

struct Precision {
  at::ScalarType type;
  double tolerance;
};
// bfloat16 results and gradients are rounded once: 2^-9 of their value. Sums over rows are in float32.
const std::vector<Precision> kPrecisions = {{at::kFloat, 2e-5}, {at::kBFloat16, 0x1p-8}};

TEST(Activate, IsBiasActivationAndDropout) {
  for (const auto& shape : kShapes) {
    for (const char* name : {"gelu-tanh", "relu", "gelu"}) {
      for (const double p : {0.0, 0.3}) {
        for (const auto& [type, tolerance] : kPrecisions) {
          at::manual_seed(1);
          compare([&](const Tensors& x) { return activate(name, x[0], x[1], {p}); },
                  [&](const Tensors& x) { return dropout(activation(name, x[0] + x[1]), p); },
                  {at::randn(shape) * 3, at::randn({shape.back()})}, {type, at::kFloat},
                  // The exact GELU is composed and rounds between its steps.
                  std::string(name) == "gelu" ? 4 * tolerance : tolerance, name);
        }
      }
    }
  }
}

TEST(Activate, IsFiniteFarOut) {
  const at::Tensor x = at::tensor({-1e30f, -1e10f, -40.0f, 40.0f, 1e10f, 1e30f}).requires_grad_();
  const at::Tensor y = activate("gelu-tanh", x, at::zeros({6}), {});
  y.sum().backward();
  EXPECT_TRUE(at::equal(y, at::relu(x))) << y;
  EXPECT_TRUE(at::equal(x.grad(), at::tensor({0.0f, 0.0f, 0.0f, 1.0f, 1.0f, 1.0f}))) << x.grad();
  const at::Tensor nan = at::full({1}, std::nanf(""));
  for (const char* name : {"gelu-tanh", "relu"})
    EXPECT_TRUE(activate(name, nan, at::zeros({1}), {}).isnan().item<bool>());
}

TEST(AddBranch, IsResidualBiasAndDropout) {
  for (const auto& shape : kShapes) {
    for (const double p : {0.0, 0.3}) {
      for (const auto& [type, tolerance] : kPrecisions) {
        at::manual_seed(1);
        const at::Tensor x = at::randn(shape), branch = at::randn(shape), bias = at::randn({shape.back()});
        compare([&](const Tensors& t) { return add_branch(t[0], t[1], t[2], {p}); },
                [&](const Tensors& t) { return t[0] + dropout(t[1] + t[2], p); }, {x, branch, bias},
                {at::kFloat, type, at::kFloat}, tolerance, "with bias");
        compare([&](const Tensors& t) { return add_branch(t[0], t[1], {}, {p}); },
                [&](const Tensors& t) { return t[0] + dropout(t[1], p); }, {x, branch}, {at::kFloat, type},
                tolerance, "without bias");
      }
    }
  }
}

TEST(LayerNorm, IsThatOfLibTorch) {
  for (const auto& shape : kShapes) {
    if (shape.back() == 1) continue;  // its exact gradient is zero
    for (const auto& [type, tolerance] : kPrecisions) {
      at::manual_seed(1);
      const int64_t width = shape.back();
      compare([&, to = type](const Tensors& t) { return layer_norm(t[0], t[1], t[2], 1e-6, to); },
              [&, to = type](const Tensors& t) { return at::layer_norm(t[0], {width}, t[1], t[2], 1e-6); },
              {at::randn(shape) * 2 + 1, at::randn({width}), at::randn({width})},
              {at::kFloat, at::kFloat, at::kFloat}, type == at::kFloat ? tolerance : 4 * tolerance, "norm");
    }
  }
}

// Of a whole batch and of its chunks put together.
TEST(Dropping, OfChunksIsThatOfTheBatch) {
  const at::Tensor x = at::randn({3, 37, 40}) + 5, bias = at::ones({40});
  const auto of = [&](const at::Tensor& part, const Dropping& dropping) {
    at::manual_seed(3);
    const at::Tensor active = activate("relu", part, bias, dropping);
    return at::cat({active, add_branch(part, part, bias, dropping)}, -1);
  };
  Tensors parts;
  for (int64_t begin = 0; begin < 37; begin += 9) {
    const int64_t size = std::min<int64_t>(9, 37 - begin);
    parts.push_back(of(x.narrow(1, begin, size), {0.4, {begin, 37}}));
  }
  EXPECT_TRUE(at::equal(at::cat(parts, 1), of(x, {0.4})));
}

TEST(Dropping, RefusesWhatIsNoProbability) {
  const at::Tensor x = at::ones({2, 3}), bias = at::ones({3});
  for (const double p : {1.0, -0.1}) {
    EXPECT_THROW(activate("relu", x, bias, {p}), c10::ValueError);
    EXPECT_THROW(add_branch(x, x, bias, {p}), c10::ValueError);
  }
}

// Sums over rows are made in parts of fixed size.
TEST(Block, GradientsDoNotDependOnTheNumberOfThreads) {
  const at::Tensor x = at::randn({700, 96}), bias = at::randn({96});
  const auto on = [&](int threads) {
    at::set_num_threads(threads);
    Tensors all =
        outcome([](const Tensors& t) { return activate("gelu-tanh", t[0], t[1], {0.2}); }, {x, bias}, 3);
    for (const at::Tensor& each : outcome(
             [](const Tensors& t) { return layer_norm(t[0], t[1], t[1], 1e-6, at::kFloat); }, {x, bias}, 3))
      all.push_back(each);
    return all;
  };
  const int before = at::get_num_threads();
  const Tensors one = on(1), three = on(3);
  at::set_num_threads(before);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], three[i])) << i;
}

at::Tensor turned(const at::Tensor& x, const at::Tensor& table) {
  const at::Tensor pairs = x.unflatten(-1, {x.size(-1) / 2, 2}).contiguous();
  return at::view_as_real(at::view_as_complex(pairs) * table).flatten(-2);
}

TEST(SplitProjection, TurnsQueriesAndKeysAndTheirGradientsBack) {
  for (const int64_t size : {2, 6, 24, 64, 80}) {
    for (const bool rotary : {true, false}) {
      for (const auto& [type, tolerance] : kPrecisions) {
        at::manual_seed(1);
        const int64_t heads = 3;
        const at::Tensor angle = at::randn({2, 70, 1, size / 2}, at::kDouble);
        const at::Tensor table = at::complex(angle.cos(), angle.sin());
        const auto join = [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
          return at::cat({q, k * 2, v * 3}, -1);
        };
        compare(
            [&](const Tensors& t) {  // what is overwritten must be no leaf
              const auto parts =
                  split_projection(t[0] * 1, rotary ? table.to(at::kComplexFloat) : at::Tensor(), heads);
              return join(parts.query, parts.key, parts.value);
            },
            [&](const Tensors& t) {
              const Tensors parts = t[0].unflatten(-1, {3, heads, size}).unbind(2);
              return rotary ? join(turned(parts[0], table), turned(parts[1], table), parts[2])
                            : join(parts[0], parts[1], parts[2]);
            },
            {at::randn({2, 70, 3 * heads * size})}, {type}, 2 * tolerance, "heads");
      }
    }
  }
}

TEST(SplitProjection, SaysWhatItCannotSplit) {
  EXPECT_THROW(split_projection(at::ones({2, 3, 10}), {}, 2), c10::ValueError);
  EXPECT_THROW(split_projection(at::ones({2, 3, 12}, at::kDouble), {}, 2), c10::ValueError);
}

TEST(Linear, IsThatOfLibTorchWhateverComputesIt) {
  for (const bool large : {false, true}) {
    const int64_t tokens = large ? 300 : 5;
    for (const bool bias : {true, false}) {
      at::manual_seed(1);
      Tensors inputs{at::randn({2, tokens, 256}), at::randn({384, 256}) / 16};
      if (bias) inputs.push_back(at::randn({384}));
      const std::vector<at::ScalarType> types(inputs.size(), at::kFloat);
      const auto third = [](const Tensors& t) { return t.size() > 2 ? t[2] : at::Tensor(); };
      compare([&](const Tensors& t) { return linear(t[0], t[1], third(t)); },
              [&](const Tensors& t) { return at::linear(t[0], t[1], third(t)); }, inputs, types, 1e-5,
              large ? "large" : "small");
    }
  }
}

}  // namespace
}  // namespace performer::ops
