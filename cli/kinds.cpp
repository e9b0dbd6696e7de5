// SPDX-License-Identifier: Apache-2.0
#include "cli/kinds.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "cli/options.h"

namespace performer::cli {

namespace {

using Json = nlohmann::ordered_json;

struct Capability {
  const char* name;
  bool nn::Capabilities::*has;
  const char* meaning;
};

constexpr Capability kCapabilities[] = {
    {"causal", &nn::Capabilities::causal, "each token sees itself and earlier ones"},
    {"bidirectional", &nn::Capabilities::bidirectional, "each token sees all"},
    {"streams", &nn::Capabilities::streams, "generates token by token without reading the prefix again"},
    {"chunks", &nn::Capabilities::chunks,
     "goes on from a state of constant size (train.slim_chunk, train.sequence_parallel)"},
    {"cross", &nn::Capabilities::cross, "attends to another sequence (encoder-decoder)"},
    {"packed", &nn::Capabilities::packed, "takes several sequences side by side (data.layout = packed)"},
    {"masks", &nn::Capabilities::masks, "takes padded batches (data.layout = padded)"},
    {"reads_queries", &nn::Capabilities::reads_queries, "its output depends on queries and keys"},
    {"own_keys", &nn::Capabilities::own_keys, "has weights for keys; otherwise queries serve as keys"},
    {"continuous", &nn::Capabilities::continuous,
     "a small change of its inputs is a small change of its output; otherwise rounding may decide who "
     "attends"},
    {"redraws", &nn::Capabilities::redraws, "has a random projection that attention.redraw_every replaces"},
    {"linear", &nn::Capabilities::linear, "linear attention: can be studied with performer approx"},
    {"rows", &nn::Capabilities::rows, "shows its matrix of attention row by row (performer attention)"},
};

std::vector<const nn::AttentionKind*> all_kinds() {
  std::vector<const nn::AttentionKind*> kinds;
  for (const std::string& name : nn::kind_names()) kinds.push_back(&nn::find_kind(name));
  return kinds;
}

}  // namespace

std::string kinds_text() {
  const auto kinds = all_kinds();
  size_t width = 0;
  for (const auto* kind : kinds) width = std::max(width, kind->name.size());
  std::string text;
  for (const auto group : {nn::KindGroup::own, nn::KindGroup::baseline, nn::KindGroup::reference}) {
    std::string lines;
    for (const auto* kind : kinds) {
      if (kind->group == group) lines += fmt::format("  {:<{}}  {}\n", kind->name, width, kind->summary);
    }
    if (!lines.empty())
      text += fmt::format("{}{}\n{}", text.empty() ? "" : "\n", nn::group_name(group), lines);
  }
  return text + "\nperformer info --kinds NAME shows what a kind can do and its options.\n";
}

Json kinds_json() {
  Json list = Json::array();
  for (const auto* kind : all_kinds()) {
    list.push_back(
        {{"name", kind->name}, {"group", nn::group_name(kind->group)}, {"summary", kind->summary}});
  }
  return list;
}

std::string kind_text(const nn::AttentionKind& kind) {
  std::string text = fmt::format("{} ({})\n  {}\n", kind.name, nn::group_name(kind.group), kind.summary);
  if (!kind.cost.empty()) text += fmt::format("  Cost of a sequence of T tokens: {}\n", kind.cost);
  text += "\nWhat it can do\n";
  for (const Capability& capability : kCapabilities) {
    text += fmt::format("  {:<14} {:<3}  {}\n", capability.name,
                        kind.capabilities.*capability.has ? "yes" : "no", capability.meaning);
  }
  if (kind.options.empty()) return text + "\nIt has no options of its own.\n";
  return text + "\nIts own options, with their defaults (performer train --set KEY=VALUE)\n" +
         describe_fields(kind.options);
}

Json kind_json(const nn::AttentionKind& kind) {
  Json capabilities = Json::object();
  for (const Capability& capability : kCapabilities) {
    capabilities[capability.name] = kind.capabilities.*capability.has;
  }
  Json options = Json::array();
  for (const FieldInfo& field : kind.options) {
    Json option = {{"key", field.key()}};
    std::visit([&](const auto& value) { option["default"] = value; }, field.value);
    option["help"] = field.help;
    if (!field.choices.empty()) option["choices"] = field.choices;
    options.push_back(std::move(option));
  }
  return {{"name", kind.name}, {"group", nn::group_name(kind.group)}, {"summary", kind.summary},
          {"cost", kind.cost}, {"capabilities", capabilities},        {"options", options}};
}

}  // namespace performer::cli
