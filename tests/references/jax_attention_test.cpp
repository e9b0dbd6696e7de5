// SPDX-License-Identifier: Apache-2.0
// Attentions of google-research's factories against plain dense formulas in double, their gradients, their
// axes, what they let through, and what they refuse.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/references/jax/attention.h"

namespace performer::references::jax {
namespace {

using at::Tensor;

Tensor normal(at::IntArrayRef sizes, int64_t seed, double deviation = 1) {
  auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(seed));
  return at::randn(sizes, generator, at::kDouble) * deviation;
}

struct Inputs {
  Tensor q = normal({2, 6, 3, 8}, 1), k = normal({2, 6, 3, 8}, 2), v = normal({2, 6, 3, 5}, 3);
  Tensor w = draw_projection({.rows = 12, .columns = 8}, {.seed = 9}).to(at::kDouble);
};

SoftmaxAttentionOptions softmax_options() {
  SoftmaxAttentionOptions options;
  options.head_size = 8;
  return options;
}

// The weights of all queries (rows) and keys from their features [B, T, H, M], [B, H, T, S].
Tensor weights_of(const Tensor& phi_q, const Tensor& phi_k, bool causal) {
  const Tensor weights = at::einsum("bihm,bjhm->bhij", {phi_q, phi_k});
  return causal ? weights.tril() : weights;
}

Tensor dense_attention(const Tensor& weights, const Tensor& v, double stabilizer, bool renormalize = true) {
  const Tensor sums = at::einsum("bhij,bjhe->bihe", {weights, v});
  if (!renormalize) return sums;
  const Tensor r = weights.sum(-1);
  const Tensor guarded = at::where(r.abs() <= stabilizer, r + 2 * stabilizer, r);
  return sums / guarded.transpose(1, 2).unsqueeze(-1);
}

// Positive features by definition, one loop over tokens: x [B, T, H, D].
Tensor positive(const Tensor& x, const Tensor& w, bool is_query, double epsilon) {
  const Tensor y = x / std::pow(8.0, 0.25);
  const Tensor u = at::einsum("bthd,md->bthm", {y, w});
  const Tensor shift = is_query ? u.amax({3}, true) : u.amax({1, 3}, true);
  return (at::exp(u - y.square().sum(-1, true) / 2 - shift) + epsilon) /
         std::sqrt(static_cast<double>(w.size(0)));
}

TEST(JaxAttention, PositiveFeaturesByDefinition) {
  const Inputs in;
  for (const bool causal : {false, true}) {
    for (const bool renormalize : {true, false}) {
      auto options = softmax_options();
      options.stabilizer = 1e-3;
      options.unidirectional = causal;
      options.renormalize = renormalize;
      const Tensor expected = dense_attention(
          weights_of(positive(in.q, in.w, true, 1e-3), positive(in.k, in.w, false, 1e-3), causal), in.v, 1e-3,
          renormalize);
      EXPECT_TRUE(
          make_fast_softmax_attention(options, in.w)(in.q, in.k, in.v).allclose(expected, 1e-10, 1e-12));
    }
  }
}

TEST(JaxAttention, GuardJumpsAndKeepsTheSign) {
  // Trigonometric features have denominators of both signs; all are within this stabilizer.
  const Inputs in;
  auto options = softmax_options();
  options.nonnegative = false;
  options.stabilizer = 1e3;
  const auto attention = make_fast_softmax_attention(options, in.w);
  options.renormalize = false;
  const auto sums = make_fast_softmax_attention(options, in.w);
  const auto [out, r] = attention.attend(in.q, in.k, in.v);
  EXPECT_TRUE(r.lt(0).any().item<bool>());
  const Tensor guarded = (r + 2e3).transpose(1, 2).unsqueeze(-1);
  EXPECT_TRUE(out.allclose(sums(in.q, in.k, in.v) / guarded, 1e-12, 1e-15));
}

TEST(JaxAttention, TrigonometricKernelIsTheGaussianOneTimesBothNorms) {
  const Inputs in;
  const Tensor phi_q = trigonometric_features(in.q.transpose(1, 2), in.w);  // [B, H, T, 2M]
  const Tensor phi_k = trigonometric_features(in.k.transpose(1, 2), in.w);
  const double scale = std::pow(8.0, -0.25);
  const Tensor y = in.q.transpose(1, 2) * scale, z = in.k.transpose(1, 2) * scale;
  const Tensor angles =
      at::matmul(y, in.w.t()).unsqueeze(3) - at::matmul(z, in.w.t()).unsqueeze(2);  // [B,H,T,S,M]
  const Tensor hq = y.square().sum(-1) / 2, hk = z.square().sum(-1) / 2;
  const Tensor norms =
      at::exp((hq - hq.amax({2}, true)).unsqueeze(-1) + (hk - hk.amax({2}, true)).unsqueeze(-2));
  EXPECT_TRUE(
      at::matmul(phi_q, phi_k.transpose(-1, -2)).allclose(angles.cos().mean(-1) * norms, 1e-10, 1e-12));
}

TEST(JaxAttention, GeneralizedByDefinition) {
  const Inputs in;
  for (const bool causal : {false, true}) {
    GeneralizedAttentionOptions options;
    options.head_size = 8;
    options.unidirectional = causal;
    const auto f = [](const Tensor& u) { return u.clamp_min(0) + 1e-3; };
    const Tensor plain = dense_attention(weights_of(f(in.q), f(in.k), causal), in.v, 0);
    EXPECT_TRUE(make_fast_generalized_attention(options)(in.q, in.k, in.v).allclose(plain, 1e-10, 1e-12));
    const Tensor drawn = dense_attention(
        weights_of(f(at::matmul(in.q, in.w.t())), f(at::matmul(in.k, in.w.t())), causal), in.v, 0);
    EXPECT_TRUE(
        make_fast_generalized_attention(options, in.w)(in.q, in.k, in.v).allclose(drawn, 1e-10, 1e-12));
  }
}

// Rows of zeros, as padding is embedded: JAX takes the right-hand derivative of |x|.
TEST(JaxAttention, AbsoluteValueHasTheGradientOfJaxAtZero) {
  const Tensor x = at::tensor({0.0, -0.0, 2.0, -2.0}, at::kDouble).requires_grad_(true);
  const Tensor features = generalized_features(x.view({1, 1, 1, 4}), {}, "abs", 0.5);
  EXPECT_TRUE(features.flatten().equal(at::tensor({0.5, 0.5, 2.5, 2.5}, at::kDouble)));
  features.sum().backward();
  EXPECT_TRUE(x.grad().equal(at::tensor({1.0, 1.0, 1.0, -1.0}, at::kDouble)));
}

TEST(JaxAttention, ZeroDenominatorOfGeneralizedAttentionIsNotANumber) {
  GeneralizedAttentionOptions options;
  options.epsilon = 0;
  const Tensor q = at::ones({1, 2, 1, 4}), k = -q;
  options.head_size = 4;
  EXPECT_TRUE(make_fast_generalized_attention(options)(q, k, q).isnan().all().item<bool>());
  options.stabilizer = 1e-3;
  EXPECT_TRUE(make_fast_generalized_attention(options)(q, k, q).eq(0).all().item<bool>());
}

TEST(JaxAttention, FeaturesTypeDecidesWhetherThereIsAProjection) {
  const Tensor q = normal({1, 3, 1, 8}, 4);
  GeneralizedAttentionOptions options;
  options.head_size = 8;
  EXPECT_FALSE(make_fast_generalized_attention(options).projection_for(q).defined());
  options.features_type = "ortho";
  options.features = 20;
  const Tensor ortho = make_fast_generalized_attention(options).projection_for(q);
  EXPECT_TRUE(ortho.equal(draw_jax_projection({.rows = 20, .columns = 8}, 0)));
  options.features_type = "iid";
  const Tensor iid = make_fast_generalized_attention(options).projection_for(q);
  EXPECT_TRUE(iid.equal(draw_jax_projection({.rows = 20, .columns = 8, .orthogonal = false}, 0)));
  options.features_type = "fixed";
  EXPECT_THROW(make_fast_generalized_attention(options), UsageError);
}

TEST(JaxAttention, SeveralAxesAreOneSequence) {
  const Tensor q = normal({2, 3, 4, 2, 8}, 1), k = normal({2, 3, 4, 2, 8}, 2), v = normal({2, 3, 4, 2, 5}, 3);
  const Inputs in;
  const auto attention = make_fast_softmax_attention(softmax_options(), in.w);
  const Tensor flat = attention(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)).unflatten(1, {3, 4});
  EXPECT_TRUE(attention(q, k, v).allclose(flat, 1e-10, 1e-12));
  EXPECT_TRUE(attention(q, k, v, {2, 1}).allclose(flat, 1e-10, 1e-12));
  auto options = softmax_options();
  options.unidirectional = true;
  const auto causal = make_fast_softmax_attention(options, in.w);
  for (int64_t i = 0; i < 3; ++i) {  // over axis 2 alone each entry of axis 1 is a sequence
    EXPECT_TRUE(attention(q, k, v, {2})
                    .select(1, i)
                    .allclose(attention(q.select(1, i), k.select(1, i), v.select(1, i)), 1e-10, 1e-12));
    EXPECT_TRUE(causal(q, k, v, {2})
                    .select(1, i)
                    .allclose(causal(q.select(1, i), k.select(1, i), v.select(1, i)), 1e-10, 1e-12));
  }
}

