// SPDX-License-Identifier: Apache-2.0
// SLiM Performer's attention against its formulas in double.
#include "performer/references/slim/attention.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"

namespace performer::references::slim {
namespace {

using at::Tensor;

Tensor normal(at::IntArrayRef sizes, int64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(static_cast<uint64_t>(seed)), at::kDouble);
}

Tensor dense(const Tensor& phi_q, const Tensor& phi_k, const Tensor& v, bool causal) {
  Tensor weights = at::einsum("bihm,bjhm->bhij", {phi_q, phi_k});
  if (causal) weights = weights.tril();
  return at::einsum("bhij,bjhe->bihe", {weights, v}) /
         (weights.sum(-1).transpose(1, 2).unsqueeze(-1) + 1e-16);
}

TEST(Slim, ProductIsThatOfTheReflections) {
  const Tensor gaussian = normal({6, 6}, 1);
  Tensor expected = at::eye(6, at::kDouble);
  for (int64_t i = 0; i < 6; ++i) {
    const Tensor v = gaussian.tril().select(1, i);
    expected = at::matmul(expected, at::eye(6, at::kDouble) - 2 * at::outer(v, v) / at::dot(v, v));
  }
  EXPECT_TRUE(householder_product(gaussian).allclose(expected, 1e-10, 1e-12));
}

TEST(Slim, ProjectionOfEachHeadHasOrthogonalRowsOfLengthRootD) {
  const Tensor gaussian = normal({2, 3, 8, 8}, 2);
  const Tensor w = householder_projection(gaussian);
  ASSERT_EQ(w.sizes(), (at::IntArrayRef{2, 24, 8}));
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t block = 0; block < 3; ++block) {
      const Tensor rows = w[head].narrow(0, 8 * block, 8);
      EXPECT_TRUE(at::matmul(rows, rows.t()).allclose(8 * at::eye(8, at::kDouble), 1e-10, 1e-10));
      const Tensor product = householder_product(gaussian[head][block]);
      EXPECT_TRUE(rows.allclose(product.t() * std::sqrt(8.0), 1e-10, 1e-10));  // columns become rows
    }
  }
  const Tensor drawn = draw_projection(2, 3, 8, {.seed = 1});
  EXPECT_EQ(drawn.sizes(), w.sizes());
  EXPECT_FALSE(drawn[0].equal(drawn[1]));
  EXPECT_TRUE(drawn[1].equal(draw_projection(1, 3, 8, {.seed = 1, .head = 1})[0]));
}

TEST(Slim, FeaturesByDefinition) {
  const Tensor q = normal({2, 5, 3, 4}, 3), k = normal({2, 5, 3, 4}, 4), v = normal({2, 5, 3, 6}, 5);
  const Tensor w = draw_projection(3, 2, 4, {.seed = 2}).to(at::kDouble);
  const auto favor = [&](const Tensor& x) {
    const Tensor y = x / std::sqrt(2.0);  // 4^(1/4)
    return at::exp(at::einsum("bthd,hmd->bthm", {y, w}) - y.square().sum(-1, true) / 2);
  };
  const std::vector<std::pair<std::string, std::function<Tensor(const Tensor&)>>> types = {
      {"relu", [](const Tensor& x) { return x.clamp_min(0); }},
      {"elu+1", [](const Tensor& x) { return at::where(x > 0, x + 1, x.exp()); }},
      {"sqr", [](const Tensor& x) { return x * x; }},
      {"abs", [](const Tensor& x) { return x.abs(); }},
      {"favor+_2", favor}};
  for (const auto& [type, feature] : types) {
    for (const bool causal : {true, false}) {
      EXPECT_TRUE(
          attention(q, k, v, type, w, causal).allclose(dense(feature(q), feature(k), v, causal), 1e-9, 1e-11))
          << type;
    }
  }
}

TEST(Slim, SumsContinueASequence) {
  const Tensor q = normal({2, 9, 3, 4}, 3), k = normal({2, 9, 3, 4}, 4), v = normal({2, 9, 3, 6}, 5);
  const Tensor w = draw_projection(3, 1, 4, {.seed = 2}).to(at::kDouble);
  const Tensor expected = attention(q, k, v, "favor+", w);
  Sums sums;
  std::vector<Tensor> parts;
  for (const auto& [begin, length] : {std::pair{0, 4}, std::pair{4, 1}, std::pair{5, 4}}) {
    const auto cut = [&, b = begin, l = length](const Tensor& x) { return x.narrow(1, b, l); };
    parts.push_back(attention(cut(q), cut(k), cut(v), "favor+", w, true, &sums));
  }
  EXPECT_TRUE(at::cat(parts, 1).allclose(expected, 1e-11, 1e-13));
  EXPECT_THROW(attention(q, k, v, "favor+", w, false, &sums), UsageError);
}

TEST(Slim, ZeroFeaturesGiveZero) {
  const Tensor q = -at::ones({1, 3, 1, 4}), v = at::ones({1, 3, 1, 4});
  EXPECT_TRUE(attention(q, q, v, "relu", {}).eq(0).all().item<bool>());
}

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(Slim, TypesAreChecked) {
  EXPECT_EQ(feature_type("favor+").blocks, 1);
  EXPECT_EQ(feature_type("favor+_12").blocks, 12);
  for (const char* wrong : {"favor", "favor+_", "favor+_0", "favor+_x", "favor+_2x", "softmax", "favor+2"}) {
    EXPECT_THAT([&] { feature_type(wrong); }, ThrowsMessage<UsageError>(HasSubstr(wrong))) << wrong;
  }
  const Tensor x = normal({1, 2, 3, 4}, 1);
  EXPECT_THROW(features(x, "favor+", {}), UsageError);
  EXPECT_THROW(features(x, "favor+_2", draw_projection(3, 1, 4, {})), UsageError);
}

}  // namespace
}  // namespace performer::references::slim
