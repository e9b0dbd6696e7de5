// SPDX-License-Identifier: Apache-2.0
// What every feature map must pass: the plain formula, prefixes, packing, streams, magnitudes, gradients.
#include "performer/ops/feature_maps.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "performer/ops/trigonometric.h"
#include "tests/ops/feature_maps_cases.h"

namespace performer::ops::maps_test {
namespace {

Tensor attend(const AttentionInputs& in, const FeatureMapOptions& options, const MapWeights& weights,
              const MapStatistics& statistics = {}) {
  return std::get<0>(mapped_attention(in, options, weights, statistics));
}

TEST(EveryMap, AgreesWithThePlainFormula) {
  for_every_map([](const FeatureMapOptions& options) {
    for (const bool causal : {false, true}) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        AttentionInputs in = random_inputs(2, 9, 9, 2, 4, 3, 0.6, type, causal);
        in.key_mask = at::ones({2, 9}, at::kBool);
        in.key_mask->slice(1, 7, 8).fill_(false);
        in.query_mask = at::ones({2, 9}, at::kBool);
        in.query_mask->slice(1, 2, 3).fill_(false);
        const MapWeights weights = weights_for(options, 2, 4, type);
        const MapStatistics statistics = statistics_for_case(options, 2, 4);
        const Tensor out = attend(in, options, weights, statistics);
        // Tuned projections are rounded to float32.
        const double tolerance = type == at::kFloat ? 2e-5 : needs_statistics(options) ? 1e-5 : 1e-11;
        EXPECT_EQ(out.scalar_type(), type);
        EXPECT_LT(gap(out, plain_attention(in, options, weights, statistics)), tolerance)
            << (causal ? "causal" : "bidirectional") << " " << type;
      }
    }
  });
}

TEST(EveryMap, MeasuredStatisticsAreThoseOfEachSequence) {
  for_every_map([](const FeatureMapOptions& options) {
    if (!needs_statistics(options)) return;
    AttentionInputs in = random_inputs(2, 11, 9, 2, 4, 3, 0.8, at::kDouble);
    in.key_mask = at::ones({2, 9}, at::kBool);
    in.key_mask->slice(1, 6, 9).fill_(false);
    const MapWeights weights = weights_for(options, 2, 4);
    const Tensor out = attend(in, options, weights);
    for (int64_t b = 0; b < 2; ++b) {
      const AttentionInputs one{in.query.narrow(0, b, 1), in.key.narrow(0, b, 1).slice(1, 0, 6),
                                in.value.narrow(0, b, 1).slice(1, 0, 6)};
      const MapStatistics own = pool_statistics(measure_statistics(one, options));
      // aderf's and sderf's eigenvectors may differ in sign between batched and single solvers, so both sides
      // take the same path here.
      EXPECT_LT(gap(out.narrow(0, b, 1), attend(one, options, weights, own)), 1e-6);
    }
  });
}

TEST(EveryMap, PrefixesDoNotChangeWhenTheSequenceGoesOn) {
  for_every_map([](const FeatureMapOptions& options) {
    const MapWeights weights = weights_for(options, 2, 8);
    const MapStatistics statistics = statistics_for_case(options, 2, 8);
    for (const double boost : {1.0, 40.0}) {
      AttentionInputs in = random_inputs(1, 150, 150, 2, 8, 5, 0.7, at::kFloat, true);
      in.key.slice(1, 77, 150).mul_(boost);
      const auto cut = [](const Tensor& x) { return x.slice(1, 0, 77); };
      AttentionInputs prefix{cut(in.query), cut(in.key), cut(in.value)};
      prefix.causal = true;
      const Tensor whole = attend(in, options, weights, statistics);
      EXPECT_LT(gap(cut(whole), attend(prefix, options, weights, statistics)), 3e-5) << boost;
      EXPECT_GT(gap(whole, at::zeros_like(whole)), 0.1);
    }
  });
}

