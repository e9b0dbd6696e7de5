// SPDX-License-Identifier: Apache-2.0
// The algebra of states: merge_states and key_state.
#include <gmock/gmock.h>

#include "performer/ops/feature_maps.h"
#include "tests/ops/feature_maps_cases.h"
#include "tests/ops/inputs.h"

namespace performer::ops::test {
namespace {

using ::testing::HasSubstr;

KeyInputs keys_of(const AttentionInputs& in, int64_t first, int64_t last, const char* backend = "") {
  KeyInputs keys{in.key.slice(1, first, last), in.value.slice(1, first, last)};
  keys.backend = backend;
  return keys;
}

double relative_gap(const State& a, const State& b) {
  const Tensor expected = true_sums(b);
  return gap(true_sums(a), expected) / expected.abs().max().item<double>();
}

TEST(States, MergeOfTheHalvesIsTheWhole) {
  for (const FeatureMap& map : some_maps(2, 6, 10)) {
    for (const double deviation : {0.5, 3.0}) {
      const AttentionInputs in = random_call(2, 1, 50, 2, 6, 5, deviation, at::kDouble);
      const State whole = key_state(keys_of(in, 0, 50), map);
      const State merged =
          merge_states(key_state(keys_of(in, 0, 17), map), key_state(keys_of(in, 17, 50), map));
      EXPECT_LT(gap(merged.kv, whole.kv), 1e-11) << map.family;
      EXPECT_LT(gap(merged.key_sum, whole.key_sum), 1e-11);
      EXPECT_LT(gap(merged.log_scale, whole.log_scale), 1e-12);
    }
  }
}

// The scales of the parts are hundreds apart: the smaller part vanishes and nothing overflows.
TEST(States, MergeIsAssociativeAndCommutativeAtAnyScale) {
  for (const FeatureMap& map : some_maps(2, 6, 10)) {
    std::vector<State> parts;
    for (int64_t i = 0; i < 3; ++i) {
      AttentionInputs in = random_call(1, 1 + i, 20, 2, 6, 5, i == 1 ? 30.0 : 0.7, at::kDouble);
      parts.push_back(key_state(keys_of(in, 0, 20), map));
    }
    const State left = merge_states(merge_states(parts[0], parts[1]), parts[2]),
                right = merge_states(parts[0], merge_states(parts[1], parts[2])),
                turned = merge_states(merge_states(parts[1], parts[0]), parts[2]);
    for (const State* other : {&right, &turned}) {
      const double size = left.kv.abs().max().item<double>();
      EXPECT_LT(gap(left.kv, other->kv), 1e-13 * size) << map.family;
      EXPECT_LT(gap(left.key_sum, other->key_sum), 1e-13 * size);
      EXPECT_EQ(gap(left.log_scale, other->log_scale), 0);
    }
    EXPECT_TRUE(left.kv.isfinite().all().item<bool>());
  }
}

TEST(States, AnEmptyStateChangesNothing) {
  for (const FeatureMap& map : some_maps(2, 6, 10)) {
    const AttentionInputs in = random_call(2, 1, 20, 2, 6, 5);
    const State state = key_state(keys_of(in, 0, 20), map);
    const State empty = empty_state(2, 2, feature_count_of(map, 6), 5, map.family, in.key.options());
    for (const State& merged : {merge_states(state, empty), merge_states(empty, state)}) {
      EXPECT_TRUE(at::equal(merged.kv, state.kv)) << map.family;
      EXPECT_TRUE(at::equal(merged.key_sum, state.key_sum));
      EXPECT_TRUE(at::equal(merged.log_scale, state.log_scale));
    }
    const State none = key_state(keys_of(in, 0, 0), map), both = merge_states(empty, empty);
    for (const State& s : {none, both}) {
      EXPECT_TRUE(at::equal(s.kv, empty.kv)) << map.family;
      EXPECT_TRUE(at::equal(s.key_sum, empty.key_sum));
      EXPECT_TRUE(at::equal(s.log_scale, empty.log_scale));
    }
  }
}

TEST(States, QueriesOfAKeyStateSeeAllOfTheKeys) {
  for (const FeatureMap& map : some_maps(2, 6, 10)) {
    for (const char* backend : {"cpu", "composed"}) {
      for (const bool packed : {false, true}) {
        AttentionInputs in = random_call(packed ? 1 : 2, 12, 30, 2, 6, 5, 1, at::kDouble);
        in.backend = backend;
        in.key_mask = at::rand({in.key.size(0), 30}).lt(0.7);
        KeyInputs keys = keys_of(in, 0, 30, backend);
        keys.key_mask = in.key_mask;
        AttentionInputs asked{in.query, in.key.narrow(1, 0, 0), in.value.narrow(1, 0, 0)};
        asked.backend = backend;
        if (packed) {
          in.cu_query = asked.cu_query = at::tensor(std::vector<int64_t>{0, 4, 4, 12}, at::kLong);
          in.cu_key = keys.cu_key = at::tensor(std::vector<int64_t>{0, 9, 20, 30}, at::kLong);
          asked.cu_key = at::zeros({4}, at::kLong);
        }
        asked.initial = key_state(keys, map);
        EXPECT_LT(gap(std::get<0>(favor_attention(asked, map)), std::get<0>(favor_attention(in, map))), 1e-12)
            << map.family << backend << packed;
      }
    }
  }
}

TEST(States, KeyStatesGoOnFromAnInitialState) {
  const FeatureMap map = softmax_features(2, 6, 10);
  const AttentionInputs in = random_call(2, 1, 30, 2, 6, 5);
  KeyInputs rest = keys_of(in, 11, 30);
  rest.initial = key_state(keys_of(in, 0, 11), map);
  EXPECT_LT(relative_gap(key_state(rest, map), key_state(keys_of(in, 0, 30), map)), 1e-6);
}

TEST(States, Gradcheck) {
  for (const FeatureMap& map : some_maps(2, 3, 4)) {
    const AttentionInputs in = random_call(1, 2, 5, 2, 3, 2, 0.7, at::kDouble);
    const AttentionInputs more = random_call(1, 2, 4, 2, 3, 2, 0.7, at::kDouble);
    const State other = key_state(keys_of(more, 0, 4), map);
    expect_gradients({in.query, in.key, in.value, other.kv, other.key_sum}, [&](const auto& x) {
      const State context = merge_states(key_state({x[1], x[2]}, map), State{x[3], x[4], other.log_scale});
      AttentionInputs asked{x[0], x[1].narrow(1, 0, 0), x[2].narrow(1, 0, 0)};
      asked.initial = context;
      return std::get<0>(favor_attention(asked, map)).sin().sum();
    });
  }
}

TEST(States, EveryMapHasAKeyState) {
  using namespace maps_test;  // NOLINT(google-build-using-namespace): the cases of the other tests
  for (const FeatureMapOptions& options : maps_test::all_cases()) {
    SCOPED_TRACE(text(options));
    AttentionInputs in = random_call(2, 7, 15, 2, 4, 3, 0.7, at::kDouble);
    const MapWeights weights = weights_for(options, 2, 4, at::kDouble);
    const MapStatistics statistics = statistics_for_case(options, 2, 4);
    in.key_mask = at::ones({2, 15}, at::kBool);
    in.key_mask->slice(1, 3, 6).fill_(false);
    KeyInputs keys{in.key, in.value};
    keys.key_mask = in.key_mask;
    AttentionInputs asked{in.query, in.key.narrow(1, 0, 0), in.value.narrow(1, 0, 0)};
    asked.initial = key_state(keys, options, weights, statistics);
    const Tensor expected = std::get<0>(mapped_attention(in, options, weights, statistics));
    EXPECT_LT(test::gap(std::get<0>(mapped_attention(asked, options, weights, statistics)), expected), 1e-11);
    asked.initial = key_state(keys, prepare_feature_map(options, weights, statistics, 2, 4));
    EXPECT_LT(test::gap(std::get<0>(mapped_attention(asked, options, weights, statistics)), expected), 1e-11);
  }
}

TEST(States, ErrorsNameTheShapes) {
  const State a = empty_state(1, 2, 4, 3, "relu", at::kFloat),
              b = empty_state(1, 2, 5, 3, "relu", at::kFloat);
  EXPECT_THAT(message_of([&] { merge_states(a, b); }),
              ::testing::AllOf(HasSubstr("[1, 2, 4, 3]"), HasSubstr("[1, 2, 5, 3]")));
  EXPECT_THAT(message_of([&] { merge_states(a, {a.kv, b.key_sum, a.log_scale}); }), HasSubstr("key_sum"));
  EXPECT_THAT(message_of([&] { merge_states(a, empty_state(1, 2, 4, 3, "relu", at::kDouble)); }),
              HasSubstr("same type"));
  EXPECT_THAT(message_of([&] { merge_states(a, {}); }), HasSubstr("undefined"));
  EXPECT_THAT(message_of([&] {
                key_state({at::zeros({2, 3, 4}), at::zeros({2, 3, 4})}, FeatureMap{});
              }),
              HasSubstr("[batch, tokens, heads, size]"));
}

}  // namespace
}  // namespace performer::ops::test
