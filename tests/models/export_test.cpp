// SPDX-License-Identifier: Apache-2.0
// Converted and exported again, a recorded folder is what it was. That transformers loads it:
// check_export.py.
#include "performer/models/convert/export.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/convert/convert.h"
#include "performer/models/readers/weights_folder.h"
#include "tests/models/pretrained.h"

namespace performer::convert {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

namespace fs = std::filesystem;

class Exported : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / ("exported_" + std::string(GetParam()));
    fs::remove_all(folder_);
    Request request{pretrained_path(GetParam())};
    const bool words = std::string(GetParam()) == "gpt2" || std::string(GetParam()) == "llama";
    if (words) request.tokenizer = Tokenizer::ids;
    export_model(folder_.string(), convert(request).folder);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

TEST_P(Exported, HasTheTensorsOfTheSource) {
  Tensors theirs = read_weights_folder(pretrained_path(GetParam())).stored.tensors;
  Tensors ours = read_weights_folder(folder_.string()).stored.tensors;
  const std::string root = std::string(GetParam()) == "bert" ? "bert." : "roberta.";
  const std::string positions = root + "embeddings.position_embeddings.weight",
                    types = root + "embeddings.token_type_embeddings.weight";
  if (theirs.contains(
          types)) {  // the first type is a part of the positions here, for which only those after PAD count
    const int64_t first = root == "bert." ? 0 : 2;
    const auto sum = [&](Tensors& tensors) {
      const at::Tensor rows = tensors.at(positions).slice(0, first) + tensors.at(types)[0];
      tensors.erase(positions);
      tensors.erase(types);
      return rows;
    };
    EXPECT_TRUE(sum(theirs).equal(sum(ours)));
  }
  if (theirs.contains("esm.embeddings.position_embeddings.weight")) {
    for (Tensors* tensors : {&theirs, &ours})
      tensors->at("esm.embeddings.position_embeddings.weight").slice(0, 0, 2).zero_();
  }
  for (const auto& [stored, tensor] : theirs) {
    // transformers 5 writes the norms of ESM under their old names.
    std::string name = stored;
    for (const auto& [old, present] : {std::pair(".gamma", ".weight"), {".beta", ".bias"}}) {
      if (name.ends_with(old)) name = name.substr(0, name.rfind('.')) + present;
    }
    if (name.find("contact_head") != std::string::npos || name.find("position_ids") != std::string::npos)
      continue;
    ASSERT_TRUE(ours.contains(name)) << name;
    EXPECT_TRUE(ours.at(name).equal(tensor)) << name;
    ours.erase(name);
  }
  std::erase_if(ours, [](const auto& item) { return item.first.find("inv_freq") != std::string::npos; });
  EXPECT_TRUE(ours.empty()) << ours.begin()->first;
}

TEST_P(Exported, HasTheConfigurationOfTheSource) {
  const json theirs = json::parse(read_file(pretrained_path(GetParam()) + "/config.json")),
             ours = json::parse(read_file((folder_ / "config.json").string()));
  for (const char* key : {"model_type",
                          "architectures",
                          "vocab_size",
                          "hidden_size",
                          "num_hidden_layers",
                          "num_attention_heads",
                          "intermediate_size",
                          "max_position_embeddings",
                          "layer_norm_eps",
                          "type_vocab_size",
                          "position_embedding_type",
                          "token_dropout",
                          "emb_layer_norm_before",
                          "n_layer",
                          "n_embd",
                          "n_head",
                          "n_inner",
                          "n_positions",
                          "layer_norm_epsilon",
                          "num_key_value_heads",
                          "rms_norm_eps",
                          "hidden_act",
                          "activation_function",
                          "tie_word_embeddings"}) {
    // BERT of transformers 5 no longer writes its only type of positions.
    if (!theirs.contains(key) || !ours.contains(key)) continue;
    EXPECT_EQ(ours[key], theirs[key]) << key;
  }
  EXPECT_EQ(ours["model_type"], theirs["model_type"]);
  EXPECT_EQ(ours["vocab_size"], theirs["vocab_size"]);
}

INSTANTIATE_TEST_SUITE_P(Recorded, Exported,
                         ::testing::Values("bert", "roberta", "esm2", "esm1b", "gpt2", "llama"));

TEST(Export, WritesTheTokensOfTheSource) {
  const fs::path folder = fs::path(::testing::TempDir()) / "exported_tokens";
  fs::remove_all(folder);
  for (const char* name : {"bert", "esm2"}) {
    export_model(folder.string(), convert({pretrained_path(name)}).folder);
    EXPECT_EQ(read_file((folder / "vocab.txt").string()), read_file(pretrained_path(name) + "/vocab.txt"))
        << name;
  }
  fs::remove_all(folder);
}

TEST(Export, NamesTheReasonsWhereNoShapeFits) {
  const auto message = [](const ModelFolder& folder) {
    try {
      export_shape(folder);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("exported");
  };
  EXPECT_THAT(message(convert({pretrained_path("bert"), "favor-softmax"}).folder),
              HasSubstr("exact attention, not favor-softmax"));
  ModelFolder native;
  AttentionConfig exact;
  exact.kind = "exact";
  native.model = LanguageModel(ModelConfig{.layers = 1, .width = 16, .heads = 2, .ffn = 32}, exact, 29);
  EXPECT_THAT(message(native), HasSubstr("GPT-2 has learned positions; LLaMA has rms norms"));
}

// A model that was trained here, in GPT-2's shape, keeps its logits: the factor of its tied output goes into
// the norm.
TEST(Export, ExpressesOurOwnModels) {
  ModelConfig config{.layers = 1, .width = 16, .heads = 2, .ffn = 32, .max_length = 20};
  config.positions = "learned";
  config.tied_output = true;
  AttentionConfig exact;
  exact.kind = "exact";
  ModelFolder native;
  native.model = LanguageModel(config, exact, native.vocabulary.size());
  native.model->eval();
  const at::NoGradGuard no_grad;
  for (auto& item : native.model->named_parameters()) {
    if (item.key() == "output_bias") item.value().zero_();
  }
  const fs::path folder = fs::path(::testing::TempDir()) / "exported_native";
  fs::remove_all(folder);
  export_model(folder.string(), native);
  Request request{folder.string()};
  request.tokenizer = Tokenizer::ids;
  // Both ends of a sequence are markers of their own in this model.
  Conversion again = convert(request);
  SequenceBatch batch;
  batch.tokens = at::randint(25, {2, 9}, at::kLong);
  batch.positions = at::arange(9).expand({2, 9});
  SequenceBatch other = batch;
  std::vector<int64_t> ours(29);
  const auto& ids = again.folder.vocabulary.source_ids();
  for (size_t id = 0; id < ids.size(); ++id) {
    if (ids[id] >= 0) ours[static_cast<size_t>(ids[id])] = static_cast<int64_t>(id);
  }
  other.tokens = at::tensor(ours, at::kLong).index_select(0, batch.tokens.flatten()).view({2, 9});
  const at::Tensor expected = native.model->forward(batch), found = again.folder.model->forward(other);
  EXPECT_TRUE(found.index_select(2, at::tensor(ours, at::kLong)).allclose(expected, 1e-4, 1e-4));
  fs::remove_all(folder);
}

}  // namespace
}  // namespace performer::convert
