// SPDX-License-Identifier: Apache-2.0
#include "performer/models/convert/blocks.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "performer/base/error.h"

namespace performer::convert {

void take_linear(SourceWeights& weights, const std::string& name, const std::string& target, int64_t out,
                 int64_t in, bool bias, Tensors& ours) {
  ours[target + ".weight"] = weights.take(name + ".weight", {out, in});
  if (bias) ours[target + ".bias"] = weights.take(name + ".bias", {out});
}

void take_norm(SourceWeights& weights, const ModelConfig& model, const std::string& name,
               const std::string& target, Tensors& ours) {
  ours[target + ".weight"] = weights.take(name + ".weight", {model.width});
  if (model.norm_type == "layer") ours[target + ".bias"] = weights.take(name + ".bias", {model.width});
}

void take_block(SourceWeights& weights, const ModelConfig& model, int64_t layer, const BlockNames& names,
                Tensors& ours) {
  const std::string block = fmt::format("blocks_{}.", layer);
  const int64_t inner = model.heads * head_size(model), keys = kv_heads(model) * head_size(model);
  const auto attention = [&](const std::string& name, const char* target, int64_t out, int64_t in) {
    const std::string place = block + "attention." + target;
    take_linear(weights, name, place, out, in, false, ours);
    if (model.attention_bias) ours[place + ".bias"] = weights.take_or_zeros(name + ".bias", {out});
  };
  attention(names.query, "query", inner, model.width);
  attention(names.key, "key", keys, model.width);
  attention(names.value, "value", keys, model.width);
  attention(names.out, "out", model.width, inner);
  take_norm(weights, model, names.attention_norm, block + "attention_norm", ours);
  take_norm(weights, model, names.ffn_norm, block + "ffn_norm", ours);
  take_linear(weights, names.up, block + "up", model.ffn, model.width, model.ffn_bias, ours);
  take_linear(weights, names.down, block + "down", model.width, model.ffn, model.ffn_bias, ours);
  if (model.ffn_gate)
    take_linear(weights, names.gate, block + "gate", model.ffn, model.width, model.ffn_bias, ours);
}

void take_transform(SourceWeights& weights, const ModelConfig& model, const std::string& dense,
                    const std::string& norm, Tensors& ours) {
  take_linear(weights, dense, "output_dense", model.width, model.width, true, ours);
  take_norm(weights, model, norm, "output_norm", ours);
}

at::Tensor neighbouring_pairs(const at::Tensor& rows, int64_t head_size) {
  return rows.unflatten(0, {-1, 2, head_size / 2}).transpose(1, 2).flatten(0, 2).contiguous();
}

at::Tensor half_pairs(const at::Tensor& rows, int64_t head_size) {
  return rows.unflatten(0, {-1, head_size / 2, 2}).transpose(1, 2).flatten(0, 2).contiguous();
}

void pair_neighbours(const ModelConfig& model, Tensors& ours) {
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    for (const char* name : {"query", "key"}) {
      for (const char* part : {"weight", "bias"}) {
        const auto found = ours.find(fmt::format("blocks_{}.attention.{}.{}", layer, name, part));
        if (found != ours.end()) found->second = neighbouring_pairs(found->second, head_size(model));
      }
    }
  }
}

std::string activation_named(const std::string& name, const std::string& source) {
  if (name == "gelu" || name == "gelu_python") return "gelu";
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return "gelu-tanh";
  if (name == "relu") return "relu";
  if (name == "silu" || name == "swish") return "silu";
  throw InputError(
      fmt::format("{}: the activation function {} is not supported; known are gelu, gelu_new, relu and silu",
                  source, name));
}

}  // namespace performer::convert
