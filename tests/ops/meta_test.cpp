// SPDX-License-Identifier: Apache-2.0
// Shapes without data: every operator on meta tensors. Symbolic sizes are tested from Python (tests/install).
#include "performer/ops/dropout.h"
#include "performer/ops/feature_maps.h"
#include "tests/ops/feature_maps_cases.h"
#include "tests/ops/inputs.h"

namespace performer::ops::test {
namespace {

Tensor meta(const Tensor& x) {
  return x.defined() ? x.to(at::kMeta) : x;
}

void expect_like(const Tensor& got, const Tensor& expected, const char* what) {
  EXPECT_TRUE(got.is_meta()) << what;
  EXPECT_EQ(got.sizes(), expected.sizes()) << what;
  EXPECT_EQ(got.scalar_type(), expected.scalar_type()) << what;
}

void expect_like(const State& got, const State& expected) {
  expect_like(got.kv, expected.kv, "kv");
  expect_like(got.key_sum, expected.key_sum, "key_sum");
  expect_like(got.log_scale, expected.log_scale, "log_scale");
}

TEST(Meta, EveryMapHasTheShapesOfItsData) {
  for (const FeatureMapOptions& options : maps_test::all_cases()) {
    SCOPED_TRACE(maps_test::text(options));
    AttentionInputs in = random_call(2, 9, 9, 2, 4, 3);
    in.causal = in.return_state = true;
    const MapWeights weights = maps_test::weights_for(options, 2, 4);
    const MapStatistics s = maps_test::statistics_for_case(options, 2, 4);
    AttentionInputs shapes = in;
    for (Tensor* x : {&shapes.query, &shapes.key, &shapes.value}) *x = meta(*x);
    const MapWeights weight_shapes{meta(weights.projection), meta(weights.matrix), meta(weights.bias)};
    const MapStatistics statistic_shapes{meta(s.query_mean), meta(s.key_mean), meta(s.query_moment),
                                         meta(s.key_moment)};
    const auto [out, state] = mapped_attention(in, options, weights, s);
    const auto [out_shape, state_shape] = mapped_attention(shapes, options, weight_shapes, statistic_shapes);
    expect_like(out_shape, out, "out");
    expect_like(state_shape, state);
    const auto context = [](const AttentionInputs& x) { return KeyInputs{x.key, x.value}; };
    const State keys = key_state(context(shapes), options, weight_shapes, statistic_shapes);
    expect_like(keys, key_state(context(in), options, weights, s));
    expect_like(merge_states(keys, keys), state);
    State stream = keys;
    const auto token = [](const Tensor& x) { return x.select(1, 0); };
    expect_like(mapped_step(token(shapes.query), token(shapes.key), token(shapes.value), stream, options,
                            weight_shapes, statistic_shapes),
                token(out), "step");
    expect_like(stream, state);
  }
}

TEST(Meta, Dropout) {
  const Tensor x = at::randn({2, 3, 4}, at::kBFloat16);
  expect_like(dropout(meta(x), 0.5), x, "dropout");
  expect_like(dropout(meta(x), 0.5, TokenWindow{1, 5}), x, "dropout of a chunk");
}

}  // namespace
}  // namespace performer::ops::test
