// SPDX-License-Identifier: Apache-2.0
#include "performer/train/trained_parameters.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "performer/base/error.h"
#include "performer/base/numbers.h"

namespace performer::train {
namespace {

// Norm gains, biases and temperatures are exempt: shrinking them is no regularisation.
bool decays(const std::string& name, const at::Tensor& value, const TrainConfig& train) {
  return train.decay == "all" || (value.dim() >= 2 && !name.ends_with("_gain"));
}

// Of "blocks_3.attention.query.weight" 3; nothing for what lies in no block.
std::optional<int64_t> block_of(const std::string& parameter) {
  constexpr std::string_view kPrefix = "blocks_";
  if (!parameter.starts_with(kPrefix)) return std::nullopt;
  return parse_whole("block", parameter.substr(kPrefix.size(), parameter.find('.') - kPrefix.size()));
}

bool is_embedding(const std::string& parameter) {
  for (const char* prefix : {"embedding.", "embedding_norm.", "positions", "axial_positions."}) {
    if (parameter.starts_with(prefix)) return true;
  }
  return false;
}

bool predicts_tokens(const std::string& parameter) {
  return parameter.starts_with("output") || parameter.starts_with("regression");
}

std::vector<std::string> words_of(const std::string& list) {
  std::vector<std::string> words;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    std::string word = list.substr(begin, end - begin);
    std::erase(word, ' ');
    if (!word.empty()) words.push_back(word);
    begin = end + 1;
  }
  return words;
}

const std::vector<std::string>& lora_words() {
  static const std::vector<std::string> words = {"query", "key", "value", "out", "up", "down", "gate"};
  return words;
}

// "blocks_0.attention.query.weight" -> query; empty for what no adapter can have.
std::string projection_of(const std::string& parameter) {
  constexpr std::string_view kEnding = ".weight";
  if (!block_of(parameter) || !parameter.ends_with(kEnding)) return "";
  const std::string path = parameter.substr(0, parameter.size() - kEnding.size());
  const std::string inner = path.substr(path.find('.') + 1);
  for (const std::string& word : lora_words()) {
    if (inner == word || inner == "attention." + word) return word;
  }
  return "";
}

}  // namespace

bool FrozenParts::covers(const std::string& parameter) const {
  if (const auto block = block_of(parameter)) return blocks.contains(*block);
  return is_embedding(parameter) ? embeddings : output;
}

FrozenParts parse_frozen(const std::string& text, int64_t blocks) {
  FrozenParts parts;
  const auto block = [&](const std::string& word) {
    const bool digits = !word.empty() && word.find_first_not_of("0123456789") == std::string::npos;
    check<UsageError>(
        digits && word.size() < 10,
        "train.freeze = {}: '{}' is none of embeddings, output, all, a block such as 0, or blocks "
        "such as 0-3",
        text, word);
    const int64_t number = parse_whole("train.freeze", word);
    check<UsageError>(number < blocks, "train.freeze = {}: the model has the blocks 0 to {}, not {}", text,
                      blocks - 1, number);
    return number;
  };
  for (const std::string& word : words_of(text)) {
    if (word == "embeddings" || word == "all") parts.embeddings = true;
    if (word == "output" || word == "all") parts.output = true;
    if (word == "embeddings" || word == "output") continue;
    const size_t dash = word.find('-');
    const int64_t first = word == "all" ? 0 : block(word.substr(0, dash));
    const int64_t last = word == "all"               ? blocks - 1
                         : dash == std::string::npos ? first
                                                     : block(word.substr(dash + 1));
    check<UsageError>(first <= last, "train.freeze = {}: {} names no block, since {} is behind {}", text,
                      word, first, last);
    for (int64_t i = first; i <= last; ++i) parts.blocks.insert(i);
  }
  return parts;
}

double rate_of_layer(const std::string& parameter, int64_t blocks, double decay) {
  int64_t depth = 0;
  if (const auto block = block_of(parameter)) {
    depth = blocks - *block;
  } else if (is_embedding(parameter)) {
    depth = blocks + 1;
  }
  return std::pow(decay, static_cast<double>(depth));
}

TrainedParameters::TrainedParameters(LanguageModel& model, const TrainConfig& config, bool whole_model)
    : config_(config) {
  const auto blocks = std::ssize(model->blocks());
  const FrozenParts frozen = parse_frozen(config.freeze, blocks);
  for (const auto& item : model->named_parameters()) item.value().requires_grad_(false);
  if (config.lora_rank > 0) {
    add_adapters(model, frozen);
  } else {
    for (const auto& item : model->named_parameters()) {
      const std::string& name = item.key();
      if (frozen.covers(name) || (!whole_model && predicts_tokens(name))) continue;
      at::Tensor value = item.value();
      value.requires_grad_(true);
      parameters_.push_back(
          {name, value, decays(name, value, config), rate_of_layer(name, blocks, config.layer_decay)});
    }
  }
  check<UsageError>(!whole_model || !parameters_.empty(),
                    "train.freeze = {} leaves nothing of the model to train: freeze less", config.freeze);
}

