// SPDX-License-Identifier: Apache-2.0
// What fast-transformers' feature maps and linear attention must be beyond recorded numbers: kernels they
// estimate, the redraw schedule, gradients, and the agreement of all forms with the plain definition.
#include "performer/references/fast_transformers/attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "performer/base/error.h"
#include "tests/references/fast_transformers_layers.h"

namespace performer::references::fast_transformers {
namespace {

FeatureMapOptions map_options(const std::string& map) {
  FeatureMapOptions options;
  options.map = map;
  return options;
}

// Weight of key s for query l times value, without a running sum.
at::Tensor dense_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& keep, double eps) {
  const at::Tensor weights = at::einsum("nlhm,nshm->nhls", {q, k}) * keep.to(at::kDouble);
  const at::Tensor sums = at::einsum("nhls,nshe->nlhe", {weights, v});
  return sums / (weights.sum(-1).transpose(1, 2).unsqueeze(-1) + eps);
}

TEST(FastTransformersMaps, ColumnsOfABlockAreOrthogonalAndAsLongAsItsRows) {
  PhiloxStream stream(3);
  const at::Tensor omega = orthogonal_random_matrix(32, 40, stream);
  ASSERT_EQ(omega.sizes(), at::IntArrayRef({32, 40}));
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 32}, {32, 8}}) {
    const at::Tensor block = omega.narrow(1, first, count).to(at::kDouble);
    const at::Tensor products = at::matmul(block.t(), block);
    EXPECT_LT(largest_error(products, products.diagonal().diag()), 1e-4);  // of products near 32
  }
  const at::Tensor blocks = normal({2, 5, 5}, 1);
  const at::Tensor lengths = orthogonal_random_matrix(blocks, 7).square().sum(0).sqrt();
  EXPECT_LT(largest_error(lengths, blocks.square().sum(-1).sqrt().flatten().narrow(0, 0, 7)), 1e-12);
  EXPECT_THROW(orthogonal_random_matrix(blocks, 11), c10::ValueError);
}

// Mean square error of the kernel that a map with 32,000 features estimates.
double kernel_error(const FeatureMapOptions& options,
                    const std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>& kernel) {
  const at::Tensor x = normal({100, 32}, 1, 0.15), y = normal({100, 32}, 2, 0.15);
  FeatureMap map(options, 32);
  return (at::matmul(map(x), map(y).t()) - kernel(x, y)).square().mean().item<double>();
}

TEST(FastTransformersMaps, EstimateTheirKernels) {
  const auto rbf = [](const at::Tensor& x, const at::Tensor& y) {
    return (-at::cdist(x, y).square() / 2).exp();
  };
  const auto softmax = [](const at::Tensor& x, const at::Tensor& y) { return at::matmul(x, y.t()).exp(); };
  for (const std::string draw : {"orthogonal", "iid"}) {
    FeatureMapOptions options = map_options("random-fourier");
    options.n_dims = 32000;
    options.softmax_temp = 1;
    options.draw = draw;
    EXPECT_LT(kernel_error(options, rbf), 1e-4);
    options.map = "favor";
    EXPECT_LT(kernel_error(options, softmax), 1e-3);
    options.map = "smoothed-random-fourier";
    options.smoothing = 2;
    EXPECT_LT(kernel_error(options, [&](const auto& x, const auto& y) { return rbf(x, y) + 4; }), 1e-4);
  }
}