TEST(JaxAttention, ReleaseOf2020LetsSequencesOfABatchMeet) {
  const Inputs in;
  auto options = softmax_options();
  options.stabilizer = 1e-2;
  const auto of = [&](KeyShift shift, const Tensor& k) {
    options.key_shift = shift;
    return make_fast_softmax_attention(options, in.w)(in.q, k, in.v)[0];
  };
  Tensor other = in.k.clone();
  other[1] *= 3;
  EXPECT_TRUE(of(KeyShift::sequence, in.k).equal(of(KeyShift::sequence, other)));
  EXPECT_FALSE(of(KeyShift::tensor, in.k).allclose(of(KeyShift::tensor, other), 1e-3, 1e-3));
  const Tensor u = at::matmul(in.k / std::pow(8.0, 0.25), in.w.t());
  const Tensor phi =
      (at::exp(u - in.k.square().sum(-1, true) / (2 * std::sqrt(8.0)) - u.max()) + 1e-2) / std::sqrt(12.0);
  const Tensor expected =
      dense_attention(weights_of(positive(in.q, in.w, true, 1e-2), phi, false), in.v, 1e-2);
  EXPECT_TRUE(of(KeyShift::tensor, in.k).allclose(expected[0], 1e-10, 1e-12));
}

TEST(JaxAttention, EpsilonLetsTheFutureReachThePast) {
  const Inputs in;
  auto options = softmax_options();
  options.unidirectional = true;
  Tensor later = in.k.clone();
  later.select(1, 5).mul_(4);
  const auto first_rows = [&](const FastAttention& attention, const Tensor& k) {
    return attention(in.q, k, in.v).narrow(1, 0, 5);
  };
  options.stabilizer = 1e-4;
  const auto with = make_fast_softmax_attention(options, in.w);
  EXPECT_FALSE(first_rows(with, in.k).allclose(first_rows(with, later), 1e-4, 0));
  options.stabilizer = 0;
  const auto without = make_fast_softmax_attention(options, in.w);
  EXPECT_TRUE(first_rows(without, in.k).allclose(first_rows(without, later), 1e-10, 1e-12));
  GeneralizedAttentionOptions relu;
  relu.head_size = 8;
  relu.unidirectional = true;
  const auto generalized = make_fast_generalized_attention(relu);
  EXPECT_TRUE(first_rows(generalized, in.k).equal(first_rows(generalized, later)));
}