TEST(EveryMap, PackedPaddedAndAloneAgree) {
  for_every_map([](const FeatureMapOptions& options) {
    const std::vector<int64_t> bounds{0, 5, 5, 45, 46, 116};
    const int64_t longest = 70;
    const MapWeights weights = weights_for(options, 2, 4);
    for (const bool causal : {false, true}) {
      // Bidirectional maps with statistics measure those of each segment.
      const MapStatistics statistics = causal ? statistics_for_case(options, 2, 4) : MapStatistics{};
      AttentionInputs in = random_inputs(1, 116, 116, 2, 4, 3, 0.7, at::kDouble, causal);
      AttentionInputs packed = in;
      packed.cu_query = at::tensor(bounds, at::kLong);
      const Tensor out = attend(packed, options, weights, statistics);
      AttentionInputs padded{at::full({4, longest, 2, 4}, 3., at::kDouble),
                             at::full({4, longest, 2, 4}, -3., at::kDouble),
                             at::full({4, longest, 2, 3}, 9., at::kDouble)};
      padded.causal = causal;
      padded.key_mask = at::zeros({4, longest}, at::kBool);
      std::vector<Tensor> alone;
      int64_t row = 0;
      for (size_t n = 0; n + 1 < bounds.size(); ++n) {
        const int64_t length = bounds[n + 1] - bounds[n];
        if (length == 0) continue;
        const auto cut = [&](const Tensor& x) { return x.slice(1, bounds[n], bounds[n + 1]); };
        AttentionInputs one{cut(in.query), cut(in.key), cut(in.value)};
        one.causal = causal;
        alone.push_back(attend(one, options, weights, statistics));
        padded.query[row].slice(0, 0, length).copy_(one.query[0]);
        padded.key[row].slice(0, 0, length).copy_(one.key[0]);
        padded.value[row].slice(0, 0, length).copy_(one.value[0]);
        (*padded.key_mask)[row].slice(0, 0, length).fill_(true);
        ++row;
      }
      padded.query_mask = padded.key_mask;
      EXPECT_LT(gap(out, at::cat(alone, 1)), 1e-6) << causal;
      const Tensor from_padded = attend(padded, options, weights, statistics);
      row = 0;
      for (const Tensor& one : alone) {
        EXPECT_LT(gap(from_padded[row].slice(0, 0, one.size(1)), one[0]), 1e-6) << causal << " row " << row;
        ++row;
      }
    }
  });
}

TEST(EveryMap, StatesAndStepsEqualOnePass) {
  for_every_map([](const FeatureMapOptions& options) {
    const MapWeights weights = weights_for(options, 2, 4);
    const MapStatistics statistics = statistics_for_case(options, 2, 4);
    AttentionInputs in = random_inputs(2, 80, 80, 2, 4, 3, 0.7, at::kFloat, true);
    const Tensor whole = attend(in, options, weights, statistics);
    // In two halves with the state between them, ...
    const auto part = [&](int64_t begin, int64_t end) {
      AttentionInputs half{in.query.slice(1, begin, end), in.key.slice(1, begin, end),
                           in.value.slice(1, begin, end)};
      half.causal = half.return_state = true;
      return half;
    };
    const auto [first, between] = mapped_attention(part(0, 37), options, weights, statistics);
    AttentionInputs second_half = part(37, 80);
    second_half.initial = between;
    const auto [second, last] = mapped_attention(second_half, options, weights, statistics);
    EXPECT_LT(gap(at::cat({first, second}, 1), whole), 3e-5);
    // ... and token by token.
    State state;
    const PreparedMap prepared = prepare_feature_map(options, weights, statistics, 2, 4);
    for (int64_t t = 0; t < 80; ++t) {
      const auto token = [&](const Tensor& x) { return x.select(1, t); };
      const Tensor out = t % 2 == 0
                             ? mapped_step(token(in.query), token(in.key), token(in.value), state, options,
                                           weights, statistics)
                             : mapped_step(token(in.query), token(in.key), token(in.value), state, prepared);
      ASSERT_LT(gap(out, whole.select(1, t)), 3e-5) << t;
    }
    const bool trigonometric = options.map == "trigonometric";
    EXPECT_EQ(state.kv.size(2), feature_count(options, 4) + (trigonometric ? 1 : 0));
    EXPECT_LT(gap(state.key_sum * state.log_scale.exp(), last.key_sum * last.log_scale.exp()),
              1e-3 * (1 + (last.key_sum * last.log_scale.exp()).abs().max().item<double>()));
  });
}

