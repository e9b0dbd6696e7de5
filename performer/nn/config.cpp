// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <variant>

#include "performer/base/error.h"
#include "performer/compat/presets.h"
#include "performer/nn/linear_attention.h"

namespace performer {
namespace {

// Far above anything trained, and low enough that no product of two sizes overflows.
constexpr int64_t kLargestSize = int64_t{1} << 24;

void check_size(const char* key, int64_t value, int64_t smallest = 1) {
  check<UsageError>(value >= smallest && value <= kLargestSize, "{} must be between {} and {}, not {}", key,
                    smallest, kLargestSize, value);
}

// Values that came through the parser are checked there already; configurations filled in by code are not.
template <class Config>
void check_choices(const char* section, const Config& config) {
  for (const FieldInfo& field : list_fields(section, config)) {
    if (field.choices.empty()) continue;
    const std::string& value = std::get<std::string>(field.value);
    check<UsageError>(std::find(field.choices.begin(), field.choices.end(), value) != field.choices.end(),
                      "{} must be one of {}, not '{}'", field.key(), fmt::join(field.choices, ", "), value);
  }
}

void validate_model(const ModelConfig& model) {
  check_choices("model", model);
  check_size("model.layers", model.layers);
  check_size("model.width", model.width);
  check_size("model.heads", model.heads);
  check_size("model.head_size", model.head_size, 0);
  check_size("model.ffn", model.ffn);
  check_size("model.max_length", model.max_length);
  check<UsageError>(
      model.head_size > 0 || model.width % model.heads == 0,
      "model.width ({}) must be divisible by model.heads ({}); change one of them or set model.head_size",
      model.width, model.heads);
  check_size("model.heads times model.head_size", model.heads * head_size(model));
  check<UsageError>(
      model.positions != "rotary" || head_size(model) % 2 == 0,
      "model.positions = rotary turns pairs of numbers and needs an even head size, not {} (model.head_size, "
      "or model.width / model.heads)",
      head_size(model));
  check<UsageError>(model.norm_epsilon > 0 && std::isfinite(model.norm_epsilon),
                    "model.norm_epsilon must be above 0, not {}", model.norm_epsilon);
  check<UsageError>(model.dropout >= 0 && model.dropout < 1,
                    "model.dropout must be at least 0 and below 1, not {}", model.dropout);
}

// Keys that a preset fixes must be left alone, or a model would not be what its configuration says.
void validate_preset(const AttentionConfig& attention) {
  const AttentionConfig plain;
  const auto fixed = [&](const char* key, bool changed) {
    check<UsageError>(!changed, "{} is fixed by attention.kind = {}; leave it at its default", key,
                      attention.kind);
  };
  fixed("attention.projection", attention.projection != plain.projection);
  fixed("attention.row_norm", attention.row_norm != plain.row_norm);
  fixed("attention.epsilon", attention.epsilon != plain.epsilon);
  fixed("attention.shared_projection", attention.shared_projection != plain.shared_projection);
}

void validate_attention(const AttentionConfig& attention, int64_t head_size) {
  check_choices("attention", attention);
  check_size("attention.features", attention.features);
  check<UsageError>(attention.epsilon == -1 || (attention.epsilon >= 0 && std::isfinite(attention.epsilon)),
                    "attention.epsilon must be at least 0, or -1 for the default, not {}", attention.epsilon);
  check<UsageError>(attention.redraw_every >= 0, "attention.redraw_every must be at least 0 (never), not {}",
                    attention.redraw_every);
  if (is_preset(attention)) validate_preset(attention);
  if (is_favor(attention)) ops::validate(nn::feature_map_options(attention), head_size);
}

}  // namespace

int64_t head_size(const ModelConfig& model) {
  return model.head_size > 0 ? model.head_size : model.width / model.heads;
}

std::vector<std::string> attention_kinds() {
  std::vector<std::string> kinds = {"favor-softmax", "favor-relu"};
  for (const std::string& map : ops::feature_map_names()) {
    if (map != "favor+" && map != "relu") kinds.push_back("favor-" + map);
  }
  kinds.insert(kinds.end(), {"exact", "identity"});
  const std::vector<std::string> presets = compat::preset_names();
  kinds.insert(kinds.end(), presets.begin(), presets.end());
  return kinds;
}

bool is_favor(const AttentionConfig& attention) {
  return attention.kind.starts_with("favor-");
}

bool is_preset(const AttentionConfig& attention) {
  return !is_favor(attention) && attention.kind != "exact" && attention.kind != "identity";
}

std::string map_name(const AttentionConfig& attention) {
  check<UsageError>(is_favor(attention), "attention.kind = {} has no feature map of ours", attention.kind);
  const std::string map = attention.kind.substr(std::string("favor-").size());
  return map == "softmax" ? "favor+" : map;
}

void validate(const ModelConfig& model, const AttentionConfig& attention) {
  validate_model(model);
  validate_attention(attention, head_size(model));
}

}  // namespace performer
