// SPDX-License-Identifier: Apache-2.0
// Checkpoints of fairseq: ESM-2 of fair-esm (esm/pretrained.py, esm/model/esm2.py), and RoBERTa
// (fairseq/models/roberta), which Sapiens is.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "performer/base/error.h"
#include "performer/models/convert/blocks.h"
#include "performer/models/convert/families.h"

namespace performer::convert {
namespace {

constexpr double kFairseqEpsilon = 1e-5;  // LibTorch's default, which fairseq does not change

BlockNames fairseq_names(int64_t layer) {
  const std::string block = fmt::format("layers.{}.", layer);
  return {block + "self_attn.q_proj",
          block + "self_attn.k_proj",
          block + "self_attn.v_proj",
          block + "self_attn.out_proj",
          block + "self_attn_layer_norm",
          block + "final_layer_norm",
          block + "fc1",
          block + "fc2"};
}

// The weights of a checkpoint {"model": ..., "args" or "cfg": ...} without the prefixes of their modules.
SourceWeights model_weights(const Source& source) {
  Tensors tensors;
  for (const auto& [name, tensor] : source.tensors) {
    if (name.starts_with("model.")) tensors[name.substr(6)] = tensor;
  }
  SourceWeights weights(std::move(tensors), source.path);
  for (const char* prefix : {"encoder.", "decoder.", "sentence_encoder.", "encoder.sentence_encoder."})
    weights.strip(prefix);
  weights.leave_out("version", "no weights");
  weights.leave_out("contact_head.", "prediction of contacts");
  weights.leave_out("classification_heads.", "a classification head");
  return weights;
}

bool has_part(const Source& source, const std::string& part) {
  for (const auto& [name, tensor] : source.tensors) {
    if (name.find(part) != std::string::npos) return true;
  }
  return false;
}

bool is_fairseq(const Source& source) {
  return source.format == "torch" && has_part(source, ".self_attn.q_proj.weight") &&
         has_part(source, "embed_tokens.weight") && !has_part(source, "encoder_attn");
}

void read_fairseq_sizes(const SourceWeights& weights, ModelConfig& model) {
  model.layers = weights.count("layers.");
  model.width = weights.size("embed_tokens.weight", 1);
  model.ffn = weights.size("layers.0.fc1.weight", 0);
  model.objective = "masked";
  model.attention_bias = true;
  model.output_head = "transform";
  model.output_scale = 1;
  model.activation = "gelu";
  model.norm_epsilon = kFairseqEpsilon;
}

void take_fairseq_head(SourceWeights& weights, ModelConfig& model, int64_t vocabulary, Tensors& ours) {
  take_transform(weights, model, "lm_head.dense", "lm_head.layer_norm", ours);
  const bool stored = weights.has("lm_head.weight");
  const at::Tensor weight = stored ? weights.take("lm_head.weight", {vocabulary, model.width}) : at::Tensor();
  model.tied_output = !stored || weight.equal(ours.at("embedding.weight"));
  if (!model.tied_output) ours["output.weight"] = weight;
  ours[model.tied_output ? "output_bias" : "output.bias"] = weights.take("lm_head.bias", {vocabulary});
}

void take_fairseq_rates(SourceWeights& weights, ModelConfig& model, Tensors& ours) {
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string name = fmt::format("layers.{}.self_attn.rot_emb.inv_freq", layer);
    if (!weights.has(name)) continue;
    const at::Tensor rates = weights.take(name, {head_size(model) / 2});
    check<InputError>(!model.rotary_stored || rates.equal(ours.at("rotary_rates")),
                      "{}: {} differs from that of other layers, which has no place in a model",
                      weights.source(), name);
    model.rotary_stored = true;
    ours["rotary_rates"] = rates;
  }
}

Imported import_esm2(const Source& source) {
  const SourceConfig config = source.config.part("cfg.model");
  Imported made;
  made.attention.kind = "exact";
  ModelConfig& model = made.model;
  SourceWeights weights = model_weights(source);
  read_fairseq_sizes(weights, model);
  model.norm = "pre";
  model.positions = "rotary";
  model.heads = config.size("encoder_attention_heads");
  model.token_dropout = config.flag_or("token_dropout", false);
  model.dropout = config.real_or("dropout", 0);
  model.max_length = config.whole_or("max_positions", 1024);
  const int64_t vocabulary = weights.size("embed_tokens.weight", 0);
  made.tensors["embedding.weight"] = weights.take("embed_tokens.weight", {vocabulary, model.width});
  take_fairseq_rates(weights, model, made.tensors);
  for (int64_t layer = 0; layer < model.layers; ++layer)
    take_block(weights, model, layer, fairseq_names(layer), made.tensors);
  take_norm(weights, model, "emb_layer_norm_after", "final_norm", made.tensors);
  take_fairseq_head(weights, model, vocabulary, made.tensors);
  weights.finish();
  pair_neighbours(model, made.tensors);
  made.notes = weights.report();
  made.tokens = vocabulary == 33 ? esm_tokens(vocabulary) : read_tokens(source.directory, vocabulary);
  return made;
}

Imported import_fairseq_roberta(const Source& source) {
  const SourceConfig config = source.config.part("args");
  Imported made;
  made.attention.kind = "exact";
  ModelConfig& model = made.model;
  SourceWeights weights = model_weights(source);
  read_fairseq_sizes(weights, model);
  config.require("encoder_normalize_before", Scalar(false));
  model.norm = "post";
  model.embedding_norm = true;
  model.final_norm = false;
  model.positions = "learned";
  model.heads = config.size("encoder_attention_heads");
  model.activation = activation_named(config.text_or("activation_fn", "gelu"), source.path);
  model.dropout = config.real_or("dropout", 0.1);
  const int64_t vocabulary = weights.size("embed_tokens.weight", 0);
  constexpr int64_t kFirst = 2;  // the row behind that of PAD, which fairseq gives the id 1
  const int64_t rows = weights.size("embed_positions.weight", 0);
  check<InputError>(rows > kFirst, "{}: {} rows of positions leave none behind those of PAD", source.path,
                    rows);
  made.tensors["embedding.weight"] = weights.take("embed_tokens.weight", {vocabulary, model.width});
  made.tensors["positions"] =
      weights.take("embed_positions.weight", {rows, model.width}).slice(0, kFirst).contiguous();
  model.max_length = rows - kFirst;
  take_norm(weights, model, "emb_layer_norm", "embedding_norm", made.tensors);
  for (int64_t layer = 0; layer < model.layers; ++layer)
    take_block(weights, model, layer, fairseq_names(layer), made.tensors);
  take_fairseq_head(weights, model, vocabulary, made.tensors);
  weights.finish();
  made.notes = weights.report();
  made.tokens = read_tokens(source.directory, vocabulary);
  return made;
}

}  // namespace

Family fairseq_esm_family() {
  return {"fairseq-esm", "ESM-2 checkpoints of fair-esm (*.pt)",
          [](const Source& source) {
            return is_fairseq(source) && source.config.has("cfg.model.encoder_attention_heads") &&
                   !has_part(source, "embed_positions");
          },
          import_esm2};
}

Family fairseq_roberta_family() {
  return {"fairseq-roberta", "RoBERTa checkpoints of fairseq, such as Sapiens (*.pt)",
          [](const Source& source) {
            return is_fairseq(source) && source.config.has("args.encoder_attention_heads") &&
                   has_part(source, "embed_positions");
          },
          import_fairseq_roberta};
}

}  // namespace performer::convert
