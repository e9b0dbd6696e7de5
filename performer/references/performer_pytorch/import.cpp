// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/import.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <regex>
#include <string_view>

#include "performer/base/error.h"
#include "performer/models/import_weights.h"

namespace performer::references::performer_pytorch {
namespace {

// "net.layers.3.0.fn.to_q.weight" and "net.blocks.3.f.net.fn.to_q.weight": block, branch and the rest.
std::string block_name(const std::string& name) {
  static const std::regex kBlock(R"((?:net\.layers\.(\d+)\.([01])|net\.blocks\.(\d+)\.([fg])\.net)\.(.+))");
  static const std::regex kInner(R"((?:fn\.)+(.+))");  // past the shift's and the chunks' wrappers
  std::smatch match, inner;
  if (!std::regex_match(name, match, kBlock)) return "";
  const bool plain = match[1].matched;
  const std::string block = plain ? match[1] : match[3], branch = plain ? match[2] : match[4];
  const std::string rest = match[5];
  const std::string module =
      fmt::format("blocks_{}.{}", block, branch == "0" || branch == "f" ? "attention" : "feed_forward");
  if (rest == "g") return module + "_norm.gain";
  if (rest.starts_with("norm.")) return module + "_" + rest;
  if (std::regex_match(rest, inner, kInner)) return module + "." + inner[1].str();
  return "";
}

// Prefixes of modules around and in a PerformerLM, the first that fits counts.
struct Prefix {
  const char *theirs, *ours;
};
constexpr Prefix kPrefixes[] = {{"performer.", "stack."},
                                {"token_emb.", "token_embedding."},
                                {"layer_pos_emb.emb", "rotary_table"},
                                {"pos_emb.emb.weight", "learned_positions.weight"},
                                {"pos_emb.emb", "position_table"},
                                {"pos_emb.weights.", "axial_positions.weights_"},
                                {"norm.", "final_norm."},
                                {"to_out.", "output."},
                                {"enc.", "encoder."},
                                {"dec.", "decoder."}};

std::string our_name(const std::string& name) {
  if (name.starts_with("net.layers.") || name.starts_with("net.blocks.")) {
    const std::string found = block_name(name);
    return found.empty() ? name : found;
  }
  if (name.starts_with("net.")) return "net." + our_name(name.substr(4));  // of AutoregressiveWrapper
  for (const Prefix& prefix : kPrefixes) {
    if (name.starts_with(prefix.theirs)) {
      return prefix.ours + our_name(name.substr(std::string_view(prefix.theirs).size()));
    }
  }
  return name;
}

}  // namespace

std::string performer_pytorch_name(const std::string& name) {
  return name.find("proj_updater.") == std::string::npos ? our_name(name) : "";
}

void import_performer_pytorch(torch::nn::Module& model, const std::map<std::string, at::Tensor>& weights) {
  std::map<std::string, at::Tensor> ours;
  for (const auto& item : model.named_parameters()) ours.emplace(item.key(), item.value());
  for (const auto& item : model.named_buffers()) ours.emplace(item.key(), item.value());

  const std::string tied = "enc.token_emb.weight", owner = "dec.net.token_emb.weight";
  std::map<std::string, at::Tensor> renamed;
  for (const auto& [theirs, tensor] : weights) {
    const std::string name = performer_pytorch_name(theirs);
    const auto place = ours.find(name);
    if (place == ours.end() && theirs == tied) {
      const auto given = weights.find(owner);
      check<InputError>(given != weights.end() && at::equal(given->second, tensor),
                        "weights to import: {} and {} differ, but this model ties its token embeddings", tied,
                        owner);
    } else if (place == ours.end() && name.starts_with("encoder.output.")) {
      continue;
    } else if (!name.empty()) {
      renamed[name] = tensor;
    }
  }
  import_weights(model, renamed);
}

}  // namespace performer::references::performer_pytorch