TEST(EveryMap, FiniteForInputsOfAThousand) {
  for_every_map([](const FeatureMapOptions& options) {
    const bool positive = !feature_map_traits(options.map).signed_features;
    for (const bool causal : {false, true}) {
      for (const double deviation : {1e-3, 30.0, 1000.0}) {
        AttentionInputs in = random_inputs(1, 70, 70, 2, 8, 3, deviation, at::kFloat, causal);
        MapWeights weights = weights_for(options, 2, 8);
        std::vector<Tensor> leaves{in.query, in.key, in.value};
        for (Tensor* learned : {&weights.matrix, &weights.bias})
          if (learned->defined()) leaves.push_back(*learned);
        for (Tensor& leaf : leaves) leaf.requires_grad_(true);
        const Tensor out =
            attend(in, options, weights, causal ? statistics_for_case(options, 2, 8) : MapStatistics{});
        EXPECT_TRUE(out.isfinite().all().item<bool>()) << deviation << causal;
        const double largest = out.abs().max().item<double>(), value = in.value.abs().max().item<double>();
        if (positive) {
          EXPECT_LE(largest, value * 1.001) << deviation << causal;
        }
        if (options.map == "trigonometric") {
          EXPECT_LE(largest, value / kTrigonometricFloor);
        }
        for (const Tensor& gradient : torch::autograd::grad({out.sum()}, leaves))
          EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << deviation << causal;
      }
    }
  });
}

TEST(EveryMap, GradcheckInDouble) {
  for_every_map([](const FeatureMapOptions& options) {
    const MapStatistics statistics = statistics_for_case(options, 2, 3);
    for (const bool causal : {false, true}) {
      AttentionInputs in = random_inputs(1, 4, 4, 2, 3, 2, 0.6, at::kDouble, causal);
      MapWeights weights = weights_for(options, 2, 3, at::kDouble);
      std::vector<Tensor> leaves{in.query, in.key, in.value};
      for (Tensor* learned : {&weights.matrix, &weights.bias})
        if (learned->defined()) leaves.push_back(*learned);
      const Tensor weight = at::randn({1, 4, 2, 2}, at::kDouble);
      const auto loss = [&](const std::vector<Tensor>& x) {
        AttentionInputs call{x[0], x[1], x[2]};
        call.causal = causal;
        MapWeights own = weights;
        size_t next = 3;
        if (own.matrix.defined()) own.matrix = x[next++];
        if (own.bias.defined()) own.bias = x[next];
        return (attend(call, options, own, statistics) * weight).sum();
      };
      for (Tensor& leaf : leaves) leaf.requires_grad_(true);
      const auto gradients = torch::autograd::grad({loss(leaves)}, leaves);
      for (size_t n = 0; n < leaves.size(); ++n) {
        EXPECT_GT(gap(gradients[n], at::zeros_like(gradients[n])), 0);
        for (int64_t i = 0; i<leaves[n].numel(); i += leaves[n].numel()> 24 ? 3 : 1) {
          const auto moved = [&](double step) {
            at::NoGradGuard no_grad;
            std::vector<Tensor> copy = leaves;
            copy[n] = leaves[n].detach().clone();
            copy[n].view(-1)[i] += step;
            return loss(copy).item<double>();
          };
          const double slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
          EXPECT_NEAR(gradients[n].reshape(-1)[i].item<double>(), slope,
                      2e-6 * std::max(1.0, std::abs(slope)))
              << "input " << n << " element " << i << " causal " << causal;
        }
      }
    }
  });
}

TEST(EveryMap, HalfPrecisionInputsGiveOutputsOfTheirType) {
  for_every_map([](const FeatureMapOptions& options) {
    AttentionInputs in = random_inputs(1, 12, 12, 2, 4, 3);
    const MapWeights weights = weights_for(options, 2, 4);
    const MapStatistics statistics = statistics_for_case(options, 2, 4);
    const Tensor exact = attend(in, options, weights, statistics);
    for (Tensor* x : {&in.query, &in.key, &in.value}) *x = x->to(at::kBFloat16);
    const Tensor out = attend(in, options, weights, statistics);
    EXPECT_EQ(out.scalar_type(), at::kBFloat16);
    EXPECT_LT(gap(out, exact), 0.15);
  });
}

