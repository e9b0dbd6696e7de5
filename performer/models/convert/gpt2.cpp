// SPDX-License-Identifier: Apache-2.0
// GPT-2 (Radford et al. 2019) as transformers' modeling_gpt2.py names and computes it. Its layers store their
// weights [in, out], and queries, keys and values as one.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "performer/base/error.h"
#include "performer/models/convert/blocks.h"
#include "performer/models/convert/families.h"

namespace performer::convert {
namespace {

ModelConfig gpt2_config(const SourceConfig& config) {
  config.require("scale_attn_weights", Scalar(true));
  config.require("scale_attn_by_inverse_layer_idx", Scalar(false));
  config.require("add_cross_attention", Scalar(false));
  ModelConfig model;
  model.objective = "causal";
  model.norm = "pre";
  model.positions = "learned";
  model.attention_bias = true;
  model.output_scale = 1;
  model.layers = config.size("n_layer", "num_hidden_layers");
  model.width = config.size("n_embd", "hidden_size");
  model.heads = config.size("n_head", "num_attention_heads");
  model.ffn = config.has("n_inner") ? config.size("n_inner") : 4 * model.width;
  model.max_length = config.size("n_positions", "max_position_embeddings");
  model.norm_epsilon = config.real_or("layer_norm_epsilon", 1e-5);
  model.dropout = config.real_or("resid_pdrop", 0.1);
  model.activation = activation_named(config.text_or("activation_function", "gelu_new"), config.source());
  return model;
}

void take_turned(SourceWeights& weights, const std::string& name, const std::string& target, int64_t out,
                 int64_t in, Tensors& ours) {
  ours[target + ".weight"] = weights.take(name + ".weight", {in, out}).t().contiguous();
  ours[target + ".bias"] = weights.take(name + ".bias", {out});
}

void take_gpt2_block(SourceWeights& weights, const ModelConfig& model, int64_t layer, Tensors& ours) {
  const std::string theirs = fmt::format("h.{}.", layer), block = fmt::format("blocks_{}.", layer);
  const int64_t width = model.width;
  Tensors joined;
  take_turned(weights, theirs + "attn.c_attn", "qkv", 3 * width, width, joined);
  const char* names[] = {"query", "key", "value"};
  for (int64_t i = 0; i < 3; ++i) {
    for (const char* part : {".weight", ".bias"})
      ours[block + "attention." + names[i] + part] =
          joined.at(std::string("qkv") + part).narrow(0, i * width, width).contiguous();
  }
  take_turned(weights, theirs + "attn.c_proj", block + "attention.out", width, width, ours);
  take_norm(weights, model, theirs + "ln_1", block + "attention_norm", ours);
  take_norm(weights, model, theirs + "ln_2", block + "ffn_norm", ours);
  take_turned(weights, theirs + "mlp.c_fc", block + "up", model.ffn, width, ours);
  take_turned(weights, theirs + "mlp.c_proj", block + "down", width, model.ffn, ours);
}

Imported import_gpt2(const Source& source) {
  Imported made{gpt2_config(source.config), {}, {}, {}};
  made.attention.kind = "exact";
  ModelConfig& model = made.model;
  SourceWeights weights = source.weights();
  weights.strip("transformer.");
  for (const char* mask : {".attn.bias", ".attn.masked_bias"}) weights.leave_out(mask, "a mask, no weights");
  const int64_t vocabulary = weights.size("wte.weight", 0);
  made.tensors["embedding.weight"] = weights.take("wte.weight", {vocabulary, model.width});
  made.tensors["positions"] = weights.take("wpe.weight", {model.max_length, model.width});
  for (int64_t layer = 0; layer < model.layers; ++layer) take_gpt2_block(weights, model, layer, made.tensors);
  take_norm(weights, model, "ln_f", "final_norm", made.tensors);
  const bool stored = weights.has("lm_head.weight");
  const at::Tensor head = stored ? weights.take("lm_head.weight", {vocabulary, model.width}) : at::Tensor();
  model.tied_output = !stored || head.equal(made.tensors.at("embedding.weight"));
  if (!model.tied_output) made.tensors["output.weight"] = head;
  made.tensors[model.tied_output ? "output_bias" : "output.bias"] = at::zeros({vocabulary});
  weights.finish();
  made.notes = weights.report();
  made.tokens = read_tokens(source.directory, vocabulary);
  if (!made.tokens.eos) made.tokens.eos = source.config.whole_or("eos_token_id", vocabulary - 1);
  if (!made.tokens.bos) made.tokens.bos = source.config.whole_or("bos_token_id", *made.tokens.eos);
  return made;
}

}  // namespace

Family gpt2_family() {
  return {"gpt2", "GPT-2, a Hugging Face folder",
          [](const Source& source) { return is_type(source, "gpt2"); }, import_gpt2};
}

}  // namespace performer::convert
