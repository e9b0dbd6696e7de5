// SPDX-License-Identifier: Apache-2.0
// Feature creators of google-research's JAX code, with their gradients.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/references/jax/attention.h"
#include "tests/golden/cases.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

namespace jax = references::jax;

at::Tensor features(const Case& item, const at::Tensor& x, const at::Tensor& w) {
  const auto kind = item.option<std::string>("kind");
  const auto normalize_data = item.option<bool>("normalize_data");
  if (kind == "positive") {
    return jax::positive_features(x, w,
                                  {.is_query = item.option<bool>("is_query"),
                                   .attention_axes = item.option<int64_t>("attn_axes"),
                                   .normalize_data = normalize_data,
                                   .epsilon = item.option<double>("eps")});
  }
  if (kind == "sincos") {
    return jax::trigonometric_features(x, w, item.option<int64_t>("attn_axes"), normalize_data);
  }
  EXPECT_EQ(kind, "generalized") << item.id;
  return jax::generalized_features(x, w, function_name(item.option<std::string>("kernel_fn")),
                                   item.option<double>("kernel_epsilon"), normalize_data);
}

TEST(Golden, JaxFeatures) {
  run_group("jax_features", [&](Group& group, const Case& item) {
    expect_known_options(item, {"kind", "is_query", "normalize_data", "eps", "attn_axes", "m", "projection",
                                "ortho_scaling", "input_std", "kernel_fn", "kernel_epsilon"});
    EXPECT_EQ(item.has("W"), item.option<std::string>("projection") != "none") << item.id;
    for (const at::ScalarType type : run_types(item)) {
      const at::Tensor x = leaf(item, "x", type);
      const at::Tensor phi = features(item, x, leaf(item, "W", type, false));
      group.expect(item, "features", phi);
      phi.backward(item.tensor("ct").to(type));
      group.expect(item, "dx", x.grad());
    }
  });
}

}  // namespace
}  // namespace performer::golden
