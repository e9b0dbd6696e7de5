// SPDX-License-Identifier: Apache-2.0
#include "performer/references/fast_transformers/layers_weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <regex>
#include <utility>
#include <vector>

#include "performer/base/error.h"

namespace performer::references::fast_transformers {
namespace {

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

std::string replaced(const std::string& name, const char* pattern, const char* replacement) {
  return std::regex_replace(name, std::regex(pattern), replacement);
}

// The three parts of a merged projection, by their names.
void add_parts(const std::string& prefix, const std::string& leaf, const std::string& name,
               const at::Tensor& merged, NamedTensors& into) {
  check<InputError>(
      merged.dim() >= 1 && merged.size(0) % 3 == 0,
      "weights to import: '{}' should hold the query, key and value projections one below the other, but its "
      "first size {} is no multiple of 3",
      name, merged.dim() >= 1 ? merged.size(0) : 0);
  const int64_t rows = merged.size(0) / 3;
  int64_t first = 0;
  for (const char* part : {"query", "key", "value"}) {
    into[prefix + part + "_projection." + leaf] = merged.narrow(0, first, rows);
    first += rows;
  }
}

const std::vector<std::pair<const char*, const char*>>& bert_rules() {
  static const std::vector<std::pair<const char*, const char*>> rules = {
      {R"(\blayer\.(\d+)\.attention\.self\.(query|key|value)\b)", "layers.$1.attention.$2_projection"},
      {R"(\blayer\.(\d+)\.attention\.output\.dense\b)", "layers.$1.attention.out_projection"},
      {R"(\blayer\.(\d+)\.attention\.output\.LayerNorm\b)", "layers.$1.norm1"},
      {R"(\blayer\.(\d+)\.intermediate\.dense\b)", "layers.$1.linear1"},
      {R"(\blayer\.(\d+)\.output\.dense\b)", "layers.$1.linear2"},
      {R"(\blayer\.(\d+)\.output\.LayerNorm\b)", "layers.$1.norm2"}};
  return rules;
}

}  // namespace

NamedTensors from_torch_transformer(const NamedTensors& weights) {
  const bool decoder = std::any_of(weights.begin(), weights.end(),
                                   [](const auto& item) { return contains(item.first, "multihead_attn."); });
  NamedTensors ours;
  for (const auto& [stored, tensor] : weights) {
    if (std::regex_search(stored, std::regex(R"((^|\.)softmax_temp$)"))) continue;
    std::string name = replaced(stored, R"(\bself_attn\.)", decoder ? "self_attention." : "attention.");
    name = replaced(name, R"(\bmultihead_attn\.)", "cross_attention.");
    std::smatch merged;
    if (std::regex_search(name, merged, std::regex(R"(^(.*attention\.)in_proj_(weight|bias)$)"))) {
      add_parts(merged[1], merged[2], stored, tensor, ours);
      continue;
    }
    name = replaced(name, R"(attention\.q_proj_weight$)", "attention.query_projection.weight");
    name = replaced(name, R"(attention\.k_proj_weight$)", "attention.key_projection.weight");
    name = replaced(name, R"(attention\.v_proj_weight$)", "attention.value_projection.weight");
    ours[replaced(name, R"(attention\.(query|key|value|out)_proj\.)", "attention.$1_projection.")] = tensor;
  }
  return ours;
}

NamedTensors from_bert_encoder(const NamedTensors& weights) {
  NamedTensors ours;
  for (const auto& [stored, tensor] : weights) {
    std::string name = stored;
    for (const auto& [pattern, replacement] : bert_rules()) name = replaced(name, pattern, replacement);
    ours[name] = tensor;
  }
  return ours;
}

NamedTensors from_longformer_encoder(const NamedTensors& weights) {
  NamedTensors kept;
  for (const auto& [name, tensor] : weights) {
    if (!std::regex_search(name,
                           std::regex(R"(\blayer\.\d+\.attention\.self\.(query|key|value)_global\b)"))) {
      kept.emplace(name, tensor);
    }
  }
  return from_bert_encoder(kept);
}

}  // namespace performer::references::fast_transformers