TEST(FastTransformersMaps, SizesAndDefaults) {
  struct Expected {
    std::string map;
    int64_t asked, size, n_dims;
    double temp;
  };
  const double root = 1 / std::sqrt(8.0);
  for (const Expected& e : std::vector<Expected>{{"elu", 0, 8, 0, 0},
                                                 {"activation", 5, 8, 0, 0},
                                                 {"favor", 0, 8, 8, root},
                                                 {"favor", 7, 6, 7, root},
                                                 {"random-fourier", 9, 8, 9, root},
                                                 {"smoothed-random-fourier", 0, 7, 7, root},
                                                 {"smoothed-random-fourier", 9, 9, 8, root},
                                                 {"smoothed-random-fourier", 2, 1, 1, root},
                                                 {"smoothed-random-fourier", 1, 9, 8, root},
                                                 {"favor", 1, 0, 1, root},
                                                 {"generalized", 1, 1, 2, 1},
                                                 {"generalized", 5, 5, 10, 1}}) {
    FeatureMapOptions options = map_options(e.map);
    options.n_dims = e.asked;
    FeatureMap map(options, 8);
    EXPECT_EQ(map->size(), e.size) << e.map;
    EXPECT_EQ(map(normal({3, 8}, 1)).size(-1), e.size) << e.map;
    EXPECT_EQ(map->n_dims(), e.n_dims) << e.map;
    EXPECT_DOUBLE_EQ(map->softmax_temp(), e.temp) << e.map;
  }
}

TEST(FastTransformersMaps, RefuseWhatCannotBe) {
  EXPECT_THROW(FeatureMap(map_options("favour"), 8), UsageError);
  FeatureMapOptions options = map_options("generalized");
  options.function = "no-such-function";
  EXPECT_THROW(FeatureMap(options, 8), c10::ValueError);
  FeatureMap map(map_options("favor"), 8);
  EXPECT_THROW(map(at::ones({2, 7})), UsageError);
  options = map_options("favor");
  options.stabilize = true;
  FeatureMap stabilized(options, 8);
  EXPECT_THROW(stabilized(at::ones({2, 8})), UsageError);
}

TEST(FastTransformersMaps, DrawAsTheyAreTold) {
  for (const std::string map : {"favor", "generalized", "random-fourier", "smoothed-random-fourier"}) {
    for (const std::string draw : {"auto", "orthogonal", "iid"}) {
      FeatureMapOptions options = map_options(map);
      options.draw = draw;
      FeatureMap made(options, 8);
      const at::Tensor products = at::matmul(made->omega().t(), made->omega());
      const bool orthogonal = largest_error(products, products.diagonal().diag()) < 1e-4;
      const bool by_default = map == "favor" || map == "generalized";
      EXPECT_EQ(orthogonal, draw == "auto" ? by_default : draw == "orthogonal") << map << " " << draw;
    }
  }
}

TEST(FastTransformersMaps, DrawsHaveNames) {
  FeatureMapOptions options = map_options("favor");
  FeatureMap first(options, 8, 2), second(options, 8, 2), layer(options, 8, 3);
  options.seed = 1;
  FeatureMap seed(options, 8, 2);
  for (int call = 0; call < 3; ++call) {
    for (FeatureMap* map : {&first, &second, &layer, &seed}) (*map)->new_feature_map();
    EXPECT_TRUE(at::equal(first->omega(), second->omega()));
    EXPECT_FALSE(at::equal(first->omega(), layer->omega()));
    EXPECT_FALSE(at::equal(first->omega(), seed->omega()));
  }
}

TEST(FastTransformersMaps, ScheduleGoesOnAfterLoadingWhenItIsKept) {
  FeatureMapOptions options = map_options("favor");
  options.redraw = 3;
  options.keep_schedule = true;
  FeatureMap saved(options, 4), loaded(options, 4);
  for (int call = 0; call < 5; ++call) saved->new_feature_map();
  const at::NoGradGuard no_grad;
  auto buffers = loaded->named_buffers();
  for (const auto& item : saved->named_buffers()) buffers[item.key()].copy_(item.value());
  for (int call = 5; call < 9; ++call) {
    saved->new_feature_map();
    loaded->new_feature_map();
    EXPECT_TRUE(at::equal(saved->omega(), loaded->omega())) << call;
  }
}