// Heads hold the same inputs and draws of their own.
TEST(FeatureMaps, ConvergeToExactSoftmaxAsFeaturesGrow) {
  const int64_t draws = 16;
  AttentionInputs in = random_inputs(1, 24, 24, 1, 8, 4, 0.5);
  const auto heads_first = [](const Tensor& t) { return t.transpose(1, 2); };
  const Tensor exact =
      at::scaled_dot_product_attention(heads_first(in.query), heads_first(in.key), heads_first(in.value))
          .transpose(1, 2);
  for (Tensor* x : {&in.query, &in.key, &in.value}) *x = x->expand({1, 24, draws, -1});
  for (const char* map :
       {"favor+", "hyperbolic", "trigonometric", "oprf", "sderf", "aderf", "saderf", "geometry"}) {
    std::vector<double> errors;
    for (const int64_t features : {16, 256, 2048}) {
      FeatureMapOptions options;
      options.map = map;
      options.features = features;
      MapWeights weights = initial_map_weights(options, draws, 8);  // geometry: the identity is softmax
      weights.projection = draw_map_projection(options, draws, 8, 9, 0, 0);
      errors.push_back((attend(in, options, weights) - exact).square().mean().sqrt().item<double>());
    }
    // Eight times the features: a third of the error; from 16 on less, as few features never err without
    // bound. The rest is room for chance.
    EXPECT_LT(errors[1], errors[0] / 1.6) << map;
    EXPECT_LT(errors[2], errors[1] / 2) << map;
    EXPECT_LT(errors[2], 0.02) << map;
  }
}

TEST(FeatureMaps, ExpWithAndWithoutEpsilonIsTheSameFunction) {
  const AttentionInputs in = random_inputs(1, 20, 20, 2, 4, 3, 0.7, at::kDouble, true);
  FeatureMapOptions without, with;
  without.map = with.map = "exp";
  with.epsilon = 1e-12;
  EXPECT_LT(gap(attend(in, without, {}), attend(in, with, {})), 1e-10);
  EXPECT_EQ(prepare_feature_map(without, {}, {}, 2, 4).map.family, "exponential");
  EXPECT_EQ(prepare_feature_map(with, {}, {}, 2, 4).map.family, "exp");
}

TEST(FeatureMaps, StartsAreTheIdentityAndXavier) {
  FeatureMapOptions options;
  for (const char* map : {"geometry", "hedgehog"}) {
    options.map = map;
    const MapWeights weights = initial_map_weights(options, 3, 5);
    EXPECT_EQ(gap(weights.matrix, at::eye(5).expand({3, 5, 5})), 0);
    EXPECT_EQ(weights.bias.defined(), std::string(map) == "hedgehog");
    weights.matrix[0][0][0] = 7;  // heads do not share memory
    EXPECT_EQ(weights.matrix[1][0][0].item<float>(), 1);
  }
  options.map = "t2r";
  options.features = 400;
  const MapWeights weights = initial_map_weights(options, 3, 8);
  EXPECT_EQ(weights.matrix.sizes(), at::IntArrayRef({3, 400, 8}));
  EXPECT_EQ(weights.bias.sizes(), at::IntArrayRef({3, 400}));
  const double bound = std::sqrt(6.0 / 408);
  EXPECT_LE(weights.matrix.abs().max().item<double>(), bound);
  EXPECT_NEAR(weights.matrix.var().item<double>(), bound * bound / 3, 0.05 * bound * bound / 3);
  EXPECT_FALSE(draw_map_projection(options, 3, 8, 0, 0, 0).defined());
}

