// SPDX-License-Identifier: Apache-2.0
// Whole models of protein_lm, run on their own weights: hidden states, logits, loss and gradients.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <optional>

#include "performer/data/vocabulary.h"
#include "performer/references/protein_lm/import.h"
#include "performer/references/register.h"
#include "performer/train/loss.h"
#include "tests/golden/cases.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

namespace protein_lm = references::protein_lm;

// A causal model of the reference whose attention was built without `unidirectional` sees the future; its
// weights make a model of objective `masked` here.
ModelConfig model_config(const Case& item) {
  ModelConfig model;
  const bool exact = item.option<std::string>("attention") == "exact";
  model.objective = item.option<bool>(exact ? "causal" : "unidirectional") ? "causal" : "masked";
  return model;
}

// "exact", or what one of fast_attention's factories makes: "favor_softmax", "favor_trig", and "favor_" with
// the name of a kernel function, whose features there have 1e-3 added.
AttentionConfig attention_config(const Case& item) {
  const auto name = item.option<std::string>("attention");
  AttentionConfig attention;
  if (name == "exact") {
    attention.kind = "exact";
  } else if (name == "favor_softmax" || name == "favor_trig") {
    attention.kind = "jax-" + name.substr(6);
  } else {
    attention.kind = "favor-" + function_name(name.substr(name.find('_') + 1));
    attention.set("epsilon", 1e-3);
  }
  return attention;
}

LanguageModel import_model(const Case& item) {
  references::register_all();
  std::map<std::string, at::Tensor> parameters;
  for (const std::string& name : item.inputs) {
    if (name.starts_with("param/")) parameters[name.substr(6)] = item.tensor(name);
  }
  LanguageModel model =
      protein_lm::import_protein_lm(parameters, model_config(item), attention_config(item),
                                    item.has("W") ? std::optional(item.tensor("W")) : std::nullopt);
  model->eval();
  return model;
}

// Exact attention masks padding there; FAVOR ignores it, which a batch without a mask expresses.
SequenceBatch import_batch(const Case& item) {
  SequenceBatch batch;
  const at::Tensor inputs = item.tensor(item.has("model_inputs") ? "model_inputs" : "inputs");
  const bool soft = item.option<bool>("soft_inputs");  // [B, T, vocabulary]
  batch.tokens = soft ? inputs : inputs.to(at::kLong);
  batch.positions = at::arange(inputs.size(1)).expand({inputs.size(0), inputs.size(1)});
  if (item.option<std::string>("attention") == "exact" && !soft)
    batch.key_mask = batch.tokens.ne(data::Vocabulary::protein().pad());
  return batch;
}

// In double the result is held to the double tolerance, which float32 weights and projections allow.
void compare(Group& group, const Case& item, at::ScalarType type) {
  LanguageModel model = import_model(item);
  model->to(type);
  const SequenceBatch batch = import_batch(item);
  const Representations made = model->represent(batch);
  const bool soft = item.option<bool>("soft_inputs");
  group.expect(item, "input_emb", made.input);
  for (size_t layer = 0; layer < made.layers.size(); ++layer) {
    group.expect(item, fmt::format("layer_{}", layer), made.layers[layer]);
  }
  // The reference zeroes its embeddings at padding.
  group.expect(
      item, "output_emb",
      soft ? made.output : made.output * batch.tokens.ne(data::Vocabulary::protein().pad()).unsqueeze(-1));
  group.expect(item, "logits", made.logits);
  if (item.outputs.contains("regression")) group.expect(item, "regression", made.regression);
  if (!item.has("targets")) return;
  const at::Tensor targets = item.tensor("targets").to(at::kLong), weights = item.tensor("weights").to(type);
  const at::Tensor loss = train::weighted_cross_entropy(made.logits, targets, weights);
  group.expect(item, "metric_loss", loss.detach());
  group.expect(item, "metric_correct", train::weighted_correct(made.logits, targets, weights));
  group.expect(item, "metric_denominator", weights.sum());
  const at::Tensor each = made.logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1);
  group.expect(item, "logprob", (each * targets.ne(data::Vocabulary::protein().pad())).sum(-1));
  if (item.outputs.contains("mean_loss")) group.expect(item, "mean_loss", loss / weights.sum());
  if (!item.option<bool>("grads")) return;
  (loss / weights.sum()).backward();
  auto parameters = model->named_parameters();
  for (const protein_lm::ProteinLMParameter& entry :
       protein_lm::protein_lm_parameters(model->model_config())) {
    const std::string name = "grad/" + entry.theirs;
    const at::Tensor& used = parameters[entry.ours];  // a head without a target has no gradient here, 0 there
    const at::Tensor gradient = used.grad().defined() ? used.grad() : at::zeros_like(used);
    group.expect(item, name, entry.to_theirs(gradient, item.tensor(name)));
  }
}

TEST(PlmModel, HiddenStatesLogitsLossAndGradients) {
  run_group("plm_model", [&](Group& group, const Case& item) {
    compare(group, item, at::kFloat);
    compare(group, item, at::kDouble);
  });
}

}  // namespace
}  // namespace performer::golden
