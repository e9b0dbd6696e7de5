// SPDX-License-Identifier: Apache-2.0
#include "performer/references/protein_lm/import.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "performer/base/error.h"
#include "tests/errors.h"

namespace performer::references::protein_lm {
namespace {

using ::testing::HasSubstr;

// What the reference would save of a model of width 8 with 2 heads of 4.
std::map<std::string, at::Tensor> saved_parameters(int64_t layers, bool regression) {
  std::map<std::string, at::Tensor> saved = {
      {"embed/embedding", at::randn({29, 8})},
      {"AddLearnedPositionalEncodings_0/pos_embedding", at::randn({1, 6, 8})}};
  const auto norm = [&](const std::string& name) {
    saved[name + "/scale"] = at::randn({8});
    saved[name + "/bias"] = at::randn({8});
  };
  const auto dense = [&](const std::string& name, int64_t in, int64_t out) {
    saved[name + "/kernel"] = at::randn({in, out});
    saved[name + "/bias"] = at::randn({out});
  };
  for (int64_t layer = 1; layer <= layers; ++layer) {
    const std::string block = fmt::format("Transformer1DBlock_{}/", layer);
    for (const char* name : {"query", "key", "value"})
      saved[block + "MultiHeadDotProductAttention_1/" + name + "/kernel"] = at::randn({8, 2, 4});
    saved[block + "MultiHeadDotProductAttention_1/out/kernel"] = at::randn({2, 4, 8});
    norm(block + "LayerNorm_0");
    norm(block + "LayerNorm_2");
    dense(block + "MlpBlock_3/Dense_0", 8, 12);
    dense(block + "MlpBlock_3/Dense_1", 12, 8);
  }
  norm(fmt::format("LayerNorm_{}", layers + 1));
  dense(fmt::format("Dense_{}", layers + 2), 8, 29);
  if (regression) dense(fmt::format("Dense_{}", layers + 3), 8, 1);
  return saved;
}

AttentionConfig exact_attention() {
  AttentionConfig attention;
  attention.kind = "exact";
  return attention;
}

// The reference counts the parts of a model as it makes them, so that the names of the heads follow the
// layers.
TEST(ProteinLMImport, NamesOfTheHeadsFollowTheNumberOfLayers) {
  for (const int64_t layers : {1, 2, 3, 5}) {
    for (const bool regression : {false, true}) {
      const auto saved = saved_parameters(layers, regression);
      LanguageModel model = import_protein_lm(saved, ModelConfig(), exact_attention());
      EXPECT_EQ(model->model_config().layers, layers);
      EXPECT_EQ(model->model_config().regression_head, regression);
      auto parameters = model->named_parameters();
      EXPECT_TRUE(
          parameters["output.weight"].equal(saved.at(fmt::format("Dense_{}/kernel", layers + 2)).t()));
      EXPECT_TRUE(
          parameters["final_norm.bias"].equal(saved.at(fmt::format("LayerNorm_{}/bias", layers + 1))));
      std::set<std::string> theirs;
      for (const ProteinLMParameter& entry : protein_lm_parameters(model->model_config())) {
        theirs.insert(entry.theirs);
        const at::Tensor& like = saved.at(entry.theirs);
        EXPECT_TRUE(entry.to_theirs(parameters[entry.ours], like).equal(like)) << entry.theirs;
      }
      EXPECT_EQ(theirs.size(), saved.size());
    }
  }
}

TEST(ProteinLMImport, NamesWhatIsMissingOrLeftOver) {
  auto saved = saved_parameters(3, false);
  saved.erase("Dense_5/bias");
  EXPECT_THAT(test::error_of<InputError>([&] { import_protein_lm(saved, ModelConfig(), exact_attention()); }),
              HasSubstr("'Dense_5/bias' is missing"));
  saved = saved_parameters(1, false);
  saved["Dense_9/bias"] = at::zeros({1});
  EXPECT_THAT(test::error_of<InputError>([&] { import_protein_lm(saved, ModelConfig(), exact_attention()); }),
              HasSubstr("'Dense_9/bias' has no place in a model of 1 layers"));
}

}  // namespace
}  // namespace performer::references::protein_lm