TEST(FeatureMaps, DrawsAreOnePerHeadOrShared) {
  FeatureMapOptions options;
  options.features = 6;
  const Tensor own = draw_map_projection(options, 3, 4, 1, 2, 0);
  EXPECT_EQ(own.sizes(), at::IntArrayRef({3, 6, 4}));
  EXPECT_GT(gap(own[0], own[1]), 0.1);
  options.shared_projection = true;
  EXPECT_EQ(draw_map_projection(options, 3, 4, 1, 2, 0).sizes(), at::IntArrayRef({1, 6, 4}));
  options.map = "trigonometric";
  EXPECT_EQ(draw_map_projection(options, 3, 4, 1, 2, 0).sizes(), at::IntArrayRef({1, 3, 4}));
  EXPECT_EQ(feature_count(options, 4), 6);
}

template <class Call>
std::string value_error(const Call& call) {
  try {
    call();
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

using ::testing::AllOf;
using ::testing::HasSubstr;

FeatureMapOptions with(const char* map, const char* projection = "auto") {
  FeatureMapOptions options;
  options.map = map;
  options.projection = projection;
  return options;
}

TEST(FeatureMaps, ErrorsNameTheOption) {
  const auto message = [](FeatureMapOptions options, int64_t size = 4) {
    return value_error([&] { validate(options, size); });
  };
  EXPECT_THAT(message(with("sedrf")), AllOf(HasSubstr("sedrf"), HasSubstr("did you mean sderf")));
  EXPECT_THAT(message(with("favor+", "none")), HasSubstr("none"));
  EXPECT_THAT(message(with("favor+", "qr")), HasSubstr("givens"));
  EXPECT_THAT(message(with("t2r", "iid")), HasSubstr("learned matrix"));
  FeatureMapOptions options = with("hyperbolic");
  options.features = 7;
  EXPECT_THAT(message(options), HasSubstr("even"));
  options = with("favor+");
  options.features = 0;
  EXPECT_THAT(message(options), HasSubstr("at least 1 feature"));
  options = with("favor+");
  options.epsilon = 0.1;
  EXPECT_THAT(message(options), HasSubstr("epsilon"));
  options = with("oprf");
  options.row_norm = "sqrt-d";
  EXPECT_THAT(message(options), HasSubstr("chi"));
  options.row_norm = "one";
  EXPECT_THAT(message(options), HasSubstr("sqrt-d"));
  EXPECT_THAT(message(with("relu"), 0), HasSubstr("head size"));
}

TEST(FeatureMaps, ErrorsNameTheArgument) {
  AttentionInputs in = random_inputs(1, 5, 5, 2, 4, 3);
  const auto refused = [&](const FeatureMapOptions& o, const MapWeights& w, const MapStatistics& s = {}) {
    return value_error([&] { mapped_attention(in, o, w, s); });
  };
  FeatureMapOptions options = with("favor+");
  options.features = 6;
  EXPECT_THAT(refused(options, {}), AllOf(HasSubstr("[2, 6, 4]"), HasSubstr("none")));
  MapWeights wrong;
  wrong.projection = at::zeros({2, 6, 5});
  EXPECT_THAT(refused(options, wrong), HasSubstr("[2, 6, 5]"));
  options = with("sderf");
  options.features = 6;
  const MapWeights weights = weights_for(options, 2, 4);
  EXPECT_THAT(refused(options, weights, frozen_statistics(3, 4)), HasSubstr("2 heads"));
  MapStatistics several = measure_statistics(random_inputs(3, 5, 5, 2, 4, 3), options);
  EXPECT_THAT(refused(with("aderf"), weights_for(with("aderf"), 2, 4), several), HasSubstr("3 sequences"));
  in.causal = true;
  EXPECT_THAT(refused(options, weights), HasSubstr("future"));
  in.causal = false;
  in.return_state = true;
  EXPECT_THAT(refused(options, weights), HasSubstr("frozen"));
  State state;
  EXPECT_THAT(value_error([&] {
                mapped_step(at::zeros({1, 2, 4}), at::zeros({1, 2, 4}), at::zeros({1, 2, 3}), state, options,
                            weights);
              }),
              HasSubstr("measure_statistics"));
  in.return_state = false;
  EXPECT_THAT(value_error([&] { measure_statistics(in, with("favor+")); }), HasSubstr("favor+"));
  EXPECT_THAT(value_error([&] { apply_feature_map(in, with("trigonometric"), {}, {}); }),
              HasSubstr("mapped_attention"));
}

}  // namespace
}  // namespace performer::ops::maps_test
