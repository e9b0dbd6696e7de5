// SPDX-License-Identifier: Apache-2.0
#include "performer/models/convert/export.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/convert/export_tensors.h"
#include "performer/models/safetensors.h"

namespace performer::convert {
namespace {

using nlohmann::json;

struct Demand {
  bool met;
  std::string why;
};

std::string unmet(const std::string& shape, const std::vector<Demand>& demands) {
  std::vector<std::string> reasons;
  for (const Demand& demand : demands) {
    if (!demand.met) reasons.push_back(demand.why);
  }
  return reasons.empty() ? "" : fmt::format("{} {}", shape, fmt::join(reasons, ", "));
}

// What no shape has.
std::vector<Demand> common_demands(const ModelConfig& m, const AttentionConfig& a) {
  return {{a.kind == "exact", fmt::format("has exact attention, not {}", a.kind)},
          {a.local_heads == 0, "has no local heads"},
          {a.begin_kernel == 0 || a.kind == "exact", "has no begin_kernel"},
          {!a.qk_norm && !a.learned_temperature, "has neither qk_norm nor a learned temperature"},
          {!m.reversible, "is not reversible"},
          {!m.token_shift, "has no token shift"},
          {!m.regression_head, "has no regression head"},
          {!m.added_positions, "adds no positions beside rotary ones"},
          {m.embedding_scale == 1, "does not scale embeddings"}};
}

bool even_heads(const ModelConfig& m) {
  return m.heads * head_size(m) == m.width;
}

std::string bert_misfit(const ModelConfig& m) {
  return unmet("BERT", {{m.objective == "masked", "is a masked model"},
                        {m.norm == "post", "has its norms after the parts"},
                        {m.norm_type == "layer", "has layer norms"},
                        {m.embedding_norm && !m.final_norm, "has a norm of embeddings and no final one"},
                        {m.positions == "learned", "has learned positions"},
                        {m.output_head == "transform", "has a transforming output head"},
                        {m.output_scale == 1, "does not scale its output"},
                        {!m.ffn_gate && m.ffn_bias, "has biases and no gate in the feed-forward part"},
                        {kv_heads(m) == m.heads && even_heads(m), "has heads of width / heads"},
                        {!m.token_dropout, "has no token dropout"}});
}

std::string esm_misfit(const ModelConfig& m) {
  return unmet("ESM",
               {{m.objective == "masked", "is a masked model"},
                {m.norm == "pre", "has its norms before the parts"},
                {m.norm_type == "layer" && m.final_norm, "has layer norms and a final one"},
                {m.positions == "rotary" || m.positions == "learned", "has rotary or learned positions"},
                {m.rotary_base == 10000 || m.rotary_stored, "has rotary positions of base 10000"},
                {m.output_head == "transform", "has a transforming output head"},
                {m.output_scale == 1, "does not scale its output"},
                {m.activation == "gelu", "has the activation gelu"},
                {!m.ffn_gate && m.ffn_bias, "has biases and no gate in the feed-forward part"},
                {kv_heads(m) == m.heads && even_heads(m), "has heads of width / heads"}});
}

std::string gpt2_misfit(const ModelConfig& m) {
  return unmet("GPT-2", {{m.objective == "causal", "is a causal model"},
                         {m.norm == "pre", "has its norms before the parts"},
                         {m.norm_type == "layer" && m.final_norm, "has layer norms and a final one"},
                         {!m.embedding_norm, "has no norm of embeddings"},
                         {m.positions == "learned", "has learned positions"},
                         {m.output_head == "linear", "has a linear output head"},
                         {!m.ffn_gate && m.ffn_bias, "has biases and no gate in the feed-forward part"},
                         {kv_heads(m) == m.heads && even_heads(m), "has heads of width / heads"}});
}

std::string llama_misfit(const ModelConfig& m) {
  return unmet("LLaMA", {{m.objective == "causal", "is a causal model"},
                         {m.norm == "pre", "has its norms before the parts"},
                         {m.norm_type == "rms" && m.final_norm, "has rms norms and a final one"},
                         {!m.embedding_norm, "has no norm of embeddings"},
                         {m.positions == "rotary" && !m.rotary_stored, "has rotary positions of a base"},
                         {m.output_head == "linear", "has a linear output head"},
                         {m.ffn_gate, "has a gate in the feed-forward part"}});
}

// Neither GPT-2 nor LLaMA has a bias of the output layer.
void check_no_bias(const ModelFolder& folder, const Tensors& state, const char* shape) {
  const auto& tensors = state;
  const at::Tensor bias =
      tensors.at(folder.model->model_config().tied_output ? "output_bias" : "output.bias");
  const ExportRows rows(folder.vocabulary);
  check<UsageError>(
      rows.order(bias).abs().max().item<double>() == 0,
      "the model cannot be exported: {} has no bias of the output layer, and this model's is not 0 "
      "(training moved it)",
      shape);
}

std::string hugging_face_activation(const std::string& name) {
  if (name == "gelu-tanh") return "gelu_new";
  return name;
}

json common_config(const ModelFolder& folder, int64_t vocabulary) {
  const ModelConfig& m = folder.model->model_config();
  const ExportRows rows(folder.vocabulary);
  json config = {{"vocab_size", vocabulary}, {"tie_word_embeddings", m.tied_output}, {"dtype", "float32"}};
  if (const auto id = rows.id_of(folder.vocabulary.bos())) config["bos_token_id"] = *id;
  if (const auto id = rows.id_of(folder.vocabulary.eos())) config["eos_token_id"] = *id;
  if (const auto id = rows.id_of(folder.vocabulary.pad())) config["pad_token_id"] = *id;
  if (const auto id = rows.id_of(folder.vocabulary.mask())) config["mask_token_id"] = *id;
  return config;
}

void add_encoder_sizes(json& config, const ModelConfig& m, int64_t positions) {
  config.update({{"num_hidden_layers", m.layers},
                 {"hidden_size", m.width},
                 {"num_attention_heads", m.heads},
                 {"intermediate_size", m.ffn},
                 {"max_position_embeddings", positions},
                 {"layer_norm_eps", m.norm_epsilon},
                 {"hidden_dropout_prob", m.dropout},
                 {"attention_probs_dropout_prob", 0.0},
                 {"hidden_act", hugging_face_activation(m.activation)}});
}

json config_of(const std::string& shape, const ModelFolder& folder, int64_t vocabulary) {
  const ModelConfig& m = folder.model->model_config();
  json config = common_config(folder, vocabulary);
  config["model_type"] = shape;
  const int64_t first = first_position(folder, shape);
  if (shape == "bert" || shape == "roberta") {
    add_encoder_sizes(config, m, m.max_length + first);
    config["type_vocab_size"] = shape == "bert" ? 2 : 1;
    config["architectures"] = {shape == "bert" ? "BertForMaskedLM" : "RobertaForMaskedLM"};
  } else if (shape == "esm") {
    add_encoder_sizes(config, m, m.max_length + first);
    config.update({{"position_embedding_type", m.positions == "rotary" ? "rotary" : "absolute"},
                   {"token_dropout", m.token_dropout},
                   {"emb_layer_norm_before", m.embedding_norm},
                   {"architectures", {"EsmForMaskedLM"}}});
  } else if (shape == "gpt2") {
    config.update({{"n_layer", m.layers},
                   {"n_embd", m.width},
                   {"n_head", m.heads},
                   {"n_inner", m.ffn},
                   {"n_positions", m.max_length},
                   {"layer_norm_epsilon", m.norm_epsilon},
                   {"resid_pdrop", m.dropout},
                   {"embd_pdrop", m.dropout},
                   {"attn_pdrop", 0.0},
                   {"activation_function", hugging_face_activation(m.activation)},
                   {"architectures", {"GPT2LMHeadModel"}}});
  } else {
    config.update({{"num_hidden_layers", m.layers},
                   {"hidden_size", m.width},
                   {"num_attention_heads", m.heads},
                   {"num_key_value_heads", kv_heads(m)},
                   {"head_dim", head_size(m)},
                   {"intermediate_size", m.ffn},
                   {"max_position_embeddings", m.max_length},
                   {"rms_norm_eps", m.norm_epsilon},
                   {"rope_theta", m.rotary_base},
                   {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", m.rotary_base}}},
                   {"hidden_act", hugging_face_activation(m.activation)},
                   {"attention_bias", m.attention_bias},
                   {"mlp_bias", m.ffn_bias},
                   {"architectures", {"LlamaForCausalLM"}}});
  }
  return config;
}

// One token a line in the order of the ids, for vocabularies of letters.
std::string vocabulary_text(const ModelFolder& folder, bool brackets, int64_t size) {
  const data::Vocabulary& vocabulary = folder.vocabulary;
  const ExportRows rows(vocabulary);
  std::vector<std::string> texts(static_cast<size_t>(size));
  for (int64_t id = 0; id < vocabulary.size(); ++id) {
    const auto place = rows.id_of(id);
    if (!place) continue;
    std::string text = vocabulary.symbol_text(id);
    const bool unknown = std::ranges::any_of(vocabulary.aliases(), [&](const auto& alias) {
      return text.size() == 1 && alias.read_as == text[0] && !vocabulary.source_ids().empty();
    });
    if (unknown) text = brackets ? "[UNK]" : "<unk>";
    if (id == vocabulary.bos()) text = brackets ? "[CLS]" : "<cls>";
    if (id == vocabulary.eos()) text = brackets ? "[SEP]" : "<eos>";
    if (id == vocabulary.pad()) text = brackets ? "[PAD]" : "<pad>";
    if (id == vocabulary.mask()) text = brackets ? "[MASK]" : "<mask>";
    texts[static_cast<size_t>(*place)] = text;
  }
  return fmt::format("{}\n", fmt::join(texts, "\n"));
}

}  // namespace

std::string export_shape(const ModelFolder& folder) {
  const ModelConfig& m = folder.model->model_config();
  const std::string common = unmet("a model there", common_demands(m, folder.model->attention_config()));
  check<UsageError>(common.empty(), "the model cannot be exported: {}", common);
  const std::string bert = bert_misfit(m), esm = esm_misfit(m), gpt2 = gpt2_misfit(m),
                    llama = llama_misfit(m);
  if (bert.empty()) {
    const std::string& name = folder.vocabulary.name();
    return name.ends_with("roberta") && !folder.vocabulary.source_ids().empty() ? "roberta" : "bert";
  }
  if (esm.empty()) return "esm";
  if (gpt2.empty()) return "gpt2";
  if (llama.empty()) return "llama";
  throw UsageError(fmt::format(
      "the model cannot be exported, because no shape of Hugging Face computes it: {}",
      m.objective == "masked" ? fmt::format("{}; {}", bert, esm) : fmt::format("{}; {}", gpt2, llama)));
}

std::vector<std::string> export_model(const std::string& directory, const ModelFolder& folder) {
  const std::string shape = export_shape(folder);
  const Tensors state = model_state(folder.model);
  if (shape == "gpt2" || shape == "llama") check_no_bias(folder, state, shape == "gpt2" ? "GPT-2" : "LLaMA");
  const Tensors tensors = export_tensors(shape, folder, state);
  const int64_t vocabulary = ExportRows(folder.vocabulary).size();
  make_directories(directory);
  const std::filesystem::path base(directory);
  write_safetensors((base / "model.safetensors").string(), {tensors, {{"format", "pt"}}});
  std::vector<std::string> notes;
  if (folder.vocabulary.has_letters() && shape != "gpt2" && shape != "llama") {
    write_file((base / "vocab.txt").string(), vocabulary_text(folder, shape == "bert", vocabulary));
  } else {
    notes.emplace_back("no tokenizer was written: use the one of the source beside this model");
  }
  write_file((base / "config.json").string(), config_of(shape, folder, vocabulary).dump(2) + "\n");
  return notes;
}

}  // namespace performer::convert
