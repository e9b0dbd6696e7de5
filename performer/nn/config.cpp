// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <variant>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "performer/nn/position_embeddings.h"

namespace performer {
namespace {

void check_size(const char* key, int64_t value, int64_t smallest = 1) {
  check<UsageError>(value >= smallest && value <= kLargestSize, "{} must be between {} and {}, not {}", key,
                    smallest, kLargestSize, value);
}

void validate_model(const ModelConfig& model) {
  check_choices(list_fields("model", model));
  check_size("model.layers", model.layers);
  check_size("model.width", model.width);
  check_size("model.heads", model.heads);
  check_size("model.head_size", model.head_size, 0);
  check_size("model.ffn", model.ffn);
  check_size("model.max_length", model.max_length);
  nn::parse_axial_axes(model.axial_axes);
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
  check_size("model.kv_heads", model.kv_heads, 0);
  check<UsageError>(
      model.heads % kv_heads(model) == 0,
      "model.heads ({}) must be a multiple of model.kv_heads ({}): each of these serves as many "
      "query heads",
      model.heads, model.kv_heads);
  check<UsageError>(!model.token_dropout || model.objective == "masked",
                    "model.token_dropout = true counts the masks of a whole sequence: it needs "
                    "model.objective = masked, not {}",
                    model.objective);
  check<UsageError>(!model.rotary_stored || model.positions == "rotary",
                    "model.rotary_stored = true needs model.positions = rotary, not {}", model.positions);
  check<UsageError>(
      !model.added_positions || model.positions == "rotary",
      "model.added_positions = true needs model.positions = rotary, not {}: other positions are "
      "added anyway",
      model.positions);
  check<UsageError>(model.rotary_base > 0 && std::isfinite(model.rotary_base),
                    "model.rotary_base must be above 0, not {}", model.rotary_base);
  check<UsageError>(std::isfinite(model.embedding_scale) && model.embedding_scale != 0,
                    "model.embedding_scale must be another number than 0, not {}", model.embedding_scale);
  check<UsageError>(model.output_scale >= 0 && std::isfinite(model.output_scale),
                    "model.output_scale must be at least 0, not {}", model.output_scale);
  check<UsageError>(!model.reversible || model.norm == "pre",
                    "model.reversible = true needs model.norm = pre, not {}", model.norm);
  check<UsageError>(model.norm_epsilon > 0 && std::isfinite(model.norm_epsilon),
                    "model.norm_epsilon must be above 0, not {}", model.norm_epsilon);
  check<UsageError>(model.dropout >= 0 && model.dropout < 1,
                    "model.dropout must be at least 0 and below 1, not {}", model.dropout);
}

void validate_attention(const ModelConfig& model, const AttentionConfig& attention) {
  check_options(attention);
  check<UsageError>(attention.redraw_every >= 0, "attention.redraw_every must be at least 0 (never), not {}",
                    attention.redraw_every);
  check<UsageError>(attention.local_heads >= 0 && attention.local_heads <= model.heads,
                    "attention.local_heads must be between 0 and model.heads ({}), not {}", model.heads,
                    attention.local_heads);
  check_size("attention.local_window", attention.local_window);
  check_size("attention.begin_kernel", attention.begin_kernel, 0);
  const nn::AttentionKind& kind = nn::find_kind(attention.kind);
  nn::require(kind.name,
              model.objective == "causal" ? kind.capabilities.causal : kind.capabilities.bidirectional,
              model.objective == "causal" ? "causal form" : "bidirectional form",
              "choose another kind, or another model.objective");
  check<UsageError>(
      kind.capabilities.own_keys || (attention.local_heads == 0 && attention.begin_kernel == 0),
      "attention.kind = {} has no keys of its own, which local heads and begin_kernel need: set "
      "attention.local_heads and attention.begin_kernel to 0, not {} and {}",
      kind.name, attention.local_heads, attention.begin_kernel);
  if (kind.validate)
    kind.validate(attention, {model.heads, head_size(model), model.objective == "causal", 0});
}

// An option that a kind has, with the value of the configuration.
std::vector<FieldInfo> own_options(const std::string& section, const AttentionConfig& config) {
  std::vector<FieldInfo> fields = nn::find_kind(config.kind).options;
  for (FieldInfo& field : fields) {
    field.section = section;
    const auto found = config.options.find(field.name);
    if (found != config.options.end()) field.value = found->second;
  }
  return fields;
}

void drop_foreign_options(AttentionConfig& config) {
  const std::vector<FieldInfo> known = nn::find_kind(config.kind).options;
  std::erase_if(config.options, [&](const auto& option) {
    return std::none_of(known.begin(), known.end(),
                        [&](const FieldInfo& field) { return field.name == option.first; });
  });
}

}  // namespace

int64_t head_size(const ModelConfig& model) {
  return model.head_size > 0 ? model.head_size : model.width / model.heads;
}

int64_t kv_heads(const ModelConfig& model) {
  return model.kv_heads > 0 ? model.kv_heads : model.heads;
}

bool limits_length(const ModelConfig& model) {
  return model.positions == "learned" || model.positions == "axial" || model.added_positions;
}

std::vector<FieldInfo> list_fields(const std::string& section, const AttentionConfig& config) {
  std::vector<FieldInfo> fields = list_fields<AttentionConfig>(section, config);
  const std::vector<FieldInfo> own = own_options(section, config);
  fields.insert(fields.end(), own.begin(), own.end());
  return fields;
}

void set_field(const std::string& section, AttentionConfig& config, const std::string& name,
               const std::string& text) {
  if (name == "kind") {
    nn::find_kind(text);  // throws for an unknown one
    config.kind = text;
    drop_foreign_options(config);
    return;
  }
  std::vector<std::string> known;
  for (const FieldInfo& field : own_options(section, config)) {
    known.push_back(field.key());
    if (field.name != name) continue;
    config.options[name] = parse_field(field, text);
    return;
  }
  for (const FieldInfo& field : list_fields<AttentionConfig>(section, config)) {
    known.push_back(field.key());
    if (field.name == name) return set_field<AttentionConfig>(section, config, name, text);
  }
  for (const std::string& other : nn::kind_names()) {
    for (const FieldInfo& field : nn::find_kind(other).options) {
      check<UsageError>(field.name != name,
                        "{}.{} is not an option of attention.kind = {} (it is one of {}): leave it out, or "
                        "choose another kind",
                        section, name, config.kind, other);
    }
  }
  throw_unknown_key(section + "." + name, known);
}

void check_options(const AttentionConfig& config) {
  const std::vector<FieldInfo> known = nn::find_kind(config.kind).options;
  for (const auto& [name, value] : config.options) {
    const auto is_named = [&wanted = name](const FieldInfo& field) { return field.name == wanted; };
    const auto field = std::find_if(known.begin(), known.end(), is_named);
    check<UsageError>(field != known.end(), "attention.{} is not an option of attention.kind = {}", name,
                      config.kind);
    check<UsageError>(field->value.index() == value.index(), "attention.{} must be {}, but is {}", name,
                      type_name(field->value), to_text(value));
    parse_field(*field, to_text(value));
  }
}

void validate(const ModelConfig& model, const AttentionConfig& attention) {
  validate_model(model);
  validate_attention(model, attention);
}

}  // namespace performer
