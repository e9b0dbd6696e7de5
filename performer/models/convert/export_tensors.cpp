// SPDX-License-Identifier: Apache-2.0
#include "performer/models/convert/export_tensors.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/models/convert/blocks.h"

namespace performer::convert {
namespace {

class Exporter {
 public:
  Exporter(std::string shape, const ModelFolder& folder, const Tensors& state)
      : shape_(std::move(shape)),
        model_(folder.model->model_config()),
        folder_(folder),
        state_(state),
        rows_(folder.vocabulary) {}

  Tensors all() {
    if (shape_ == "gpt2") {
      gpt2();
    } else if (shape_ == "llama") {
      llama();
    } else {
      encoder();
    }
    for (auto& [name, tensor] : theirs_) tensor = tensor.contiguous();
    return std::move(theirs_);
  }

 private:
  const at::Tensor& ours(const std::string& name) const { return state_.at(name); }
  std::string block(int64_t layer) const { return fmt::format("blocks_{}.", layer); }
  // A weight with its bias; zeros where there is none and the shape has one.
  void put(const std::string& from, const std::string& to, bool bias = true) {
    theirs_[to + ".weight"] = ours(from + ".weight");
    if (!bias) return;
    const auto found = state_.find(from + ".bias");
    theirs_[to + ".bias"] =
        found != state_.end() ? found->second : at::zeros({ours(from + ".weight").size(0)});
  }
  // The factor on what the output layer reads, where a norm before it can take it up.
  double output_scale() const {
    if (model_.output_scale > 0) return model_.output_scale;
    return model_.tied_output ? 1 / std::sqrt(static_cast<double>(model_.width)) : 1;
  }
  void put_final_norm(const std::string& to) {
    for (const char* part : {".weight", ".bias"}) {
      if (state_.contains(std::string("final_norm") + part))
        theirs_[to + part] = ours(std::string("final_norm") + part) * output_scale();
    }
  }
  // Queries and keys turn other pairs there.
  void turn_pairs(const std::string& name) {
    if (model_.positions != "rotary") return;
    for (const char* part : {".weight", ".bias"}) {
      const auto found = theirs_.find(name + part);
      if (found != theirs_.end()) found->second = half_pairs(found->second, head_size(model_));
    }
  }

  void encoder_block(const std::string& theirs, int64_t layer) {
    const std::string from = block(layer);
    put(from + "attention.query", theirs + "attention.self.query");
    put(from + "attention.key", theirs + "attention.self.key");
    put(from + "attention.value", theirs + "attention.self.value");
    turn_pairs(theirs + "attention.self.query");
    turn_pairs(theirs + "attention.self.key");
    put(from + "attention.out", theirs + "attention.output.dense");
    const bool esm = shape_ == "esm";
    put(from + "attention_norm", theirs + (esm ? "attention.LayerNorm" : "attention.output.LayerNorm"));
    put(from + "ffn_norm", theirs + (esm ? "LayerNorm" : "output.LayerNorm"));
    put(from + "up", theirs + "intermediate.dense");
    put(from + "down", theirs + "output.dense");
  }

  void positions(const std::string& name) {
    const int64_t first = first_position(folder_, shape_);
    const at::Tensor before = at::zeros({first, model_.width});
    theirs_[name + ".weight"] = at::cat({before, ours("positions")});
  }

  void encoder() {
    const std::string root = shape_ + ".";
    theirs_[root + "embeddings.word_embeddings.weight"] = rows_.order(ours("embedding.weight"));
    if (model_.positions == "learned") positions(root + "embeddings.position_embeddings");
    if (shape_ != "esm") {
      theirs_[root + "embeddings.token_type_embeddings.weight"] =
          at::zeros({shape_ == "bert" ? 2 : 1, model_.width});
    }
    if (model_.embedding_norm)
      put("embedding_norm", root + (shape_ == "esm" ? "embeddings.layer_norm" : "embeddings.LayerNorm"));
    for (int64_t layer = 0; layer < model_.layers; ++layer)
      encoder_block(fmt::format("{}encoder.layer.{}.", root, layer), layer);
    if (shape_ == "esm") put("final_norm", root + "encoder.emb_layer_norm_after");
    if (model_.rotary_stored) {  // under both names that transformers has had for them
      theirs_[root + "rotary_embeddings.inv_freq"] = ours("rotary_rates");
      for (int64_t layer = 0; layer < model_.layers; ++layer)
        theirs_[fmt::format("{}encoder.layer.{}.attention.self.rotary_embeddings.inv_freq", root, layer)] =
            ours("rotary_rates").clone();
    }
    const bool bert = shape_ == "bert";
    put("output_dense", bert ? "cls.predictions.transform.dense" : "lm_head.dense");
    put("output_norm", bert ? "cls.predictions.transform.LayerNorm" : "lm_head.layer_norm");
    const std::string decoder = bert ? "cls.predictions.decoder" : "lm_head.decoder";
    if (!model_.tied_output) theirs_[decoder + ".weight"] = rows_.order(ours("output.weight"));
    theirs_[bert ? "cls.predictions.bias" : "lm_head.bias"] =
        rows_.order(ours(model_.tied_output ? "output_bias" : "output.bias"));
  }

