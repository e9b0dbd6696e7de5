// SPDX-License-Identifier: Apache-2.0
#include "performer/references/protein_lm/import.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "performer/base/error.h"
#include "performer/models/import_weights.h"

namespace performer::references::protein_lm {
namespace {

const at::Tensor& parameter(const std::map<std::string, at::Tensor>& parameters, const std::string& name,
                            int64_t dimensions) {
  const auto found = parameters.find(name);
  check<InputError>(found != parameters.end(), "protein_lm parameters: '{}' is missing", name);
  check<InputError>(found->second.dim() == dimensions,
                    "protein_lm parameters: '{}' has {} dimensions, expected {}", name, found->second.dim(),
                    dimensions);
  return found->second;
}

// The reference numbers the parts of a model in the order of their making: positions 0, blocks from 1, then
// the last norm, the logits and the regression.
std::string head_name(const ModelConfig& model, const std::string& part) {
  if (part == "norm") return fmt::format("LayerNorm_{}", model.layers + 1);
  return fmt::format("Dense_{}", model.layers + (part == "logits" ? 2 : 3));
}

// Sizes as the tensors have them.
void read_sizes(const std::map<std::string, at::Tensor>& parameters, ModelConfig& model) {
  const std::string first = "Transformer1DBlock_1/";
  const at::Tensor& query = parameter(parameters, first + "MultiHeadDotProductAttention_1/query/kernel", 3);
  model.width = query.size(0);
  model.heads = query.size(1);
  model.head_size = query.size(2);
  model.ffn = parameter(parameters, first + "MlpBlock_3/Dense_0/kernel", 2).size(1);
  model.layers = 0;
  while (parameters.contains(fmt::format("Transformer1DBlock_{}/LayerNorm_0/scale", model.layers + 1)))
    ++model.layers;
  const std::string positions = "AddLearnedPositionalEncodings_0/pos_embedding";
  model.positions = parameters.contains(positions) ? "learned" : "sinusoidal";
  model.regression_head = parameters.contains(head_name(model, "regression") + "/kernel");
  if (model.positions == "learned") model.max_length = parameter(parameters, positions, 3).size(1);
}

}  // namespace

at::Tensor ProteinLMParameter::to_ours(const at::Tensor& theirs_tensor) const {
  switch (layout) {
    case Layout::dense:
      return theirs_tensor.t();  // [in, out]
    case Layout::heads_in:
      return theirs_tensor.flatten(1).t();  // [width, H, D]
    case Layout::heads_out:
      return theirs_tensor.flatten(0, 1).t();  // [H, D, width]
    case Layout::row:
      return theirs_tensor[0];  // [1, max_length, width]
    case Layout::same:
      break;
  }
  return theirs_tensor;
}

at::Tensor ProteinLMParameter::to_theirs(const at::Tensor& ours_tensor, const at::Tensor& like) const {
  const bool turned = layout != Layout::same && layout != Layout::row;
  return (turned ? ours_tensor.t() : ours_tensor).reshape(like.sizes());
}

std::vector<ProteinLMParameter> protein_lm_parameters(const ModelConfig& model) {
  using Layout = ProteinLMParameter::Layout;
  const std::string norm = head_name(model, "norm"), logits = head_name(model, "logits"),
                    regression = head_name(model, "regression");
  std::vector<ProteinLMParameter> list = {{"embedding.weight", "embed/embedding", Layout::same},
                                          {"final_norm.weight", norm + "/scale", Layout::same},
                                          {"final_norm.bias", norm + "/bias", Layout::same},
                                          {"output.weight", logits + "/kernel", Layout::dense},
                                          {"output.bias", logits + "/bias", Layout::same}};
  if (model.positions == "learned") {
    list.push_back({"positions", "AddLearnedPositionalEncodings_0/pos_embedding", Layout::row});
  }
  if (model.regression_head) {
    list.push_back({"regression.weight", regression + "/kernel", Layout::dense});
    list.push_back({"regression.bias", regression + "/bias", Layout::same});
  }
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string ours = fmt::format("blocks_{}.", layer),
                      theirs = fmt::format("Transformer1DBlock_{}/", layer + 1);
    const std::string attention = theirs + "MultiHeadDotProductAttention_1/";
    for (const char* name : {"query", "key", "value"}) {
      list.push_back(
          {fmt::format("{}attention.{}.weight", ours, name), attention + name + "/kernel", Layout::heads_in});
    }
    list.push_back({ours + "attention.out.weight", attention + "out/kernel", Layout::heads_out});
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

LanguageModel import_protein_lm(const std::map<std::string, at::Tensor>& parameters, ModelConfig model,
                                AttentionConfig attention, const std::optional<at::Tensor>& projection) {
  read_sizes(parameters, model);
  model.norm = "pre";
  model.activation = "gelu-tanh";
  model.attention_bias = model.tied_output = false;
  if (projection) {
    const nn::AttentionKind& kind = nn::find_kind(attention.kind);
    if (nn::has_option(kind, "features")) attention.set("features", projection->size(0));
    // The reference's draw replaces ours below.
    if (nn::has_option(kind, "projection")) attention.set("projection", "orthogonal");
    attention.redraw_every = 0;
  }
  LanguageModel imported(model, attention, parameter(parameters, "embed/embedding", 2).size(0));
  std::map<std::string, at::Tensor> tensors, theirs = parameters;
  for (const ProteinLMParameter& entry : protein_lm_parameters(model)) {
    const auto found = theirs.find(entry.theirs);
    check<InputError>(found != theirs.end(), "protein_lm parameters: '{}' is missing", entry.theirs);
    tensors[entry.ours] = entry.to_ours(found->second);
    theirs.erase(found);
  }
  check<InputError>(theirs.empty(), "protein_lm parameters: '{}' has no place in a model of {} layers",
                    theirs.empty() ? "" : theirs.begin()->first, model.layers);
  if (projection) {  // one for all layers and heads there
    for (const auto& buffer : imported->named_buffers()) {
      if (buffer.key().ends_with(".projection"))
        tensors[buffer.key()] = projection->expand_as(buffer.value());
    }
  }
  import_weights(*imported, tensors);
  return imported;
}

}  // namespace performer::references::protein_lm
