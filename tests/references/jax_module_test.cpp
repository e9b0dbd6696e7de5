// SPDX-License-Identifier: Apache-2.0
#include "performer/references/jax/module.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include "performer/base/error.h"

namespace performer::references::jax {
namespace {

using at::Tensor;

FastAttentionModuleOptions small_options() {
  FastAttentionModuleOptions options;
  options.heads = 2;
  options.query_size = 6;
  options.key_value_size = 5;
  options.qkv_features = 8;
  options.out_features = 3;
  SoftmaxAttentionOptions attention;
  attention.redraw = false;
  attention.features = 10;
  options.attention = attention;
  return options;
}

TEST(FastAttentionModule, SizesAndParametersAreTheOptions) {
  FastAttentionModule module(small_options());
  const Tensor out = module->forward(at::randn({2, 4, 6}), at::randn({2, 7, 5}));
  EXPECT_EQ(out.sizes(), (at::IntArrayRef{2, 4, 3}));
  EXPECT_EQ(module->named_buffers()["projection"].sizes(), (at::IntArrayRef{10, 4}));
  EXPECT_EQ(module->parameters().size(), 8U);
  auto options = small_options();
  options.use_bias = false;
  EXPECT_EQ(FastAttentionModule(options)->parameters().size(), 4U);
  options.heads = 3;
  EXPECT_THROW(FastAttentionModule{options}, UsageError);
}

TEST(FastAttentionModule, SeveralAxesAreAttendedOver) {
  FastAttentionModule module(small_options());
  const Tensor q = at::randn({2, 2, 3, 6}), kv = at::randn({2, 3, 2, 5});
  const Tensor expected = module->forward(q.flatten(1, 2), kv.flatten(1, 2));
  EXPECT_TRUE(module->forward(q, kv).flatten(1, 2).allclose(expected, 1e-4, 1e-5));
}

// The mask reaches values alone: with equal values of 1 the output is the share of weight on kept keys.
TEST(FastAttentionModule, MaskedKeysStayInTheDenominator) {
  auto options = small_options();
  options.attention = GeneralizedAttentionOptions{};
  options.out_features = 8;
  FastAttentionModule module(options);
  const at::NoGradGuard no_grad;
  for (auto& item : module->named_parameters()) {
    if (item.key() == "value.weight") item.value().zero_();
    if (item.key() == "value.bias") item.value().fill_(1);
    if (item.key() == "out.weight") item.value().copy_(at::eye(8));
    if (item.key() == "key.weight") item.value().zero_();  // all keys alike
  }
  const Tensor mask = at::tensor({1.0F, 0.0F, 0.0F, 0.5F}).view({1, 4});
  const Tensor out = module->forward(at::randn({1, 3, 6}), at::randn({1, 4, 5}), mask);
  EXPECT_TRUE(out.allclose(at::full({1, 3, 8}, 1.5F / 4), 1e-5, 1e-6));
  for (const Tensor& shared : {mask, mask[0]}) {  // one row of the mask for all of the batch
    const Tensor both = module->forward(at::randn({2, 3, 6}), at::randn({2, 4, 5}), shared);
    EXPECT_TRUE(both.allclose(at::full({2, 3, 8}, 1.5F / 4), 1e-5, 1e-6));
  }
  EXPECT_THAT(
      [&] {
        module->forward(at::randn({1, 3, 6}), at::randn({1, 4, 5}), at::ones({1, 3}));
      },
      ::testing::ThrowsMessage<UsageError>(::testing::HasSubstr("must be [1, 4], found [1, 3]")));
}

TEST(FastAttentionModule, RedrawsWhenTheAttentionDoes) {
  auto options = small_options();
  std::get<SoftmaxAttentionOptions>(options.attention).redraw = true;
  FastAttentionModule module(options);
  EXPECT_EQ(module->buffers().size(), 0U);
  EXPECT_TRUE(module->forward(at::randn({1, 3, 6}), at::randn({1, 4, 5})).isfinite().all().item<bool>());
}

TEST(FastAttentionModule, ImportIsAllOrNothing) {
  FastAttentionModule module(small_options());
  const Tensor before = module->parameters()[0].clone();
  std::map<std::string, Tensor> weights = {
      {"query/kernel", at::randn({6, 2, 4})}, {"query/bias", at::randn({2, 4})},
      {"key/kernel", at::randn({5, 2, 4})},   {"key/bias", at::randn({2, 4})},
      {"value/kernel", at::randn({5, 2, 4})}, {"value/bias", at::randn({2, 4})},
      {"out/kernel", at::randn({2, 4, 3})},   {"out/bias", at::randn({3})},
      {"projection", at::randn({10, 4})}};
  auto wrong = weights;
  wrong["out/kernel"] = at::randn({2, 4, 4});
  EXPECT_THROW(module->import_flax(wrong), InputError);
  EXPECT_TRUE(module->parameters()[0].equal(before));
  module->import_flax(weights);
  const Tensor x = at::randn({1, 2, 6});
  const Tensor query = at::einsum("bte,ehd->bthd", {x, weights["query/kernel"]}) + weights["query/bias"];
  const Tensor own = at::matmul(x, module->named_parameters()["query.weight"].t()) +
                     module->named_parameters()["query.bias"];
  EXPECT_TRUE(own.unflatten(-1, {2, 4}).allclose(query, 1e-5, 1e-6));
}

}  // namespace
}  // namespace performer::references::jax
