// SPDX-License-Identifier: Apache-2.0
// BERT (Devlin et al. 2018), RoBERTa (Liu et al. 2019) and DistilBERT (Sanh et al. 2019) as transformers'
// modeling_bert.py, modeling_roberta.py and modeling_distilbert.py name and compute them.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "performer/base/error.h"
#include "performer/models/convert/blocks.h"
#include "performer/models/convert/families.h"

namespace performer::convert {
namespace {

ModelConfig encoder_config(const SourceConfig& config) {
  ModelConfig model;
  model.objective = "masked";
  model.norm = "post";
  model.embedding_norm = true;
  model.final_norm = false;
  model.positions = "learned";
  model.attention_bias = true;
  model.output_head = "transform";
  model.output_scale = 1;
  model.norm_epsilon = config.real_or("layer_norm_eps", 1e-12);
  model.dropout = config.real_or("hidden_dropout_prob", 0.1);
  return model;
}

ModelConfig bert_config(const SourceConfig& config) {
  config.require("is_decoder", Scalar(false));
  config.require("add_cross_attention", Scalar(false));
  config.require("position_embedding_type", Scalar(std::string("absolute")));
  ModelConfig model = encoder_config(config);
  model.layers = config.size("num_hidden_layers");
  model.width = config.size("hidden_size");
  model.heads = config.size("num_attention_heads");
  model.ffn = config.size("intermediate_size");
  model.max_length = config.size("max_position_embeddings");
  model.activation = activation_named(config.text_or("hidden_act", "gelu"), config.source());
  return model;
}

// The output layer under `decoder`, tied or not; biases may be stored twice.
void take_decoder(SourceWeights& weights, ModelConfig& model, int64_t vocabulary, const std::string& decoder,
                  const std::string& bias, Tensors& ours) {
  if (bias != decoder + ".bias" && !weights.drop_if_equal(decoder + ".bias", bias) && !weights.has(bias))
    weights.rename(decoder + ".bias", bias);
  const bool stored = weights.has(decoder + ".weight");
  at::Tensor weight = stored ? weights.take(decoder + ".weight", {vocabulary, model.width}) : at::Tensor();
  model.tied_output = !stored || weight.equal(ours.at("embedding.weight"));
  if (!model.tied_output) ours["output.weight"] = weight;
  ours[model.tied_output ? "output_bias" : "output.bias"] = weights.take(bias, {vocabulary});
}

// Sources without a head for hidden tokens: encoders of sentences, for example.
void leave_without_head(Imported& made, int64_t vocabulary) {
  made.model.output_head = "linear";
  made.model.tied_output = true;
  made.tensors["output_bias"] = at::zeros({vocabulary});
  made.trained_head = false;
  made.notes.push_back(
      "the source has no language-model head: representations are the source's, but logits are those of an "
      "untrained output layer (tied to the embedding)");
}

// Position rows from `first` on, with the embedding of the first type of tokens, which stands for all.
void take_positions(SourceWeights& weights, ModelConfig& model, int64_t first, int64_t types, Tensors& ours) {
  const at::Tensor table =
      weights.take("embeddings.position_embeddings.weight", {model.max_length, model.width});
  at::Tensor rows = table.slice(0, first);
  if (types > 0)
    rows = rows + weights.take("embeddings.token_type_embeddings.weight", {types, model.width})[0];
  model.max_length -= first;
  ours["positions"] = rows.contiguous();
}

int64_t vocabulary_of(const SourceWeights& weights) {
  return weights.size("embeddings.word_embeddings.weight", 0);
}

// All below the head: tokens, positions as take_positions() has them, and blocks.
void take_encoder(SourceWeights& weights, ModelConfig& model, int64_t first, int64_t types,
                  BlockNames (*names_of)(int64_t layer), Tensors& ours) {
  ours["embedding.weight"] =
      weights.take("embeddings.word_embeddings.weight", {vocabulary_of(weights), model.width});
  take_positions(weights, model, first, types, ours);
  take_norm(weights, model, "embeddings.LayerNorm", "embedding_norm", ours);
  for (int64_t layer = 0; layer < model.layers; ++layer)
    take_block(weights, model, layer, names_of(layer), ours);
}

// Nothing of the weights may be left.
Imported finish(Imported made, const SourceWeights& weights, const Source& source, int64_t vocabulary) {
  weights.finish();
  const auto report = weights.report();
  made.notes.insert(made.notes.end(), report.begin(), report.end());
  made.tokens = read_tokens(source.directory, vocabulary);
  return made;
}

BlockNames bert_names(int64_t layer) {
  const std::string block = fmt::format("encoder.layer.{}.", layer);
  return {block + "attention.self.query",       block + "attention.self.key",
          block + "attention.self.value",       block + "attention.output.dense",
          block + "attention.output.LayerNorm", block + "output.LayerNorm",
          block + "intermediate.dense",         block + "output.dense"};
}

void leave_out_extras(SourceWeights& weights) {
  weights.leave_out("position_ids", "no weights");
  weights.leave_out("pooler.", "the pooler is for classification");
  weights.leave_out("seq_relationship", "next-sentence prediction");
  weights.leave_out("classifier.", "a classification head");
}

Imported import_bert(const Source& source) {
  Imported made{bert_config(source.config), {}, {}, {}};
  made.attention.kind = "exact";
  ModelConfig& model = made.model;
  SourceWeights weights = source.weights();
  weights.strip("bert.");
  weights.rename("LayerNorm.gamma", "LayerNorm.weight");
  weights.rename("LayerNorm.beta", "LayerNorm.bias");
  leave_out_extras(weights);
  for (const char* head : {"cls.species.", "cls.chain.", "cls.graft."})
    weights.leave_out(head, "a classification head of AntiBERTy");
  const int64_t vocabulary = vocabulary_of(weights);
  take_encoder(weights, model, 0, source.config.whole_or("type_vocab_size", 2), bert_names, made.tensors);
  if (weights.has("cls.predictions.transform.dense.weight")) {
    take_transform(weights, model, "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
                   made.tensors);
    take_decoder(weights, model, vocabulary, "cls.predictions.decoder", "cls.predictions.bias", made.tensors);
  } else {
    leave_without_head(made, vocabulary);
  }
  return finish(std::move(made), weights, source, vocabulary);
}

Imported import_roberta(const Source& source) {
  Imported made{bert_config(source.config), {}, {}, {}};
  made.attention.kind = "exact";
  ModelConfig& model = made.model;
  SourceWeights weights = source.weights();
  weights.strip("roberta.");
  leave_out_extras(weights);
  const int64_t vocabulary = vocabulary_of(weights);
  // Positions count from the row behind that of PAD.
  const int64_t first = std::min(source.config.whole_or("pad_token_id", 1), kLargestSize) + 1;
  check<InputError>(first >= 0 && first < model.max_length, "{}: pad_token_id {} leaves none of {} positions",
                    source.config.source(), first - 1, model.max_length);
  take_encoder(weights, model, first, source.config.whole_or("type_vocab_size", 1), bert_names, made.tensors);
  if (weights.has("lm_head.dense.weight")) {
    check<InputError>(model.activation == "gelu", "{}: RoBERTa's head has the activation gelu, its blocks {}",
                      source.config.source(), model.activation);
    take_transform(weights, model, "lm_head.dense", "lm_head.layer_norm", made.tensors);
    take_decoder(weights, model, vocabulary, "lm_head.decoder", "lm_head.bias", made.tensors);
  } else {
    leave_without_head(made, vocabulary);
  }
  return finish(std::move(made), weights, source, vocabulary);
}

BlockNames distilbert_names(int64_t layer) {
  const std::string block = fmt::format("transformer.layer.{}.", layer);
  return {block + "attention.q_lin",   block + "attention.k_lin", block + "attention.v_lin",
          block + "attention.out_lin", block + "sa_layer_norm",   block + "output_layer_norm",
          block + "ffn.lin1",          block + "ffn.lin2"};
}

Imported import_distilbert(const Source& source) {
  const SourceConfig& config = source.config;
  Imported made{encoder_config(config), {}, {}, {}};
  made.attention.kind = "exact";
  ModelConfig& model = made.model;
  model.layers = config.size("n_layers", "num_hidden_layers");
  model.width = config.size("dim", "hidden_size");
  model.heads = config.size("n_heads", "num_attention_heads");
  model.ffn = config.size("hidden_dim");
  model.max_length = config.size("max_position_embeddings");
  model.activation = activation_named(config.text_or("activation", "gelu"), config.source());
  model.dropout = config.real_or("dropout", 0.1);
  model.norm_epsilon = 1e-12;  // written into its code
  SourceWeights weights = source.weights();
  weights.strip("distilbert.");
  leave_out_extras(weights);
  const int64_t vocabulary = vocabulary_of(weights);
  take_encoder(weights, model, 0, 0, distilbert_names, made.tensors);
  if (weights.has("vocab_transform.weight")) {
    take_transform(weights, model, "vocab_transform", "vocab_layer_norm", made.tensors);
    take_decoder(weights, model, vocabulary, "vocab_projector", "vocab_projector.bias", made.tensors);
  } else {
    leave_without_head(made, vocabulary);
  }
  return finish(std::move(made), weights, source, vocabulary);
}

}  // namespace

bool is_type(const Source& source, const char* model_type) {
  return source.config.text_or("model_type", "") == model_type;
}

Family bert_family() {
  return {"bert", "BERT (ProtBert, AntiBERTy, MiniLM ...), a Hugging Face folder",
          [](const Source& source) { return is_type(source, "bert"); }, import_bert};
}

Family roberta_family() {
  return {"roberta", "RoBERTa, a Hugging Face folder",
          [](const Source& source) { return is_type(source, "roberta") || is_type(source, "xlm-roberta"); },
          import_roberta};
}

Family distilbert_family() {
  return {"distilbert", "DistilBERT, a Hugging Face folder",
          [](const Source& source) { return is_type(source, "distilbert"); }, import_distilbert};
}

}  // namespace performer::convert
