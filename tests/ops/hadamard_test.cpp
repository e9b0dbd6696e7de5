// SPDX-License-Identifier: Apache-2.0
// Hadamard projections in the operators: their factors are found where that pays, and change rounding only.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "performer/ops/favor/call.h"
#include "performer/ops/feature_maps.h"
#include "performer/ops/projection.h"
#include "tests/ops/inputs.h"

namespace performer::ops::test::hadamard_test {
namespace {

Tensor hadamard(int64_t heads, int64_t features, int64_t d, int64_t redraw = 0) {
  return draw_projection("hadamard", "chi", heads, features, d, 1, 2, redraw);
}

Call call_of(const AttentionInputs& in, const Tensor& projection) {
  Arguments arguments{in.query, in.key, in.value};
  arguments.projection = projection;
  arguments.family = "exponential";
  return Call(arguments);
}

TEST(HadamardOperators, FactorsAreFoundWhereTheyPay) {
  const AttentionInputs in = random_call(2, 300, 300, 3, 64, 8);
  const Tensor rows = hadamard(3, 150, 64);
  EXPECT_EQ(projection_factors(call_of(in, rows)).sizes(), at::IntArrayRef({1, 3, 2, 4, 64}));
  EXPECT_EQ(projection_factors(call_of(in, rows[1])).sizes(), at::IntArrayRef({1, 1, 2, 4, 64}));
  // One for each sequence: too few tokens for each.
  EXPECT_FALSE(projection_factors(call_of(in, at::stack({rows, rows}))).defined());
  const AttentionInputs longer = random_call(2, 600, 600, 3, 64, 8);
  EXPECT_EQ(projection_factors(call_of(longer, at::stack({rows, rows}))).sizes(),
            at::IntArrayRef({2, 3, 2, 4, 64}));
  EXPECT_FALSE(projection_factors(call_of(random_call(1, 20, 20, 3, 64, 8), rows)).defined());
  EXPECT_FALSE(projection_factors(call_of(in, rows.narrow(1, 0, 60))).defined());  // less than a block
  EXPECT_FALSE(projection_factors(call_of(in, {})).defined());
  EXPECT_FALSE(
      projection_factors(call_of(in, draw_projection("orthogonal", "chi", 3, 128, 64, 1, 2, 3))).defined());
  Tensor mixed = rows.clone();  // one head that is another kind is enough
  mixed[2].copy_(draw_projection("orthogonal", "chi", 1, 150, 64, 1, 2, 3)[0]);
  EXPECT_FALSE(projection_factors(call_of(in, mixed)).defined());
}

struct Results {
  Tensor out, dq, dk, dv;
};

// With gradients, by the operator; in double it has the dense matrix.
Results attend(AttentionInputs in, const FeatureMap& map, at::ScalarType type) {
  std::vector<Tensor> leaves;
  for (Tensor* x : {&in.query, &in.key, &in.value}) {
    *x = x->to(type).detach().requires_grad_(true);
    leaves.push_back(*x);
  }
  const Tensor out = std::get<0>(favor_attention(in, map));
  const Tensor weights = at::linspace(-1, 1, out.numel()).view(out.sizes()).to(type);
  const auto grads = torch::autograd::grad({out}, leaves, {weights});
  return {out.detach(), grads[0], grads[1], grads[2]};
}

double relative(const Tensor& found, const Tensor& expected) {
  return ((found.to(at::kDouble) - expected).norm() / expected.norm()).item<double>();
}

TEST(HadamardOperators, ChangeRoundingOnly) {
  for (const int64_t d : {32, 64}) {
    Tensor rows = hadamard(2, 2 * d + 10, d);
    // Functions with a continuous derivative: that of relu jumps where rounding changes a sign.
    for (const char* family : {"exponential", "elu+1", "trigonometric"}) {
      for (const bool causal : {false, true}) {
        AttentionInputs in = random_call(2, 300, 300, 2, d, 16, 0.5);
        // The same values in all types.
        for (Tensor* x : {&in.query, &in.key, &in.value}) *x = x->to(at::kBFloat16).to(at::kFloat);
        in.causal = causal;
        FeatureMap map;
        map.family = family;
        map.scale = std::pow(static_cast<double>(d), -0.25);
        if (map.family == "trigonometric") map.norm_weight = -0.5;
        if (map.family == "elu+1") map.epsilon = 0.1;
        map.projection = rows;
        for (const int64_t redraw : {0, 1}) {
          rows.copy_(hadamard(2, 2 * d + 10, d, redraw));
          const Results exact = attend(in, map, at::kDouble);
          for (const auto& [type, bound] : {std::pair{at::kFloat, 2e-5}, {at::kBFloat16, 2e-2}}) {
            const Results found = attend(in, map, type);
            const std::string text = fmt::format("{} {} {} {}", family, causal, d, c10::toString(type));
            EXPECT_LT(relative(found.out, exact.out), bound) << text;
            EXPECT_LT(relative(found.dq, exact.dq), bound) << text;
            EXPECT_LT(relative(found.dk, exact.dk), bound) << text;
            EXPECT_LT(relative(found.dv, exact.dv), bound) << text;
          }
        }
      }
    }
  }
}

// Steps are given the factors, and multiply by transforms: the results differ in rounding.
TEST(HadamardOperators, StepsTakeThem) {
  constexpr int64_t kBatch = 3, kHeads = 2, kSize = 64;
  const Tensor rows = hadamard(kHeads, 2 * kSize + 10, kSize);
  for (const char* family : {"exponential", "elu+1", "trigonometric"}) {
    const AttentionInputs in = random_call(kBatch, 5, 5, kHeads, kSize, 16, 0.5);
    FeatureMap map;
    map.family = family;
    map.scale = std::pow(static_cast<double>(kSize), -0.25);
    if (map.family == "trigonometric") map.norm_weight = -0.5;
    map.projection = rows;
    FeatureMap structured = map;
    structured.factors = hadamard_factors(rows);
    ASSERT_EQ(structured.factors->sizes(), at::IntArrayRef({kHeads, 2, 4, kSize}));
    const int64_t features =
        (map.family == "trigonometric" ? 2 : 1) * rows.size(1) + (map.family == "trigonometric");
    State dense = empty_state(kBatch, kHeads, features, 16, family, in.query.options());
    State fast{dense.kv.clone(), dense.key_sum.clone(), dense.log_scale.clone()};
    bool differs = false;
    for (int64_t t = 0; t < 5; ++t) {
      const auto token = [&](const Tensor& x) { return x.select(1, t); };
      const Tensor expected = favor_step(token(in.query), token(in.key), token(in.value), dense, map);
      const Tensor found = favor_step(token(in.query), token(in.key), token(in.value), fast, structured);
      EXPECT_LT(relative(found, expected.to(at::kDouble)), 2e-5) << family << " token " << t;
      differs |= !found.equal(expected);
    }
    EXPECT_LT(relative(fast.kv, dense.kv.to(at::kDouble)), 2e-5) << family;
    EXPECT_TRUE(differs) << family << ": the factors were not used";
  }
}

TEST(HadamardOperators, FactorsOfAnotherShapeAreRefused) {
  const Tensor rows = hadamard(2, 128, 64), token = at::zeros({1, 2, 64}), value = at::zeros({1, 2, 8});
  FeatureMap map;
  map.projection = rows;
  map.factors = hadamard_factors(hadamard(2, 192, 64));
  State state = empty_state(1, 2, 128, 8, "exponential", token.options());
  EXPECT_THROW(favor_step(token, token, value, state, map), c10::ValueError);
  map.projection.reset();
  EXPECT_THROW(favor_step(token, token, value, state, map), c10::ValueError);
}

// Rows and their negatives, and rows of other lengths, have factors too.
TEST(HadamardOperators, HyperbolicMapsHaveThem) {
  const FeatureMapOptions options{.map = "hyperbolic", .features = 256, .projection = "hadamard"};
  MapWeights weights;
  weights.projection = draw_map_projection(options, 2, 64, 1, 0, 0);
  const AttentionInputs in = random_call(2, 300, 300, 2, 64, 16);
  const PreparedMap prepared = prepare_feature_map(options, weights, {}, 2, 64);
  EXPECT_TRUE(projection_factors(call_of(in, *prepared.map.projection)).defined());
}

}  // namespace
}  // namespace performer::ops::test::hadamard_test
