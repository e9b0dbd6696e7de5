// SPDX-License-Identifier: Apache-2.0
#include "performer/references/protein_lm/convert.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "performer/base/error.h"
#include "performer/models/folder.h"
#include "performer/references/protein_lm/import.h"

namespace performer::references::protein_lm {
namespace {

constexpr const char* kFirst = "Transformer1DBlock_1/LayerNorm_0/scale";

// What stands before the parameters in a checkpoint: "", "params/", "target/", "optimizer/target/" ...
std::string prefix_of(const convert::Source& source) {
  for (const auto& [name, tensor] : source.tensors) {
    const bool moments = name.find("param_states") != std::string::npos;
    if (!moments && name.ends_with(kFirst)) return name.substr(0, name.size() - std::string(kFirst).size());
  }
  return "none";
}

convert::Imported import_checkpoint(const convert::Source& source) {
  const std::string prefix = prefix_of(source);
  convert::Tensors parameters;
  for (const auto& [name, tensor] : source.tensors) {
    if (name.starts_with(prefix)) parameters[name.substr(prefix.size())] = tensor;
  }
  convert::Imported made;
  made.attention.kind = "exact";
  const auto objective = source.hints.find("model.objective");
  made.model.objective = objective == source.hints.end() ? "causal" : objective->second;
  made.model.norm_epsilon = 1e-6;
  LanguageModel model = import_protein_lm(parameters, made.model, made.attention);
  made.model = model->model_config();
  made.tensors = model_state(model);
  // Its letters are ours, in the same order.
  std::vector<std::string> texts;
  for (const char letter : std::string_view("ACDEFGHIKLMNPQRSTVWYBOUXZ")) texts.emplace_back(1, letter);
  texts.insert(texts.end(), {"<bos>", "<eos>", "<pad>", "<mask>"});
  check<InputError>(model->vocabulary() == std::ssize(texts),
                    "{} has {} tokens; only protein_lm's vocabulary of {} is supported", source.path,
                    model->vocabulary(), texts.size());
  made.tokens = convert::tokens_of_texts(std::move(texts), model->vocabulary());
  made.notes.push_back(
      fmt::format("the checkpoint does not say what attention it was trained with, nor its objective: exact "
                  "and {} are assumed "
                  "(--attention jax-relu, --set model.objective=masked ...)",
                  made.model.objective));
  return made;
}

}  // namespace

convert::Family family() {
  return {
      "protein_lm", "Flax checkpoints of google-research's protein_lm",
      [](const convert::Source& source) { return source.format == "flax" && prefix_of(source) != "none"; },
      import_checkpoint};
}

}  // namespace performer::references::protein_lm