TEST(FastTransformersMaps, ADrawLeavesEarlierGraphsAlone) {
  FeatureMap map(map_options("favor"), 4);
  // In the projection's own type, so that the graph holds omega itself and not a converted copy.
  const at::Tensor x = normal({3, 4}, 1).to(at::kFloat).set_requires_grad(true);
  const at::Tensor before = torch::autograd::grad({map(x).sum()}, {x})[0];
  const at::Tensor out = map(x).sum();
  map->new_feature_map();
  EXPECT_TRUE(at::equal(torch::autograd::grad({out}, {x})[0], before));
  EXPECT_FALSE(at::equal(torch::autograd::grad({map(x).sum()}, {x})[0], before));
}

TEST(FastTransformersAttention, AgreesWithTheDefinition) {
  const at::Tensor q = normal({2, 70, 2, 5}, 1).exp(), k = normal({2, 90, 2, 5}, 2).exp(),
                   v = normal({2, 90, 2, 3}, 3);
  const at::Tensor keep = normal({2, 90}, 4) > -0.5;
  const at::Tensor all = keep.unsqueeze(1).unsqueeze(1);
  EXPECT_LT(largest_error(linear_attention(q, k, v, keep, 1e-3), dense_attention(q, k, v, all, 1e-3)), 1e-12);
  const at::Tensor past = at::ones({70, 90}, at::kBool).tril();
  EXPECT_LT(largest_error(causal_linear_attention(q, k, v, keep, 1e-3),
                          dense_attention(q, k, v, all.logical_and(past), 1e-3)),
            1e-12);
  EXPECT_THROW(causal_linear_attention(k, q, v.narrow(1, 0, 70)), UsageError);
  EXPECT_THROW(linear_attention(q, k, v, keep.narrow(1, 0, 5)), UsageError);
}

// With one key the output is v a / (a + eps): what depends on the query is of the order of eps / a.
TEST(FastTransformersAttention, GradientsOfASingleKeySurviveInFloat) {
  const at::Tensor q = normal({1, 1, 2, 5}, 1).exp(), k = normal({1, 1, 2, 5}, 2).exp(),
                   v = normal({1, 1, 2, 3}, 3);
  for (const bool causal : {false, true}) {
    std::vector<at::Tensor> gradients;
    for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
      const at::Tensor query = q.to(at::kFloat).to(type).set_requires_grad(true);
      const at::Tensor key = k.to(at::kFloat).to(type), value = v.to(at::kFloat).to(type);
      const at::Tensor out =
          causal ? causal_linear_attention(query, key, value) : linear_attention(query, key, value);
      EXPECT_EQ(out.scalar_type(), type);
      gradients.push_back(torch::autograd::grad({out.sum()}, {query})[0].to(at::kDouble));
    }
    EXPECT_GT(gradients[0].abs().max().item<double>(), 0);
    EXPECT_LT(largest_error(gradients[1], gradients[0]), 1e-6 * gradients[0].abs().max().item<double>());
  }
}

// A smoothed map of one feature is the constant: attention is the mean of the values.
TEST(FastTransformersAttention, AConstantFeatureAverages) {
  FeatureMapOptions options = map_options("smoothed-random-fourier");
  options.n_dims = 2;
  FeatureMap map(options, 5);
  const at::Tensor q = normal({2, 4, 2, 5}, 1), k = normal({2, 7, 2, 5}, 2), v = normal({2, 7, 2, 3}, 3);
  const at::Tensor out = linear_attention(map(q), map(k), v, {}, 0);
  EXPECT_LT(largest_error(out, v.mean(1, /*keepdim=*/true).expand_as(out)), 1e-12);
}

