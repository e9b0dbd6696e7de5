// SPDX-License-Identifier: Apache-2.0
// State dictionaries of performer-pytorch's PerformerLM as language models of ours (performer convert).
#include "performer/references/performer_pytorch/convert.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "performer/base/error.h"
#include "performer/models/convert/blocks.h"
#include "performer/nn/attention/kind.h"

namespace performer::references::performer_pytorch {
namespace {

using convert::BlockNames;
using convert::Imported;
using convert::Source;
using convert::SourceWeights;
using convert::Tensors;

constexpr double kLmNormEpsilon = 1e-5;  // LibTorch's default, which the reference does not change

bool recognises(const Source& source) {
  bool attention = false, embedding = false;
  for (const auto& [name, tensor] : source.tensors) {
    attention = attention || name.ends_with(".to_q.weight");
    embedding = embedding || name.ends_with("token_emb.weight");
  }
  return attention && embedding;
}

// Parts of a block where the layers follow each other, or are reversible.
std::string part_of(const SourceWeights& weights, int64_t layer, bool attention) {
  const std::string plain = fmt::format("performer.net.layers.{}.{}.", layer, attention ? 0 : 1);
  if (weights.has(plain + "norm.weight")) return plain;
  return fmt::format("performer.net.blocks.{}.{}.net.", layer, attention ? "f" : "g");
}

BlockNames lm_names(const SourceWeights& weights, int64_t layer) {
  const std::string attention = part_of(weights, layer, true), ffn = part_of(weights, layer, false);
  return {attention + "fn.to_q", attention + "fn.to_k", attention + "fn.to_v", attention + "fn.to_out",
          attention + "norm",    ffn + "norm",          ffn + "fn.fn.w1",      ffn + "fn.fn.w2"};
}

// The file does not say which of the reference's kinds it was trained with; the user may.
std::string kind_of(const Source& source) {
  const auto hint = source.hints.find("attention.kind");
  const bool given = hint != source.hints.end() && hint->second.starts_with("performer-pytorch-");
  return given ? hint->second : "performer-pytorch-softmax";
}

void read_lm_sizes(const Source& source, const SourceWeights& weights, Imported& made) {
  ModelConfig& model = made.model;
  model.layers = weights.count("performer.net.layers.");
  model.reversible = model.layers == 0;
  if (model.reversible) model.layers = weights.count("performer.net.blocks.");
  check<InputError>(model.layers > 0, "{} has no layers under performer.net", source.path);
  const BlockNames names = lm_names(weights, 0);
  model.width = weights.size("token_emb.weight", 1);
  model.ffn = weights.size(names.up + ".weight", 0);
  model.norm_epsilon = kLmNormEpsilon;
  model.activation = "gelu";
  model.attention_bias = weights.has(names.query + ".bias") || weights.has(names.out + ".bias");
  model.output_scale = 1;
  model.tied_output = !weights.has("to_out.weight");
  const int64_t inner = weights.size(names.query + ".weight", 0);
  const std::string projection = part_of(weights, 0, true) + "fn.fast_attention.projection_matrix";
  made.attention.redraw_every = 0;
  if (weights.has(projection)) {
    made.attention.kind = kind_of(source);
    if (nn::has_option(nn::find_kind(made.attention.kind), "features"))
      made.attention.set("features", weights.size(projection, 0));
    model.head_size = weights.size(projection, 1);
    model.heads = inner / model.head_size;
  } else {
    made.attention.kind = "performer-pytorch-no-projection";
    model.heads = source.hinted("model.heads");
    model.head_size = inner / model.heads;
  }
  check<InputError>(model.heads * model.head_size == inner, "{}: {} rows of queries are not {} heads of {}",
                    source.path, inner, model.heads, model.head_size);
}

void take_lm_positions(SourceWeights& weights, ModelConfig& model, Tensors& ours) {
  if (weights.has("pos_emb.emb.weight")) {
    model.positions = "learned";
    model.max_length = weights.size("pos_emb.emb.weight", 0);
    ours["positions"] = weights.take("pos_emb.emb.weight", {model.max_length, model.width});
    return;
  }
  // Fixed tables: of rotary positions, and one that is added as well.
  check<InputError>(weights.has("layer_pos_emb.emb") && weights.has("pos_emb.emb"),
                    "{}: only rotary and learned positions of performer-pytorch are supported",
                    weights.source());
  model.positions = "rotary";
  model.added_positions = true;
  model.max_length = weights.size("pos_emb.emb", 0);
  ours["positions"] = weights.take("pos_emb.emb", {model.max_length, model.width});
  weights.leave_out("layer_pos_emb.emb", "computed");
}

Imported import_lm(const Source& source) {
  Imported made;
  SourceWeights weights = source.weights();
  weights.strip("module.");
  const bool causal = weights.has("net.token_emb.weight");  // within an AutoregressiveWrapper
  weights.strip("net.");
  weights.leave_out("proj_updater.", "tensors that are stored twice");
  weights.leave_out("calls_since_last_redraw", "a count");
  read_lm_sizes(source, weights, made);
  ModelConfig& model = made.model;
  model.objective = causal ? "causal" : "masked";
  const int64_t vocabulary = weights.size("token_emb.weight", 0);
  made.tensors["embedding.weight"] = weights.take("token_emb.weight", {vocabulary, model.width});
  take_lm_positions(weights, model, made.tensors);
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string projection = part_of(weights, layer, true) + "fn.fast_attention.projection_matrix";
    if (weights.has(projection)) {
      const at::Tensor rows = weights.take(projection, {weights.size(projection, 0), model.head_size});
      if (nn::has_option(nn::find_kind(made.attention.kind), "features"))
        made.tensors[fmt::format("blocks_{}.attention.kind.projection", layer)] = rows;
    }
    take_block(weights, model, layer, lm_names(weights, layer), made.tensors);
  }
  take_norm(weights, model, "norm", "final_norm", made.tensors);
  if (!model.tied_output)
    made.tensors["output.weight"] = weights.take("to_out.weight", {vocabulary, model.width});
  made.tensors[model.tied_output ? "output_bias" : "output.bias"] =
      model.tied_output ? at::zeros({vocabulary}) : weights.take("to_out.bias", {vocabulary});
  weights.finish();
  made.notes = weights.report();
  made.notes.push_back(fmt::format(
      "the file does not say what attention it was trained with: {} and model.objective = {} are assumed "
      "(--attention performer-pytorch-generalised, --set model.objective=...)",
      made.attention.kind, model.objective));
  made.tokens = convert::read_tokens(source.directory, vocabulary);
  return made;
}

}  // namespace

convert::Family family() {
  return {"performer-pytorch", "state dictionaries of performer-pytorch's PerformerLM", recognises,
          import_lm};
}

}  // namespace performer::references::performer_pytorch
