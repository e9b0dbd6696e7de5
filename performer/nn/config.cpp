// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <variant>

#include "performer/base/error.h"

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

void validate_attention(const AttentionConfig& attention) {
  check_choices("attention", attention);
  check_size("attention.features", attention.features);
  check<UsageError>(
      attention.kind != "favor-softmax" || attention.projection != "none",
      "attention.projection = none does not go with attention.kind = favor-softmax, whose features are "
      "random projections; choose orthogonal or iid");
  check<UsageError>(attention.epsilon == -1 || (attention.epsilon >= 0 && std::isfinite(attention.epsilon)),
                    "attention.epsilon must be at least 0, or -1 for the default, not {}", attention.epsilon);
  check<UsageError>(
      attention.epsilon <= 0 || attention.kind == "favor-relu",
      "attention.epsilon ({}) is used by attention.kind = favor-relu only, not by {}; leave it at -1",
      attention.epsilon, attention.kind);
  check<UsageError>(attention.redraw_every >= 0, "attention.redraw_every must be at least 0 (never), not {}",
                    attention.redraw_every);
}

}  // namespace

int64_t head_size(const ModelConfig& model) {
  return model.head_size > 0 ? model.head_size : model.width / model.heads;
}

double feature_epsilon(const AttentionConfig& attention) {
  if (attention.kind != "favor-relu") return 0;
  return attention.epsilon < 0 ? 1e-3 : attention.epsilon;
}

std::string projection_kind(const AttentionConfig& attention) {
  if (!is_favor(attention)) return "none";
  if (attention.projection != "auto") return attention.projection;
  return attention.kind == "favor-softmax" ? "orthogonal" : "none";
}

bool is_favor(const AttentionConfig& attention) {
  return attention.kind == "favor-softmax" || attention.kind == "favor-relu";
}

void validate(const ModelConfig& model, const AttentionConfig& attention) {
  validate_model(model);
  validate_attention(attention);
}

}  // namespace performer
