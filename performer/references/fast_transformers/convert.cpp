// SPDX-License-Identifier: Apache-2.0
#include "performer/references/fast_transformers/convert.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "performer/base/error.h"
#include "performer/models/convert/blocks.h"

namespace performer::references::fast_transformers {
namespace {

using convert::BlockNames;
using convert::Imported;
using convert::Source;
using convert::SourceWeights;
using convert::Tensors;

constexpr const char* kFirst = "layers.0.attention.query_projection.weight";

// What stands before the layers of the encoder.
std::string prefix_of(const Source& source) {
  for (const auto& [name, tensor] : source.tensors) {
    if (name.ends_with(kFirst)) return name.substr(0, name.size() - std::string(kFirst).size());
  }
  return "none";
}

BlockNames names_of(const std::string& prefix, int64_t layer) {
  const std::string block = fmt::format("{}layers.{}.", prefix, layer);
  return {block + "attention.query_projection",
          block + "attention.key_projection",
          block + "attention.value_projection",
          block + "attention.out_projection",
          block + "norm1",
          block + "norm2",
          block + "linear1",
          block + "linear2"};
}

// The tensors around the encoder have the names that their program gave them: they are told by shape.
struct Around {
  std::string embedding, output, positions;
};
Around around(const Source& source, const std::string& prefix, int64_t width) {
  Around found;
  for (const auto& [name, tensor] : source.tensors) {
    if (name.starts_with(prefix + "layers.") || name.starts_with(prefix + "norm.")) continue;
    const bool rows = tensor.dim() >= 2 && tensor.size(-1) == width;
    const bool pos = name.find("pos") != std::string::npos || name.ends_with(".pe");
    const bool emb = name.find("emb") != std::string::npos || name.find("token") != std::string::npos;
    if (!rows || !name.ends_with(pos ? "" : "weight")) continue;
    std::string& place = pos ? found.positions : emb ? found.embedding : found.output;
    check<InputError>(place.empty(), "{}: which of '{}' and '{}' the {} is cannot be told", source.path,
                      place, name,
                      pos   ? "table of positions"
                      : emb ? "embedding"
                            : "output layer");
    place = name;
  }
  check<InputError>(
      !found.embedding.empty() && !found.output.empty(),
      "{} has no {}: expected a matrix [tokens, {}] beside the encoder", source.path,
      found.embedding.empty() ? "embedding (a weight with 'emb' or 'token' in its name)" : "output layer",
      width);
  return found;
}

void take_positions(const Source& source, SourceWeights& weights, const std::string& name, Imported& made) {
  ModelConfig& model = made.model;
  model.positions = name.empty() ? "none" : "learned";
  if (name.empty()) return;
  const at::Tensor& stored = source.tensors.at(name);
  model.max_length = stored.numel() / model.width;
  made.tensors["positions"] =
      weights.take(name, stored.sizes().vec()).reshape({model.max_length, model.width});
}

Imported import_model(const Source& source) {
  const std::string prefix = prefix_of(source);
  Imported made;
  ModelConfig& model = made.model;
  SourceWeights weights = source.weights();
  model.layers = weights.count(prefix + "layers.");
  model.width = weights.size(prefix + kFirst, 1);
  model.heads = source.hinted("model.heads");
  model.head_size = weights.size(prefix + kFirst, 0) / model.heads;
  model.ffn = weights.size(names_of(prefix, 0).up + ".weight", 0);
  model.norm = "post";
  model.norm_epsilon = 1e-5;
  model.activation = "relu";
  model.attention_bias = true;
  const std::string omega = prefix + "layers.0.attention.inner_attention.feature_map.omega";
  made.attention.kind = weights.has(omega) ? "fast-transformers-favor" : "fast-transformers-elu";
  made.attention.redraw_every = 0;
  if (weights.has(omega)) made.attention.set("features", 2 * weights.size(omega, 1));
  const Around names = around(source, prefix, model.width);
  const int64_t vocabulary = weights.size(names.embedding, 0);
  made.tensors["embedding.weight"] = weights.take(names.embedding, {vocabulary, model.width});
  take_positions(source, weights, names.positions, made);
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    weights.leave_out(fmt::format("{}layers.{}.attention.inner_attention.", prefix, layer),
                      "random features, which are drawn anew");
    take_block(weights, model, layer, names_of(prefix, layer), made.tensors);
  }
  model.final_norm = weights.has(prefix + "norm.weight");
  if (model.final_norm) take_norm(weights, model, prefix + "norm", "final_norm", made.tensors);
  made.tensors["output.weight"] = weights.take(names.output, {vocabulary, model.width});
  const std::string bias = names.output.substr(0, names.output.size() - 6) + "bias";
  made.tensors["output.bias"] = weights.take_or_zeros(bias, {vocabulary});
  weights.finish();
  made.notes = weights.report();
  made.notes.push_back(
      fmt::format("the file does not say its attention, activation and objective: {}, relu and {} are "
                  "assumed (--attention KIND, "
                  "--set model.activation=gelu, --set model.objective=masked)",
                  made.attention.kind, model.objective));
  made.tokens = convert::read_tokens(source.directory, vocabulary);
  return made;
}

}  // namespace

convert::Family family() {
  return {"fast-transformers", "state dictionaries around an encoder of fast-transformers",
          [](const Source& source) { return prefix_of(source) != "none"; }, import_model};
}

}  // namespace performer::references::fast_transformers