  void put_turned(const std::string& from, const std::string& to) {
    put(from, to);
    theirs_[to + ".weight"] = theirs_[to + ".weight"].t();
  }

  void gpt2() {
    theirs_["transformer.wte.weight"] = rows_.order(ours("embedding.weight"));
    theirs_["transformer.wpe.weight"] = ours("positions");
    for (int64_t layer = 0; layer < model_.layers; ++layer) {
      const std::string from = block(layer), to = fmt::format("transformer.h.{}.", layer);
      Tensors parts;
      std::vector<at::Tensor> weights, biases;
      for (const char* name : {"query", "key", "value"}) {
        put(from + "attention." + name, name);
        weights.push_back(theirs_.at(std::string(name) + ".weight"));
        biases.push_back(theirs_.at(std::string(name) + ".bias"));
        theirs_.erase(std::string(name) + ".weight");
        theirs_.erase(std::string(name) + ".bias");
      }
      theirs_[to + "attn.c_attn.weight"] = at::cat(weights).t();
      theirs_[to + "attn.c_attn.bias"] = at::cat(biases);
      put_turned(from + "attention.out", to + "attn.c_proj");
      put(from + "attention_norm", to + "ln_1");
      put(from + "ffn_norm", to + "ln_2");
      put_turned(from + "up", to + "mlp.c_fc");
      put_turned(from + "down", to + "mlp.c_proj");
    }
    put_final_norm("transformer.ln_f");
    if (!model_.tied_output) theirs_["lm_head.weight"] = rows_.order(ours("output.weight"));
  }

  void llama() {
    theirs_["model.embed_tokens.weight"] = rows_.order(ours("embedding.weight"));
    for (int64_t layer = 0; layer < model_.layers; ++layer) {
      const std::string from = block(layer), to = fmt::format("model.layers.{}.", layer);
      const std::pair<const char*, const char*> attention[] = {
          {"query", "q_proj"}, {"key", "k_proj"}, {"value", "v_proj"}, {"out", "o_proj"}};
      for (const auto& [name, theirs] : attention)
        put(from + "attention." + name, to + "self_attn." + theirs, model_.attention_bias);
      turn_pairs(to + "self_attn.q_proj");
      turn_pairs(to + "self_attn.k_proj");
      put(from + "attention_norm", to + "input_layernorm", false);
      put(from + "ffn_norm", to + "post_attention_layernorm", false);
      const std::pair<const char*, const char*> ffn[] = {
          {"gate", "gate_proj"}, {"up", "up_proj"}, {"down", "down_proj"}};
      for (const auto& [name, theirs] : ffn) put(from + name, to + "mlp." + theirs, model_.ffn_bias);
    }
    put_final_norm("model.norm");
    if (!model_.tied_output) theirs_["lm_head.weight"] = rows_.order(ours("output.weight"));
  }

  std::string shape_;
  const ModelConfig& model_;
  const ModelFolder& folder_;
  const Tensors& state_;
  ExportRows rows_;
  Tensors theirs_;
};

}  // namespace

ExportRows::ExportRows(const data::Vocabulary& vocabulary) : ids_(vocabulary.source_ids()) {
  if (ids_.empty()) {
    for (int64_t id = 0; id < vocabulary.size(); ++id) ids_.push_back(id);
  }
  for (size_t ours = 0; ours < ids_.size(); ++ours) {
    if (ids_[ours] < 0) continue;
    const auto theirs = static_cast<size_t>(ids_[ours]);
    if (from_.size() <= theirs) from_.resize(theirs + 1, -1);
    // Where one token is two markers here, the later of them, which is predicted.
    from_[theirs] = static_cast<int64_t>(ours);
  }
}

at::Tensor ExportRows::order(const at::Tensor& ours) const {
  return ours.index_select(0, at::tensor(from_, at::kLong));
}

std::optional<int64_t> ExportRows::id_of(int64_t ours) const {
  const int64_t id = ids_[static_cast<size_t>(ours)];
  return id >= 0 ? std::optional(id) : std::nullopt;
}

int64_t first_position(const ModelFolder& folder, const std::string& shape) {
  const bool offset = shape == "roberta" || shape == "esm";
  if (!offset || folder.model->model_config().positions != "learned") return 0;
  const auto pad = ExportRows(folder.vocabulary).id_of(folder.vocabulary.pad());
  check<UsageError>(
      pad.has_value(),
      "the model cannot be exported: {} counts positions from the id of PAD, which the source of this "
      "model does not have",
      shape);
  return *pad + 1;
}

Tensors export_tensors(const std::string& shape, const ModelFolder& folder, const Tensors& state) {
  return Exporter(shape, folder, state).all();
}

}  // namespace performer::convert