TEST(JaxAttention, ChunksChangeRoundingOnly) {
  const Inputs in;
  auto options = softmax_options();
  options.unidirectional = true;
  const Tensor expected = make_fast_softmax_attention(options, in.w)(in.q, in.k, in.v);
  for (const int64_t chunk : {1, 2, 5, 6, 16}) {
    options.chunk = chunk;
    EXPECT_TRUE(
        make_fast_softmax_attention(options, in.w)(in.q, in.k, in.v).allclose(expected, 1e-11, 1e-13));
  }
}

// Derivative along a random direction against central differences.
void expect_gradient(const FastAttention& attention) {
  const Inputs in;
  const Tensor ct = normal({2, 6, 3, 5}, 20);
  std::vector<Tensor> inputs = {in.q, in.k, in.v}, leaves;
  for (const Tensor& x : inputs) leaves.push_back(x.clone().set_requires_grad(true));
  attention(leaves[0], leaves[1], leaves[2]).backward(ct);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor direction = normal(inputs[i].sizes(), 30 + static_cast<int64_t>(i));
    const double step = 1e-6;
    const auto value = [&](double by) {
      std::vector<Tensor> moved = inputs;
      moved[i] = moved[i] + by * direction;
      return (attention(moved[0], moved[1], moved[2]) * ct).sum().item<double>();
    };
    const double expected = (value(step) - value(-step)) / (2 * step);
    const double actual = (leaves[i].grad() * direction).sum().item<double>();
    EXPECT_NEAR(actual, expected, 1e-5 * std::max(1.0, std::abs(expected))) << "input " << i;
  }
}