TEST(FastTransformersAttention, CausalProductAndItsGradientsForEveryChunk) {
  for (const int64_t length : {1, 5, 16, 33}) {
    std::vector<at::Tensor> inputs;
    for (const uint32_t name : {1, 2, 3})
      inputs.push_back(normal({2, 2, length, name == 3 ? 3 : 4}, name).set_requires_grad(true));
    const at::Tensor cotangent = normal({2, 2, length, 3}, 9);
    const at::Tensor dense = at::matmul(at::matmul(inputs[0], inputs[1].transpose(-1, -2)).tril(), inputs[2]);
    const auto expected = torch::autograd::grad({dense}, inputs, {cotangent});
    for (const int64_t chunk : {1, 4, 16, 64}) {
      const at::Tensor out = causal_dot_product(inputs[0], inputs[1], inputs[2], chunk);
      EXPECT_LT(largest_error(out, dense), 1e-12);
      const auto gradients = torch::autograd::grad({out}, inputs, {cotangent});
      for (size_t i = 0; i < 3; ++i)
        EXPECT_LT(largest_error(gradients[i], expected[i]), 1e-12) << length << " " << chunk;
    }
  }
}

TEST(FastTransformersAttention, CausalProductOfNothingAndOfHalfTypes) {
  EXPECT_EQ(
      causal_dot_product(at::ones({1, 1, 0, 2}), at::ones({1, 1, 0, 2}), at::ones({1, 1, 0, 3})).sizes(),
      at::IntArrayRef({1, 1, 0, 3}));
  // 2,000 ones: bfloat16 sums would stop at 256.
  const at::Tensor ones = at::ones({1, 1, 2000, 1}, at::kBFloat16);
  const at::Tensor out = causal_dot_product(ones, ones, ones, /*chunk=*/1);
  EXPECT_EQ(out.scalar_type(), at::kBFloat16);
  EXPECT_EQ(out.flatten()[1999].item<float>(), 2000);
  EXPECT_THROW(causal_dot_product(ones, ones, ones, 0), UsageError);
}

TEST(FastTransformersAttention, StepsAreTheCausalPassWithAndWithoutGradients) {
  const at::Tensor q = normal({2, 9, 2, 5}, 1).exp(), k = normal({2, 9, 2, 5}, 2).exp(),
                   v = normal({2, 9, 2, 3}, 3);
  const at::Tensor expected = causal_linear_attention(q, k, v);
  for (const bool recorded : {false, true}) {
    const at::Tensor key = k.clone().set_requires_grad(recorded);
    LinearState state;
    std::vector<at::Tensor> outs;
    at::Tensor first;
    for (int64_t i = 0; i < 9; ++i) {
      outs.push_back(recurrent_linear_attention(q.select(1, i), key.select(1, i), v.select(1, i), state));
      if (i == 0) first = state.s;
    }
    EXPECT_LT(largest_error(at::stack(outs, 1), expected), 1e-12);
    EXPECT_EQ(first.is_same(state.s), !recorded);  // in place unless a graph needs the earlier sums
    if (!recorded) continue;
    const at::Tensor all = k.clone().set_requires_grad(true);
    const at::Tensor wanted = torch::autograd::grad({causal_linear_attention(q, all, v).sum()}, {all})[0];
    EXPECT_LT(largest_error(torch::autograd::grad({at::stack(outs, 1).sum()}, {key})[0], wanted), 1e-12);
  }
}

TEST(FastTransformersAttention, CrossStepsAreTheFullPass) {
  const at::Tensor q = normal({2, 4, 2, 5}, 1).exp(), k = normal({2, 9, 2, 5}, 2).exp(),
                   v = normal({2, 9, 2, 3}, 3);
  const at::Tensor keep = at::arange(9).unsqueeze(0) < at::tensor({9, 0}).unsqueeze(1);
  const LinearState memory = cross_linear_summary(k, v, keep);
  const at::Tensor expected = linear_attention(q, k, v, keep);
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_LT(largest_error(recurrent_cross_linear_attention(q.select(1, i), memory), expected.select(1, i)),
              1e-12);
  }
  EXPECT_EQ(expected.select(0, 1).abs().max().item<double>(), 0);  // no keys
  EXPECT_THROW(recurrent_cross_linear_attention(q.select(1, 0), {}), UsageError);
}

}  // namespace
}  // namespace performer::references::fast_transformers
