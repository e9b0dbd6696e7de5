// SPDX-License-Identifier: Apache-2.0
// ESM-2 (Lin et al. 2023) and ESM-1b (Rives et al. 2021) as transformers' modeling_esm.py names and computes
// them.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "performer/base/error.h"
#include "performer/models/convert/blocks.h"
#include "performer/models/convert/families.h"

namespace performer::convert {
namespace {

ModelConfig esm_config(const SourceConfig& config) {
  config.require("is_decoder", Scalar(false));
  config.require("is_folding_model", Scalar(false));
  ModelConfig model;
  model.objective = "masked";
  model.norm = "pre";
  model.attention_bias = true;
  model.output_head = "transform";
  model.output_scale = 1;
  model.layers = config.size("num_hidden_layers");
  model.width = config.size("hidden_size");
  model.heads = config.size("num_attention_heads");
  model.ffn = config.size("intermediate_size");
  model.max_length = config.size("max_position_embeddings");
  model.norm_epsilon = config.real_or("layer_norm_eps", 1e-12);
  model.dropout = config.real_or("hidden_dropout_prob", 0.1);
  model.embedding_norm = config.flag_or("emb_layer_norm_before", false);
  model.token_dropout = config.flag_or("token_dropout", false);
  const std::string positions = config.text_or("position_embedding_type", "absolute");
  check<InputError>(positions == "rotary" || positions == "absolute",
                    "{}: position_embedding_type = {} is not supported; rotary and absolute are",
                    config.source(), positions);
  model.positions = positions == "rotary" ? "rotary" : "learned";
  model.activation = activation_named(config.text_or("hidden_act", "gelu"), config.source());
  check<InputError>(model.activation == "gelu", "{}: ESM's activation is gelu, not {}", config.source(),
                    model.activation);
  return model;
}

BlockNames esm_names(int64_t layer) {
  const std::string block = fmt::format("encoder.layer.{}.", layer);
  return {block + "attention.self.query",   block + "attention.self.key",  block + "attention.self.value",
          block + "attention.output.dense", block + "attention.LayerNorm", block + "LayerNorm",
          block + "intermediate.dense",     block + "output.dense"};
}

// The rates of the rotary positions went through half precision in training, so those of the file count. They
// are the same in all layers.
void take_esm_rates(SourceWeights& weights, ModelConfig& model, Tensors& ours) {
  at::Tensor rates;
  std::vector<std::string> names = {"rotary_embeddings.inv_freq"};  // of transformers 5
  for (int64_t layer = 0; layer < model.layers; ++layer)
    names.push_back(fmt::format("encoder.layer.{}.attention.self.rotary_embeddings.inv_freq", layer));
  for (const std::string& name : names) {
    if (!weights.has(name)) continue;
    const at::Tensor found = weights.take(name, {head_size(model) / 2});
    check<InputError>(!rates.defined() || rates.equal(found),
                      "{}: {} differs from that of other layers, which has no place in a model",
                      weights.source(), name);
    rates = found;
  }
  if (!rates.defined()) return;
  model.rotary_stored = true;
  ours["rotary_rates"] = rates;
}

void take_embeddings(const Source& source, SourceWeights& weights, ModelConfig& model, int64_t vocabulary,
                     Tensors& ours) {
  ours["embedding.weight"] = weights.take("embeddings.word_embeddings.weight", {vocabulary, model.width});
  if (model.positions == "learned") {
    const int64_t first = std::min(source.config.whole_or("pad_token_id", 1), kLargestSize) + 1;
    check<InputError>(first >= 0 && first < model.max_length,
                      "{}: pad_token_id {} leaves none of {} positions", source.config.source(), first - 1,
                      model.max_length);
    const at::Tensor table =
        weights.take("embeddings.position_embeddings.weight", {model.max_length, model.width});
    ours["positions"] = table.slice(0, first).contiguous();
    model.max_length -= first;
  } else {
    weights.leave_out("embeddings.position_embeddings", "rotary positions have no table");
    take_esm_rates(weights, model, ours);
  }
  if (model.embedding_norm) take_norm(weights, model, "embeddings.layer_norm", "embedding_norm", ours);
}

Imported import_esm(const Source& source) {
  Imported made{esm_config(source.config), {}, {}, {}};
  made.attention.kind = "exact";
  ModelConfig& model = made.model;
  SourceWeights weights = source.weights();
  weights.strip("esm.");
  weights.rename("LayerNorm.gamma", "LayerNorm.weight");  // as transformers 5 writes them
  weights.rename("LayerNorm.beta", "LayerNorm.bias");
  weights.leave_out("position_ids", "no weights");
  weights.leave_out("contact_head.", "prediction of contacts");
  weights.leave_out("pooler.", "the pooler is for classification");
  weights.leave_out("classifier.", "a classification head");
  const int64_t vocabulary = weights.size("embeddings.word_embeddings.weight", 0);
  take_embeddings(source, weights, model, vocabulary, made.tensors);
  for (int64_t layer = 0; layer < model.layers; ++layer)
    take_block(weights, model, layer, esm_names(layer), made.tensors);
  take_norm(weights, model, "encoder.emb_layer_norm_after", "final_norm", made.tensors);
  take_transform(weights, model, "lm_head.dense", "lm_head.layer_norm", made.tensors);
  const bool stored = weights.has("lm_head.decoder.weight");
  const at::Tensor decoder =
      stored ? weights.take("lm_head.decoder.weight", {vocabulary, model.width}) : at::Tensor();
  model.tied_output = !stored || decoder.equal(made.tensors.at("embedding.weight"));
  if (!model.tied_output) made.tensors["output.weight"] = decoder;
  made.tensors[model.tied_output ? "output_bias" : "output.bias"] =
      weights.take("lm_head.bias", {vocabulary});
  weights.finish();
  if (model.positions == "rotary") pair_neighbours(model, made.tensors);
  made.notes = weights.report();
  made.tokens = read_tokens(source.directory, vocabulary);
  if (made.tokens.spelling == SourceTokens::Spelling::unknown && vocabulary == 33)
    made.tokens = esm_tokens(vocabulary);
  return made;
}

}  // namespace

Family esm_family() {
  return {"esm", "ESM-2 and ESM-1b, Hugging Face folders",
          [](const Source& source) { return is_type(source, "esm"); }, import_esm};
}

}  // namespace performer::convert
