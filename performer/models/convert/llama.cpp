// SPDX-License-Identifier: Apache-2.0
// LLaMA (Touvron et al. 2023) as transformers' modeling_llama.py names and computes it, and as llama2.c
// stores it.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <set>

#include "performer/base/error.h"
#include "performer/models/convert/blocks.h"
#include "performer/models/convert/families.h"
#include "performer/models/readers/llama2c.h"

namespace performer::convert {
namespace {

ModelConfig llama_shape() {
  ModelConfig model;
  model.objective = "causal";
  model.norm = "pre";
  model.norm_type = "rms";
  model.norm_epsilon = 1e-5;
  model.positions = "rotary";
  model.activation = "silu";
  model.ffn_gate = true;
  model.ffn_bias = false;
  model.dropout = 0;
  model.output_scale = 1;
  return model;
}

// The rates of the rotary positions, which "llama3" stretches for long texts: slow ones by `factor`, quick
// ones not, and those between by a mixture (transformers' modeling_rope_utils.py,
// _compute_llama3_parameters).
void set_llama_rates(const SourceConfig& config, ModelConfig& model, Tensors& ours) {
  const SourceConfig newer = config.part("rope_parameters"), older = config.part("rope_scaling");
  model.rotary_base = newer.real_or("rope_theta", config.real_or("rope_theta", 10000));
  const SourceConfig& scaling = older.values().empty() ? newer : older;
  const std::string type = scaling.text_or("rope_type", scaling.text_or("type", "default"));
  if (type == "default") return;
  check<InputError>(type == "llama3" || type == "linear",
                    "{}: rotary positions of type {} are not supported; default, linear and llama3 are",
                    config.source(), type);
  const double factor = scaling.real_or("factor", 1);
  const auto size = static_cast<double>(head_size(model));
  std::vector<float> rates;
  for (int64_t i = 0; i < head_size(model) / 2; ++i) {
    const double rate = std::pow(model.rotary_base, -2 * static_cast<double>(i) / size);
    double share = 0;  // of the rate as it is
    if (type == "llama3") {
      const double low = scaling.real_or("low_freq_factor", 1), high = scaling.real_or("high_freq_factor", 4),
                   context = scaling.real_or("original_max_position_embeddings", 8192);
      const double turns = context * rate / (2 * M_PI);
      share = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    }
    rates.push_back(static_cast<float>(share * rate + (1 - share) * rate / factor));
  }
  model.rotary_stored = true;
  ours["rotary_rates"] = at::tensor(rates);
}

ModelConfig llama_config(const SourceConfig& config) {
  ModelConfig model = llama_shape();
  config.require("pretraining_tp", Scalar(int64_t{1}));
  model.layers = config.size("num_hidden_layers");
  model.width = config.size("hidden_size");
  model.heads = config.size("num_attention_heads");
  model.head_size = config.has("head_dim") ? config.size("head_dim") : 0;
  if (model.head_size == model.width / model.heads) model.head_size = 0;
  model.kv_heads = config.has("num_key_value_heads") ? config.size("num_key_value_heads") : model.heads;
  model.ffn = config.size("intermediate_size");
  model.max_length = config.size("max_position_embeddings");
  model.norm_epsilon = config.real_or("rms_norm_eps", 1e-6);
  model.activation = activation_named(config.text_or("hidden_act", "silu"), config.source());
  model.attention_bias = config.flag_or("attention_bias", false);
  model.ffn_bias = config.flag_or("mlp_bias", false);
  check<InputError>(!config.has("sliding_window") || config.whole("sliding_window") >= model.max_length,
                    "{}: sliding_window = {} below the {} positions is not supported", config.source(),
                    config.whole_or("sliding_window", 0), model.max_length);
  return model;
}

BlockNames llama_names(int64_t layer) {
  const std::string block = fmt::format("layers.{}.", layer);
  return {block + "self_attn.q_proj", block + "self_attn.k_proj", block + "self_attn.v_proj",
          block + "self_attn.o_proj", block + "input_layernorm",  block + "post_attention_layernorm",
          block + "mlp.up_proj",      block + "mlp.down_proj",    block + "mlp.gate_proj"};
}

Imported import_llama(const Source& source) {
  Imported made{llama_config(source.config), {}, {}, {}};
  made.attention.kind = "exact";
  ModelConfig& model = made.model;
  set_llama_rates(source.config, model, made.tensors);
  SourceWeights weights = source.weights();
  weights.strip("model.");
  weights.leave_out("rotary_emb.inv_freq", "computed from the configuration");
  const int64_t vocabulary = weights.size("embed_tokens.weight", 0);
  made.tensors["embedding.weight"] = weights.take("embed_tokens.weight", {vocabulary, model.width});
  for (int64_t layer = 0; layer < model.layers; ++layer)
    take_block(weights, model, layer, llama_names(layer), made.tensors);
  take_norm(weights, model, "norm", "final_norm", made.tensors);
  const bool stored = weights.has("lm_head.weight");
  const at::Tensor head = stored ? weights.take("lm_head.weight", {vocabulary, model.width}) : at::Tensor();
  model.tied_output = !stored || head.equal(made.tensors.at("embedding.weight"));
  if (!model.tied_output) made.tensors["output.weight"] = head;
  made.tensors[model.tied_output ? "output_bias" : "output.bias"] = at::zeros({vocabulary});
  weights.finish();
  pair_neighbours(model, made.tensors);
  made.notes = weights.report();
  made.tokens = read_tokens(source.directory, vocabulary);
  if (!made.tokens.bos) made.tokens.bos = source.config.whole_or("bos_token_id", 1);
  if (!made.tokens.eos)
    made.tokens.eos = source.config.whole_or("eos_token_id", source.config.whole_or("eos_token_id.0", 2));
  return made;
}

// Raw bytes are written <0xHH>. They spell what no piece does: of a letter that is a piece too, the piece is
// the token, as in the source's own tokenizer, and the byte's token keeps its name.
void spell_bytes(std::vector<std::string>& texts) {
  const std::set<std::string> pieces(texts.begin(), texts.end());
  for (std::string& text : texts) {
    unsigned int byte = 0;
    if (text.size() != 6 || std::sscanf(text.c_str(), "<0x%02X>", &byte) != 1) continue;
    const std::string spelled(1, static_cast<char>(byte));
    if (!pieces.contains(spelled)) text = spelled;
  }
}

// Pieces as llama2.c prints them; a line end begins BOS and EOS there.
SourceTokens llama2c_tokens(const std::string& directory, int64_t size) {
  SourceTokens tokens;
  tokens.size = size;
  tokens.bos = 1;
  tokens.eos = 2;
  tokens.unknown = 0;
  namespace fs = std::filesystem;
  for (const std::string& name : {fmt::format("tok{}.bin", size), std::string("tokenizer.bin")}) {
    const fs::path path = fs::path(directory.empty() ? "." : directory) / name;
    if (!fs::exists(path)) continue;
    tokens.texts = read_llama2c_tokens(path.string(), size);
    for (size_t id = 0; id < std::min<size_t>(3, tokens.texts.size()); ++id)
      tokens.texts[id] = id == 0 ? "<unk>" : "";
    spell_bytes(tokens.texts);
    tokens.spelling = SourceTokens::Spelling::pieces;
    return tokens;
  }
  return tokens;
}

Imported import_llama2c(const Source& source) {
  Llama2cModel file = read_llama2c(source.path);
  const Llama2cSizes& sizes = file.sizes;
  Imported made{llama_shape(), {}, {}, {}};
  made.attention.kind = "exact";
  ModelConfig& model = made.model;
  model.layers = sizes.layers;
  model.width = sizes.width;
  model.heads = sizes.heads;
  model.kv_heads = sizes.kv_heads;
  model.ffn = sizes.ffn;
  model.max_length = sizes.max_length;
  model.tied_output = sizes.tied;
  const auto& tensors = file.stored.tensors;
  const std::pair<const char*, const char*> names[] = {{"wq", "attention.query"},
                                                       {"wk", "attention.key"},
                                                       {"wv", "attention.value"},
                                                       {"wo", "attention.out"},
                                                       {"w1", "gate"},
                                                       {"w2", "down"},
                                                       {"w3", "up"},
                                                       {"attention_norm", "attention_norm"},
                                                       {"ffn_norm", "ffn_norm"}};
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    for (const auto& [theirs, ours] : names)
      made.tensors[fmt::format("blocks_{}.{}.weight", layer, ours)] = tensors.at(theirs)[layer].clone();
  }
  made.tensors["embedding.weight"] = tensors.at("tok_embeddings");
  made.tensors["final_norm.weight"] = tensors.at("norm");
  if (!sizes.tied) made.tensors["output.weight"] = tensors.at("output");
  made.tensors[sizes.tied ? "output_bias" : "output.bias"] = at::zeros({sizes.vocabulary});
  made.tokens = llama2c_tokens(source.directory, sizes.vocabulary);
  if (made.tokens.spelling == SourceTokens::Spelling::pieces) {
    made.notes.emplace_back(
        "a text is cut into the longest tokens that fit, which is not always how llama2.c "
        "merges them; --tokenizer ids reads its own ids");
  }
  return made;
}

}  // namespace

Family llama_family() {
  return {"llama", "LLaMA and models of its shape, Hugging Face folders",
          [](const Source& source) { return is_type(source, "llama") || is_type(source, "mistral"); },
          import_llama};
}

Family llama2c_family() {
  return {"llama2.c", "models of llama2.c (*.bin)",
          [](const Source& source) { return source.format == "llama2.c"; }, import_llama2c};
}

}  // namespace performer::convert
