// SPDX-License-Identifier: Apache-2.0
// google-research's TensorFlow version: projections, features and attention.
#include "performer/references/tensorflow/attention.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/golden/cases.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

namespace jax = references::jax;
namespace tensorflow = references::tensorflow;

at::Tensor qr_projection(Group& group, const Case& item, at::ScalarType type) {
  std::vector<at::Tensor> blocks;
  for (int64_t block = 0; item.has(fmt::format("gauss_block{}", block)); ++block) {
    blocks.push_back(item.tensor(fmt::format("gauss_block{}", block)).to(type));
    const auto [q, r] = at::linalg_qr(blocks.back());
    group.expect(item, fmt::format("Q{}", block), q);
    group.expect(item, fmt::format("R{}", block), r);
  }
  return jax::orthogonal_projection({at::stack(blocks), leaf(item, "gauss_norm", type, false)},
                                    item.option<int64_t>("m"), item.option<int64_t>("scaling"));
}

at::Tensor givens_projection(Group& group, const Case& item, at::ScalarType type) {
  const auto draw = tensorflow::draw_numpy_givens(item.option<int64_t>("d"), item.option<uint32_t>("seed"));
  EXPECT_TRUE(draw.uniforms.equal(item.tensor("uniform64"))) << item.id;
  EXPECT_TRUE(draw.pairs.equal(item.tensor("index_pairs").to(at::kLong))) << item.id;
  const at::Tensor product =
      tensorflow::givens_product(item.option<int64_t>("d"),
                                 {item.tensor("uniform64"), item.tensor("index_pairs")})
          .to(type);
  group.expect(item, "givens_product", product);
  return tensorflow::givens_projection(product, leaf(item, "gauss_norm", type, false),
                                       item.option<int64_t>("m"), item.option<int64_t>("scaling"));
}

TEST(Golden, TensorflowProjection) {
  run_group("tf_projection", [&](Group& group, const Case& item) {
    expect_known_options(item, {"m", "d", "seed", "scaling", "struct_mode"});
    for (const at::ScalarType type : run_types(item)) {
      group.expect(item, "W",
                   item.option<bool>("struct_mode") ? givens_projection(group, item, type)
                                                    : qr_projection(group, item, type));
    }
  });
}

TEST(Golden, TensorflowFeatures) {
  run_group("tf_features", [&](Group& group, const Case& item) {
    expect_known_options(item, {"kernel", "is_query", "m", "eps", "input_std", "projection"});
    EXPECT_EQ(item.has("W"), item.option<std::string>("projection") != "none") << item.id;
    const auto kernel = item.option<std::string>("kernel");
    for (const at::ScalarType type : run_types(item)) {
      const at::Tensor x = leaf(item, "x", type), w = leaf(item, "W", type, false);
      at::Tensor phi;
      if (kernel == "softmax") {
        phi = tensorflow::softmax_features(x, item.option<bool>("is_query"), w, option_or(item, "eps", 1e-6));
      } else {
        EXPECT_EQ(kernel, "relu") << item.id;
        phi = tensorflow::relu_features(x, w, option_or(item, "eps", 1e-3));
      }
      group.expect(item, "features", phi);
      phi.backward(item.tensor("ct").to(type));
      group.expect(item, "dx", x.grad());
    }
  });
}

TEST(Golden, TensorflowAttention) {
  run_group("tf_attention", [&](Group& group, const Case& item) {
    expect_known_options(item, {"kernel", "causal", "m", "input_std", "eps", "projection"});
    tensorflow::FavorOptions options;
    options.kernel = item.option<std::string>("kernel");
    options.causal = item.option<bool>("causal");
    if (item.options.contains("eps") && !item.options["eps"].is_null())
      options.epsilon = item.option<double>("eps");
    for (const at::ScalarType type : run_types(item)) {
      const at::Tensor q = leaf(item, "q", type), k = leaf(item, "k", type), v = leaf(item, "v", type);
      const auto [out, denominator] =
          tensorflow::favor_attention(q, k, v, leaf(item, "W", type, false), options);
      group.expect(item, "out", out);
      // [B, T, H] here and in the recording
      expect_recorded(group, item, "R", denominator);
      out.backward(item.tensor("ct").to(type));
      group.expect(item, "dq", q.grad());
      group.expect(item, "dk", k.grad());
      group.expect(item, "dv", v.grad());
    }
  });
}

}  // namespace
}  // namespace performer::golden
