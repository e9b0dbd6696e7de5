// SPDX-License-Identifier: Apache-2.0
// Feature transforms and projection matrices of KernelAttention.
#include "performer/references/keras/features.h"

#include "performer/references/keras/projection.h"
#include "tests/golden/keras_case.h"

namespace performer::golden::keras {
namespace {

TEST(KerasGolden, Features) {
  run_group("features", "keras", [&](Group& group, const Case& item) {
    expect_known(item, {"feature_transform", "is_query", "num_random_features", "normalize_data",
                        "numerical_renormalizer", "numerical_stabilizer", "extra_renormalize_exp_fun"});
    const std::string name = transform_of(item);
    ASSERT_EQ(item.has("W"), random_features_of(item) > 0) << item.id;
    reference::ExpPlusOptions with;
    with.numerical_stabilizer = option_or(item, "numerical_stabilizer", with.numerical_stabilizer);
    with.normalize_data = option_or(item, "normalize_data", with.normalize_data);
    with.numerical_renormalizer = option_or(item, "numerical_renormalizer", with.numerical_renormalizer);
    with.extra_renormalize_exp_fun =
        option_or(item, "extra_renormalize_exp_fun", with.extra_renormalize_exp_fun);
    const bool is_query = item.option<bool>("is_query");
    compare(group, item, [&](const Inputs& inputs) {
      const at::Tensor& x = inputs.at("x");
      const at::Tensor other = maybe(inputs, "y").value_or(x);
      if (name == "expplus") return reference::expplus(x, other, is_query, maybe(inputs, "W"), with);
      return reference::transform(name, x, other, is_query, maybe(inputs, "W"));
    });
  });
}

reference::Seed seed_of(const at::Tensor& pair) {
  const at::Tensor wide = pair.to(at::kLong);
  return {wide[0].item<int64_t>(), wide[1].item<int64_t>()};
}

// Equal but for the C library's logarithm, sine and cosine: a unit in the last place of each.
void expect_same_draw(const at::Tensor& actual, const at::Tensor& expected, const std::string& id) {
  EXPECT_LT((actual - expected.view(actual.sizes())).abs().max().item<double>(), 1e-6) << id;
}

void compare_seeded(Group& group, const Case& item) {
  const int64_t rows = item.option<int64_t>("m"), size = item.option<int64_t>("d");
  const at::Tensor blocks = item.tensor("normal_blocks"), lengths = item.tensor("normal_rows"),
                   seeds = item.tensor("block_seeds");
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const at::Tensor norms = lengths.to(type).square().sum(-1).sqrt();
    group.expect(item, "W", reference::projection_from_draws(blocks.to(type), norms));
  }
  reference::Seed seed = seed_of(seeds[0]);
  EXPECT_EQ(seed, (reference::Seed{item.options.at("seed")[0], item.options.at("seed")[1]})) << item.id;
  expect_seeded(item, reference::projection_from_seed(rows, size, seed));
  for (int64_t i = 0; i < blocks.size(0); ++i) {
    EXPECT_EQ(seed, seed_of(seeds[i])) << item.id;
    expect_same_draw(reference::stateless_normal(size, size, seed), blocks[i], item.id);
    seed = reference::next_seed(seed);
  }
  EXPECT_EQ(seed, seed_of(seeds[-1])) << item.id;
  expect_same_draw(reference::stateless_normal(rows, size, seed), lengths, item.id);
}

TEST(KerasGolden, Projection) {
  run_group("projection", "keras", [&](Group& group, const Case& item) {
    expect_known(item, {"m", "d", "seed", "global_seed"});
    if (item.function == "create_projection_matrix") {
      compare_seeded(group, item);
      return;
    }
    ASSERT_EQ(item.function, "create_projection_matrix(seed=None) twice") << item.id;
    const int64_t rows = item.option<int64_t>("m"), size = item.option<int64_t>("d");
    const at::Tensor norms = item.tensor("fixed_row_norms");
    expect_same_draw(reference::redrawn_norms(rows, size), norms, item.id);
    for (const char* index : {"1", "2"}) {
      const at::Tensor blocks = item.tensor(std::string("normal_blocks_") + index);
      group.expect(item, std::string("W_") + index, reference::projection_from_draws(blocks, norms));
    }
  });
}

}  // namespace
}  // namespace performer::golden::keras