void TrainedParameters::add_adapters(LanguageModel& model, const FrozenParts& frozen) {
  const std::vector<std::string> targets = words_of(config_.lora_targets);
  std::set<std::string> found;
  scale_ = config_.lora_alpha / static_cast<double>(config_.lora_rank);
  const auto blocks = std::ssize(model->blocks());
  for (const auto& item : model->named_parameters()) {
    const std::string& name = item.key();
    const std::string projection = projection_of(name);
    if (projection.empty() || std::ranges::find(targets, projection) == targets.end()) continue;
    found.insert(projection);
    if (frozen.covers(name)) continue;
    at::Tensor weight = item.value();
    weight.requires_grad_(true);
    LowRankAdapter adapter;
    adapter.name = name;
    adapter.weight = weight;
    adapter.base = weight.detach().clone();
    adapter.up = at::zeros({weight.size(0), config_.lora_rank}, weight.options().requires_grad(false));
    const double bound = 1 / std::sqrt(static_cast<double>(weight.size(1)));
    adapter.down =
        at::empty({config_.lora_rank, weight.size(1)}, adapter.up.options()).uniform_(-bound, bound);
    const double rate = rate_of_layer(name, blocks, config_.layer_decay);
    for (at::Tensor* part : {&adapter.up, &adapter.down}) {
      part->requires_grad_(true);
      parameters_.push_back(
          {fmt::format("lora.{}.{}", name, part == &adapter.up ? "up" : "down"), *part, true, rate});
    }
    adapters_.push_back(std::move(adapter));
  }
  for (const std::string& target : targets) {
    check<UsageError>(found.contains(target),
                      "train.lora_targets = {}: this model has no projection '{}' in its blocks; it has {}",
                      config_.lora_targets, target, fmt::join(found, ", "));
  }
  check<UsageError>(!adapters_.empty(), "train.freeze = {} leaves no block to adapt: freeze less",
                    config_.freeze);
}

int64_t TrainedParameters::count() const {
  int64_t numbers = 0;
  for (const NamedParameter& parameter : parameters_) numbers += parameter.value.numel();
  return numbers;
}

void TrainedParameters::merge() {
  const at::NoGradGuard no_grad;
  for (LowRankAdapter& adapter : adapters_) {
    const at::Tensor down = adapter.kept.defined() ? adapter.down * adapter.kept : adapter.down;
    adapter.weight.copy_(at::addmm(adapter.base, adapter.up, down, 1, scale_));
  }
}

void TrainedParameters::begin_backward() {
  if (adapters_.empty() || config_.lora_dropout == 0) return;
  const double keep = 1 - config_.lora_dropout;
  for (LowRankAdapter& adapter : adapters_) {
    const at::NoGradGuard no_grad;
    adapter.kept = at::empty({adapter.down.size(1)}, adapter.base.options()).bernoulli_(keep).div_(keep);
  }
  merge();
}

void TrainedParameters::end_backward() {
  const at::NoGradGuard no_grad;
  const auto add = [](at::Tensor& parameter, const at::Tensor& gradient) {
    at::Tensor& sum = parameter.mutable_grad();
    if (sum.defined()) {
      sum.add_(gradient);
    } else {
      sum = gradient;
    }
  };
  for (LowRankAdapter& adapter : adapters_) {
    const at::Tensor gradient = adapter.weight.grad();
    if (!gradient.defined()) continue;
    const at::Tensor down = adapter.kept.defined() ? adapter.down * adapter.kept : adapter.down;
    at::Tensor of_down = at::matmul(adapter.up.t(), gradient) * scale_;
    if (adapter.kept.defined()) of_down = of_down * adapter.kept;
    add(adapter.up, at::matmul(gradient, down.t()) * scale_);
    add(adapter.down, of_down);
    adapter.weight.mutable_grad().reset();
  }
}

void TrainedParameters::after_step() {
  for (LowRankAdapter& adapter : adapters_) adapter.kept.reset();
  merge();
}

void TrainedParameters::add_state(std::map<std::string, at::Tensor>& state) const {
  for (const LowRankAdapter& adapter : adapters_) {
    const std::string prefix = fmt::format("lora.{}.", adapter.name);
    state[prefix + "base"] = adapter.base;
    state[prefix + "up"] = adapter.up.detach();
    state[prefix + "down"] = adapter.down.detach();
  }
}

void TrainedParameters::set_state(std::map<std::string, at::Tensor>& state, const std::string& source) {
  const at::NoGradGuard no_grad;
  for (LowRankAdapter& adapter : adapters_) {
    for (const auto& [part, tensor] :
         {std::pair{"base", &adapter.base}, std::pair{"up", &adapter.up}, std::pair{"down", &adapter.down}}) {
      const std::string name = fmt::format("lora.{}.{}", adapter.name, part);
      const auto found = state.find(name);
      check<InputError>(found != state.end() && found->second.sizes().equals(tensor->sizes()),
                        "{}: the adapter's tensor '{}' must be [{}]", source, name,
                        fmt::join(tensor->sizes(), ", "));
      tensor->copy_(found->second);
      state.erase(found);
    }
  }
  merge();
}

}  // namespace performer::train
