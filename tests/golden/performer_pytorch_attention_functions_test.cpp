// SPDX-License-Identifier: Apache-2.0
// Projections, feature maps and linear attention of performer-pytorch, in float32 and float64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <optional>

#include "performer/references/performer_pytorch/fast_attention.h"
#include "tests/golden/golden.h"
#include "tests/golden/performer_pytorch_attention.h"

namespace performer::golden::performer_pytorch {
namespace {

constexpr at::ScalarType kBothTypes[] = {at::kFloat, at::kDouble};

// Input NAME, recorded [B, H, T, D], as the leaf of a graph in our layout [B, T, H, D].
struct Leaf {
  at::Tensor recorded, ours;
};

Leaf pair_of_leaves(const Case& item, const std::string& name, at::ScalarType type) {
  Leaf made{item.tensor(name).to(type).detach().clone().requires_grad_(true), {}};
  made.ours = made.recorded.transpose(1, 2);
  return made;
}

std::optional<at::Tensor> projection_of(const Case& item, at::ScalarType type) {
  if (!item.has("W")) return std::nullopt;
  return item.tensor("W").to(type);
}

TEST(PerformerPytorchGolden, Projection) {
  run_group("projection", "performer-pytorch", [&](Group& group, const Case& item) {
    ASSERT_EQ(item.function, "gaussian_orthogonal_random_matrix");
    expect_known_options(item, {"nb_rows", "nb_columns", "scaling"});
    for (const at::ScalarType type : kBothTypes) {
      RandomMatrixDraws draws;
      draws.blocks = item.tensor("normal_blocks").to(type);
      if (item.has("normal_rows")) draws.rows = item.tensor("normal_rows").to(type);
      const at::Tensor projection = gaussian_orthogonal_random_matrix(draws, item.option<int64_t>("nb_rows"),
                                                                      item.option<int64_t>("nb_columns"),
                                                                      item.option<int64_t>("scaling"));
      group.expect(item, "W", projection);
    }
  });
}

at::Tensor features(const Case& item, const at::Tensor& x, at::ScalarType type) {
  const auto projection = projection_of(item, type);
  const bool normalize = item.option<bool>("normalize_data");
  if (item.function == "softmax_kernel") {
    expect_known_options(
        item, {"B", "H", "L", "d", "m", "inputs", "normalize_data", "is_query", "eps", "ortho_scaling"});
    return softmax_kernel(x, projection.value(), item.option<bool>("is_query"), normalize,
                          item.option<double>("eps"));
  }
  EXPECT_EQ(item.function, "generalized_kernel");
  expect_known_options(item, {"B", "H", "L", "d", "m", "inputs", "normalize_data", "kernel_fn",
                              "kernel_epsilon", "projection"});
  EXPECT_EQ(projection.has_value(), item.option<bool>("projection"));
  return generalized_kernel(x, projection, kernel_name(item.options.at("kernel_fn")),
                            item.option<double>("kernel_epsilon"), normalize);
}

TEST(PerformerPytorchGolden, Features) {
  run_group("features", "performer-pytorch", [&](Group& group, const Case& item) {
    for (const at::ScalarType type : kBothTypes) {
      const Leaf x = pair_of_leaves(item, "x", type);
      expect_all(group, item, features(item, x.ours, type).transpose(1, 2), {{"dx", x.recorded}});
    }
  });
}

TEST(PerformerPytorchGolden, LinearAttention) {
  run_group("linear_attention", "performer-pytorch", [&](Group& group, const Case& item) {
    expect_known_options(item,
                         {"B", "H", "L", "S", "m", "dv", "small_features", "chunk_size", "eps", "inputs"});
    for (const at::ScalarType type : kBothTypes) {
      const Leaf q = pair_of_leaves(item, "q", type), k = pair_of_leaves(item, "k", type),
                 v = pair_of_leaves(item, "v", type);
      at::Tensor out;
      if (item.function == "linear_attention") {
        out = linear_attention(q.ours, k.ours, v.ours);
      } else {
        ASSERT_EQ(item.function, "causal_linear_attention_noncuda");
        out = causal_linear_attention(q.ours, k.ours, v.ours, item.options.value("eps", 1e-6),
                                      item.options.value("chunk_size", int64_t{128}));
      }
      expect_all(group, item, out.transpose(1, 2),
                 {{"dq", q.recorded}, {"dk", k.recorded}, {"dv", v.recorded}});
    }
  });
}

FastAttentionOptions attention_options(const Case& item) {
  expect_known_options(item, {"B", "H", "L", "S", "d", "dv", "nb_features", "resolved_nb_features", "causal",
                              "mode", "kernel_fn", "ortho_scaling", "inputs"});
  const auto mode = item.option<std::string>("mode");
  EXPECT_TRUE(mode == "softmax" || mode == "generalized" || mode == "no_projection") << mode;
  FastAttentionOptions options;
  options.causal = item.option<bool>("causal");
  options.generalized = mode == "generalized";
  options.no_projection = mode == "no_projection";
  options.kernel = kernel_name(item.options.at("kernel_fn"));
  return options;
}

TEST(PerformerPytorchGolden, FastAttention) {
  run_group("fast_attention", "performer-pytorch", [&](Group& group, const Case& item) {
    ASSERT_EQ(item.function, "FastAttention.forward");
    const FastAttentionOptions options = attention_options(item);
    if (item.options.at("nb_features").is_null()) {
      EXPECT_EQ(default_features(item.option<int64_t>("d")), item.option<int64_t>("resolved_nb_features"));
    }
    for (const at::ScalarType type : kBothTypes) {
      const Leaf q = pair_of_leaves(item, "q", type), k = pair_of_leaves(item, "k", type),
                 v = pair_of_leaves(item, "v", type);
      const auto projection = projection_of(item, type);
      if (projection) {
        EXPECT_EQ(projection->size(0), item.option<int64_t>("resolved_nb_features"));
      }
      const at::Tensor out =
          fast_attention(q.ours, k.ours, v.ours, projection.value_or(at::Tensor()), options);
      expect_all(group, item, out.transpose(1, 2),
                 {{"dq", q.recorded}, {"dk", k.recorded}, {"dv", v.recorded}});
    }
  });
}

}  // namespace
}  // namespace performer::golden::performer_pytorch
