// SPDX-License-Identifier: Apache-2.0
// Whole models of protein_lm, run on their own weights: hidden states, logits, loss and gradients.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <optional>

#include "performer/data/vocabulary.h"
#include "performer/models/checkpoint.h"
#include "performer/models/protein_lm.h"
#include "tests/golden/golden.h"

namespace performer {
namespace {

// Why our model of the same weights gives other numbers; nothing when it gives the same.
std::optional<std::string> known_difference(const golden::Case& item) {
  const std::string attention = item.options.at("attention");
  if (item.option<bool>("soft_inputs")) return "inputs are distributions over tokens; our models read tokens";
  if (attention == "favor_softmax") {
    return item.option<bool>("causal") != item.option<bool>("unidirectional")
               ? "a causal model whose attention sees the future; ours cannot be built"
               : "features carry epsilon 1e-6 and a denominator guard; ours need neither";
  }
  return std::nullopt;
}

ModelConfig model_config(const golden::Case& item) {
  ModelConfig model;
  model.objective = item.option<bool>("causal") ? "causal" : "masked";
  model.layers = item.option<int64_t>("layers");
  model.width = item.option<int64_t>("emb");
  model.heads = item.option<int64_t>("heads");
  model.head_size = item.option<int64_t>("qkv") / model.heads;
  model.ffn = item.option<int64_t>("mlp");
  model.max_length = item.option<int64_t>("max_len");
  model.positions = item.option<std::string>("pos");
  return model;
}

AttentionConfig attention_config(const golden::Case& item) {
  AttentionConfig attention;
  attention.kind = item.option<std::string>("attention") == "exact" ? "exact" : "favor-relu";
  if (item.has("W")) {
    attention.projection = "orthogonal";
    attention.features = item.option<int64_t>("m");
  }
  return attention;
}

// Our name of each parameter, the reference's module path, and how its layout becomes ours.
struct Import {
  std::string ours, theirs;
  enum class Layout { same, dense, heads_in, heads_out, row } layout;
};

std::vector<Import> imports(const ModelConfig& model) {
  using Layout = Import::Layout;
  std::vector<Import> list = {{"embedding.weight", "embed/embedding", Layout::same},
                              {"final_norm.weight", "LayerNorm_3/scale", Layout::same},
                              {"final_norm.bias", "LayerNorm_3/bias", Layout::same},
                              {"output.weight", "Dense_4/kernel", Layout::dense},
                              {"output.bias", "Dense_4/bias", Layout::same}};
  if (model.positions == "learned") {
    list.push_back({"positions", "AddLearnedPositionalEncodings_0/pos_embedding", Layout::row});
  }
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string ours = fmt::format("blocks_{}.", layer),
                      theirs = fmt::format("Transformer1DBlock_{}/", layer + 1);
    for (const char* name : {"query", "key", "value"}) {
      list.push_back({fmt::format("{}attention.{}.weight", ours, name),
                      fmt::format("{}MultiHeadDotProductAttention_1/{}/kernel", theirs, name),
                      Layout::heads_in});
    }
    list.push_back({ours + "attention.out.weight", theirs + "MultiHeadDotProductAttention_1/out/kernel",
                    Layout::heads_out});
    list.push_back({ours + "attention_norm.weight", theirs + "LayerNorm_0/scale", Layout::same});
    list.push_back({ours + "attention_norm.bias", theirs + "LayerNorm_0/bias", Layout::same});
    list.push_back({ours + "ffn_norm.weight", theirs + "LayerNorm_2/scale", Layout::same});
    list.push_back({ours + "ffn_norm.bias", theirs + "LayerNorm_2/bias", Layout::same});
    list.push_back({ours + "up.weight", theirs + "MlpBlock_3/Dense_0/kernel", Layout::dense});
    list.push_back({ours + "up.bias", theirs + "MlpBlock_3/Dense_0/bias", Layout::same});
    list.push_back({ours + "down.weight", theirs + "MlpBlock_3/Dense_1/kernel", Layout::dense});
    list.push_back({ours + "down.bias", theirs + "MlpBlock_3/Dense_1/bias", Layout::same});
  }
  return list;
}

at::Tensor to_ours(const at::Tensor& theirs, Import::Layout layout) {
  switch (layout) {
    case Import::Layout::dense:
      return theirs.t();  // [in, out]
    case Import::Layout::heads_in:
      return theirs.flatten(1).t();  // [width, H, D]
    case Import::Layout::heads_out:
      return theirs.flatten(0, 1).t();  // [H, D, width]
    case Import::Layout::row:
      return theirs[0];  // [1, max_length, width]
    case Import::Layout::same:
      break;
  }
  return theirs;
}

// The inverse of to_ours(), for gradients: `like` has the shape of the reference.
at::Tensor to_theirs(const at::Tensor& ours, Import::Layout layout, const at::Tensor& like) {
  const bool turned = layout != Import::Layout::same && layout != Import::Layout::row;
  return (turned ? ours.t() : ours).reshape(like.sizes());
}

ProteinLM import_model(const golden::Case& item) {
  const ModelConfig config = model_config(item);
  ProteinLM model(config, attention_config(item), data::kVocabularySize);
  std::map<std::string, at::Tensor> state;
  for (const Import& entry : imports(config)) {
    state[entry.ours] = to_ours(item.tensor("param/" + entry.theirs), entry.layout);
  }
  if (item.has("W")) {  // one projection for all layers and heads there
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      state[fmt::format("blocks_{}.attention.projection", layer)] =
          item.tensor("W").unsqueeze(0).expand({config.heads, -1, -1});
    }
  }
  set_model_state(model, state, item.id);
  model->eval();
  return model;
}