TEST(JaxAttention, GradientsAreThoseOfTheFunction) {
  const Inputs in;
  for (const bool causal : {false, true}) {
    auto options = softmax_options();
    options.stabilizer = 1e-2;
    options.unidirectional = causal;
    expect_gradient(make_fast_softmax_attention(options, in.w));
    options.nonnegative = false;
    options.renormalize = false;
    expect_gradient(make_fast_softmax_attention(options, in.w));
    GeneralizedAttentionOptions generalized;
    generalized.head_size = 8;
    generalized.unidirectional = causal;
    generalized.function = "sigmoid";
    expect_gradient(make_fast_generalized_attention(generalized, in.w));
  }
}

TEST(JaxAttention, OperatorsComputeTheSameAndAreDifferentiable) {
  const Inputs in;
  auto options = softmax_options();
  options.unidirectional = true;
  options.stabilizer = 1e-3;
  options.key_shift = KeyShift::tensor;
  options.chunk = 4;
  const Tensor q = in.q.clone().set_requires_grad(true);
  const Tensor out = fast_softmax_attention(q, in.k, in.v, in.w, options);
  EXPECT_TRUE(out.equal(make_fast_softmax_attention(options, in.w)(in.q, in.k, in.v)));
  out.sum().backward();
  EXPECT_GT(q.grad().abs().sum().item<double>(), 0);
  GeneralizedAttentionOptions generalized;
  generalized.head_size = 8;
  generalized.function = "elu+1";
  generalized.epsilon = 0.1;
  const Tensor expected = make_fast_generalized_attention(generalized)(in.q, in.k, in.v, {1});
  EXPECT_TRUE(fast_generalized_attention(in.q, in.k, in.v, {}, generalized, {1}).equal(expected));
}

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(JaxAttention, ErrorsNameTheProblem) {
  const Tensor q = normal({2, 3, 4, 2, 8}, 1), v = normal({2, 3, 4, 2, 5}, 3);
  const Inputs in;
  auto options = softmax_options();
  options.unidirectional = true;
  const auto causal = make_fast_softmax_attention(options, in.w);
  EXPECT_THAT([&] { causal(q, q, v); },
              ThrowsMessage<UsageError>(HasSubstr("exactly one attention axis, found 2")));
  EXPECT_THAT([&] { causal(in.q, in.k.narrow(1, 0, 4), in.v.narrow(1, 0, 4)); },
              ThrowsMessage<c10::ValueError>(HasSubstr("6 queries and 4 keys")));
  EXPECT_THAT([&] { causal(q, q, v, {3}); }, ThrowsMessage<UsageError>(HasSubstr("from 1 to 2")));
  EXPECT_THAT([&] { causal(q, q, v, {0}); }, ThrowsMessage<UsageError>(HasSubstr("found 0")));
  const auto attention = make_fast_softmax_attention(softmax_options(), in.w);
  EXPECT_THAT(
      [&] {
        attention(q, q, v, {1, 1});
      },
      ThrowsMessage<UsageError>(HasSubstr("different dimensions")));
  EXPECT_THAT([&] { attention(in.q[0], in.k[0], in.v[0]); },
              ThrowsMessage<UsageError>(HasSubstr("found 3 dimensions")));
  EXPECT_THAT([&] { attention(in.q, in.k, in.v.narrow(1, 0, 4)); },
              ThrowsMessage<UsageError>(HasSubstr("dimension 1 of key is 6, of value 4")));
  EXPECT_THAT([&] { attention(in.q.narrow(2, 0, 2), in.k, in.v); },
              ThrowsMessage<UsageError>(HasSubstr("dimension 2 is not attended over")));
  EXPECT_THAT([&] { attention(in.q.narrow(3, 0, 4), in.k, in.v); },
              ThrowsMessage<UsageError>(HasSubstr("one head size, found 4 and 8")));
  EXPECT_THROW(make_fast_softmax_attention(softmax_options(), in.w.narrow(1, 0, 4)), UsageError);
  options.scaling = 2;
  EXPECT_THAT([&] { make_fast_softmax_attention(options); },
              ThrowsMessage<UsageError>(HasSubstr("scaling must be 0 or 1, found 2")));
  GeneralizedAttentionOptions generalized;
  generalized.function = "reloo";
  EXPECT_THAT([&] { make_fast_generalized_attention(generalized); },
              ThrowsMessage<c10::ValueError>(HasSubstr("unknown feature function 'reloo'")));
}

}  // namespace
}  // namespace performer::references::jax
