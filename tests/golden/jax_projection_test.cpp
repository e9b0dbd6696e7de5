// SPDX-License-Identifier: Apache-2.0
// Projections of google-research's JAX code: from recorded Gaussians, and drawn anew from the queries.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "performer/references/jax/attention.h"
#include "tests/golden/cases.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

namespace jax = references::jax;

void expect_redraw(Group& group, const Case& item) {
  expect_known_options(item, {"d", "m", "redraw_features"});
  jax::SoftmaxAttentionOptions options;
  options.head_size = item.option<int64_t>("d");
  options.features = item.option<int64_t>("m");
  options.redraw = item.option<bool>("redraw_features");
  const jax::FastAttention attention = jax::make_fast_softmax_attention(options);
  const at::Tensor q = item.tensor("q");
  group.expect(item, "scaled_sum", at::scalar_tensor(jax::redraw_sum(q)));
  group.expect(item, "seed", at::scalar_tensor(jax::redraw_seed(q), at::kInt));
  group.expect(item, "W_drawn", attention.projection_for(q));
  group.expect(item, "out", attention(q, item.tensor("k"), item.tensor("v")));
}

void expect_orthogonal(Group& group, const Case& item, at::ScalarType type) {
  const auto rows = item.option<int64_t>("m"), scaling = item.option<int64_t>("scaling");
  std::vector<at::Tensor> blocks;
  for (int64_t block = 0; block < item.option<int64_t>("n_blocks"); ++block) {
    blocks.push_back(item.tensor(fmt::format("gauss_block{}", block)).to(type));
    const auto [q, r] = at::linalg_qr(blocks.back());
    group.expect(item, fmt::format("Q{}", block), q);
    group.expect(item, fmt::format("R{}", block), r);
  }
  const jax::GaussianDraw draw{at::stack(blocks), leaf(item, "gauss_norm", type, false)};
  const at::Tensor w = jax::orthogonal_projection(draw, rows, scaling);
  group.expect(item, "W", w);
  expect_recorded(group, item, "row_norms", w.norm(2, {1}));
  expect_recorded(group, item, "f32only_gram", at::matmul(w, w.t()));
}

// The recorded Gaussians themselves are those of the recorded seed.
void expect_drawn(Group& group, const Case& item, bool orthogonal) {
  const jax::JaxKey key = jax::jax_key(item.option<int32_t>("seed"));
  const jax::ProjectionOptions options{item.option<int64_t>("m"), item.option<int64_t>("d"), orthogonal,
                                       option_or<int64_t>(item, "scaling", 0)};
  group.expect(item, "W", jax::draw_jax_projection(options, key));
  const at::Tensor given = item.tensor(orthogonal ? "gauss_block0" : "gauss");
  const at::Tensor drawn = jax::jax_normal(orthogonal ? jax::jax_split(key).second : key, given.sizes());
  EXPECT_TRUE(drawn.allclose(given, 1e-6, 1e-6)) << item.id << ": " << (drawn - given).abs().max();
}

TEST(Golden, JaxProjection) {
  run_group("jax_projection", [&](Group& group, const Case& item) {
    if (item.options.contains("redraw_features")) {
      expect_redraw(group, item);
      return;
    }
    expect_known_options(item, {"type", "m", "d", "seed", "scaling", "n_blocks"});
    const auto kind = item.option<std::string>("type");
    expect_drawn(group, item, kind == "ortho");
    for (const at::ScalarType type : run_types(item)) {
      if (kind == "ortho") {
        expect_orthogonal(group, item, type);
      } else if (kind == "iid") {
        group.expect(item, "W", item.tensor("gauss").to(type));
      } else {
        ADD_FAILURE() << item.id << ": projection type " << kind << " is not understood";
      }
    }
  });
}

}  // namespace
}  // namespace performer::golden
