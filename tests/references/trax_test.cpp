// SPDX-License-Identifier: Apache-2.0
// Trax's FAVOR layers against their formulas in double.
#include "performer/references/trax/attention.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"

namespace performer::references::trax {
namespace {

using at::Tensor;

Tensor normal(at::IntArrayRef sizes, int64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(static_cast<uint64_t>(seed)), at::kDouble);
}

struct Inputs {
  Tensor q = normal({2, 5, 3, 4}, 1) / 2, k = normal({2, 7, 3, 4}, 2) / 2, v = normal({2, 7, 3, 6}, 3);
  Tensor mask = at::tensor({1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1}).to(at::kBool).view({2, 7});
};

// Each row of `weights` [B, H, T, S] normalised over the keys.
Tensor dense(const Tensor& weights, const Tensor& v) {
  return at::einsum("bhij,bjhe->bihe", {weights / weights.sum(-1, true), v});
}

Tensor weights_of(const Tensor& phi_q, const Tensor& phi_k) {
  return at::einsum("bihm,bjhm->bhij", {phi_q, phi_k});
}

TEST(Trax, ReluWithMaskedKeysAsIfTheyWereNotThere) {
  const Inputs in;
  const auto f = [](const Tensor& x) { return x.clamp_min(0) + 1e-3; };
  const Tensor weights = weights_of(f(in.q), f(in.k)) * in.mask.unsqueeze(1).unsqueeze(1);
  EXPECT_TRUE(
      favor_attention(in.q, in.k, in.v, {}, {}, in.mask).allclose(dense(weights, in.v), 1e-10, 1e-12));
  Tensor hidden = in.k.clone();
  hidden.masked_fill_(in.mask.logical_not().unsqueeze(-1).unsqueeze(-1), 50);
  EXPECT_TRUE(
      favor_attention(in.q, hidden, in.v, {}, {}, in.mask).allclose(dense(weights, in.v), 1e-10, 1e-12));
  const Tensor half = in.mask.to(at::kDouble) / 2;  // one weight for all keys cancels
  EXPECT_TRUE(favor_attention(in.q, in.k, in.v, {}, {}, half).allclose(dense(weights, in.v), 1e-10, 1e-12));
}

TEST(Trax, SoftmaxFeaturesAreNotScaledUnlessAsked) {
  const Inputs in;
  const Tensor w = draw_projection(12, 4, true, {.seed = 1}).to(at::kDouble);
  for (const bool normalize : {false, true}) {
    const auto f = [&](const Tensor& x, bool is_query) {
      const Tensor y = normalize ? x / std::sqrt(2.0) : x;
      const Tensor u = at::matmul(y, w.t());
      const Tensor shift = is_query ? u.amax({3}, true) : u.amax({1, 3}, true);
      return (at::exp(u - y.square().sum(-1, true) / 2 - shift) + 1e-4) / std::sqrt(12.0);
    };
    FavorOptions options{.approximate_softmax = true, .normalize_data = normalize};
    EXPECT_TRUE(favor_attention(in.q, in.k, in.v, options, w)
                    .allclose(dense(weights_of(f(in.q, true), f(in.k, false)), in.v), 1e-10, 1e-12));
  }
}

TEST(Trax, CausalReluSeesNoFuture) {
  const Inputs in;
  const Tensor q = normal({2, 7, 3, 4}, 5);
  const auto f = [](const Tensor& x) { return x.clamp_min(0) + 0.5; };
  const Tensor expected = dense(weights_of(f(q), f(in.k)).tril(), in.v);
  EXPECT_TRUE(causal_favor_attention(q, in.k, in.v, 0.5).allclose(expected, 1e-10, 1e-12));
}

TEST(Trax, RowLengthsAndErrors) {
  const Tensor fixed = draw_projection(12, 4, false, {});
  EXPECT_TRUE(fixed.norm(2, {1}).allclose(at::full({12}, 2.0F), 1e-5));
  EXPECT_FALSE(draw_projection(12, 4, true, {}).norm(2, {1}).allclose(at::full({12}, 2.0F), 1e-2));
  const Inputs in;
  EXPECT_THROW(favor_attention(in.q, in.k, in.v, {.approximate_softmax = true}), UsageError);
  EXPECT_THROW(favor_attention(in.q, in.k, in.v, {}, {}, in.mask.narrow(1, 0, 5)), UsageError);
  EXPECT_THROW(favor_attention(in.q[0], in.k, in.v), UsageError);
}

}  // namespace
}  // namespace performer::references::trax