// Exact attention masks padding there; FAVOR ignores it, which a batch without a mask expresses.
SequenceBatch import_batch(const golden::Case& item) {
  SequenceBatch batch;
  batch.tokens = item.tensor("model_inputs").to(at::kLong);
  batch.positions = at::arange(batch.tokens.size(1)).expand_as(batch.tokens);
  if (item.option<std::string>("attention") == "exact") batch.key_mask = batch.tokens.ne(data::kPad);
  return batch;
}

at::Tensor mean_loss(const at::Tensor& logits, const golden::Case& item) {
  const at::Tensor targets = item.tensor("targets").to(at::kLong);
  const at::Tensor losses = -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1);
  const at::Tensor weights = item.tensor("weights").to(logits.scalar_type());
  return (losses * weights).sum() / weights.sum();
}

// In double the result is held to the double tolerance, which float32 weights and projections allow.
void compare(golden::Group& group, const golden::Case& item, at::ScalarType type) {
  ProteinLM model = import_model(item);
  model->to(type);
  const SequenceBatch batch = import_batch(item);
  const at::Tensor hidden = model->hidden(batch);
  // The reference zeroes its embeddings at padding.
  group.expect(item, "output_emb", hidden * batch.tokens.ne(data::kPad).unsqueeze(-1));
  const at::Tensor logits = model(batch);
  group.expect(item, "logits", logits);
  if (!item.outputs.contains("mean_loss")) return;
  const at::Tensor loss = mean_loss(logits, item);
  group.expect(item, "mean_loss", loss);
  if (!item.option<bool>("grads")) return;
  loss.backward();
  auto parameters = model->named_parameters();
  for (const Import& entry : imports(model->model_config())) {
    const std::string name = "grad/" + entry.theirs;
    group.expect(item, name, to_theirs(parameters[entry.ours].grad(), entry.layout, item.tensor(name)));
  }
}

TEST(PlmModel, HiddenStatesLogitsLossAndGradients) {
  golden::Group group("plm_model");
  if (group.empty()) GTEST_SKIP() << golden::kMissing;
  for (const golden::Case& item : group.cases()) {
    if (const auto reason = known_difference(item)) {
      group.known_other(item, *reason);
      continue;
    }
    compare(group, item, at::kFloat);
    compare(group, item, at::kDouble);
  }
  group.finish();
}

}  // namespace
}  // namespace performer
