// SPDX-License-Identifier: Apache-2.0
#include "cli/configuration.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/sizes.h"
#include "performer/train/slices.h"

namespace performer::cli {

namespace {

constexpr size_t kMostTomlBytes = size_t{1} << 20;

std::vector<FieldInfo> all_fields(const RunConfig& config) {
  std::vector<FieldInfo> fields;
  RunConfig::sections(config, [&](const char* name, const auto& section) {
    for (auto& field : list_fields(name, section)) fields.push_back(std::move(field));
  });
  return fields;
}

// The nearest key for a misspelt one; for a key without its section the key of that name.
[[noreturn]] void throw_unknown(const std::string& key, const RunConfig& config) {
  std::vector<std::string> known;
  for (const auto& field : all_fields(config)) {
    check<UsageError>(field.name != key, "unknown configuration key '{}': did you mean '{}'?", key,
                      field.key());
    known.push_back(field.key());
  }
  throw_unknown_key(key, known);
}

// Sets "section.key" from text.
void set_key(RunConfig& config, const std::string& key, const std::string& text) {
  const size_t dot = key.find('.');
  bool found = false;
  RunConfig::sections(config, [&](const char* name, auto& section) {
    if (dot == std::string::npos || key.substr(0, dot) != name) return;
    found = true;
    set_field(name, section, key.substr(dot + 1), text);
  });
  if (!found) throw_unknown(key, config);
}

void apply_preset(RunConfig& config, const std::string& name) {
  const Preset& chosen = preset(name);
  config.model = chosen.model;
  config.attention = chosen.attention;
  config.data = chosen.data;
}

void apply_setting(RunConfig& config, const std::string& setting) {
  const size_t equals = setting.find('=');
  check<UsageError>(equals != std::string::npos && equals > 0, "--set takes section.key=value, but is '{}'",
                    setting);
  set_key(config, setting.substr(0, equals), setting.substr(equals + 1));
}

// A real number so that it is told from a whole one.
std::string real_text(double value) {
  const std::string text = fmt::format("{}", value);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

// What a TOML value is, in words.
std::string describe(const toml::node& node) {
  if (const auto* text = node.as_string()) return fmt::format("the text '{}'", text->get());
  if (const auto* whole = node.as_integer()) return fmt::format("{}", whole->get());
  if (const auto* real = node.as_floating_point()) return real_text(real->get());
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  return node.is_table() ? "a table" : node.is_array() ? "a list" : "a date or time";
}

// Text of a TOML value when its type is that of the field: numbers may be written whole for a real field.
std::optional<std::string> text_for(const FieldInfo& field, const toml::node& node) {
  if (std::holds_alternative<bool>(field.value)) {
    if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  } else if (std::holds_alternative<std::string>(field.value)) {
    if (const auto* text = node.as_string()) return text->get();
  } else if (const auto* whole = node.as_integer()) {
    return fmt::format("{}", whole->get());
  } else if (const auto* real = node.as_floating_point();
             real && std::holds_alternative<double>(field.value)) {
    return fmt::format("{}", real->get());
  }
  return std::nullopt;
}

void set_toml_key(RunConfig& config, const std::string& key, const toml::node& node) {
  std::vector<FieldInfo> fields;  // of the key's section
  RunConfig::sections(config, [&](const std::string& name, const auto& section) {
    if (key.starts_with(name + ".")) fields = list_fields(name, section);
  });
  const auto field =
      std::find_if(fields.begin(), fields.end(), [&](const auto& f) { return f.key() == key; });
  if (field == fields.end()) throw_unknown(key, config);
  const auto text = text_for(*field, node);
  check<UsageError>(text.has_value(), "{} must be {}, but is {}", key, type_name(field->value),
                    describe(node));
  set_key(config, key, *text);
}

// The table of a section, whose name must be known.
const toml::table& section_table(const RunConfig& config, const std::string& name, const toml::node& node) {
  std::vector<std::string> known;
  RunConfig::sections(config, [&](const char* section, const auto&) { known.emplace_back(section); });
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    if (!node.is_table()) throw_unknown(name, config);
    const std::string near = nearest(name, known);
    throw UsageError(fmt::format("unknown configuration section [{}]: {}", name,
                                 near.empty() ? fmt::format("known are [{}]", fmt::join(known, "], ["))
                                              : fmt::format("did you mean [{}]?", near)));
  }
  check<UsageError>(node.is_table(), "[{}] must be a section of keys, but is {}", name, describe(node));
  return *node.as_table();
}

// Calls `apply`, adding "file:line: " to its errors.
template <class Apply>
decltype(auto) at_place(const std::string& file, const toml::node& node, Apply&& apply) {
  try {
    return apply();
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("{}:{}: {}", file, node.source().begin.line, error.what()));
  }
}

}  // namespace

void apply_toml(RunConfig& config, const std::string& text, const std::string& source) {
  check<UsageError>(
      !text.starts_with("\xff\xfe") && !text.starts_with("\xfe\xff"),
      "{} is written in UTF-16, but TOML is UTF-8: store it as UTF-8 (iconv -f UTF-16 -t UTF-8)", source);
  toml::table root;
  try {
    root = toml::parse(text, source);
  } catch (const toml::parse_error& error) {
    throw UsageError(fmt::format("{}:{}:{}: not TOML: {}", source, error.source().begin.line,
                                 error.source().begin.column, error.description()));
  }
  for (const auto& [entry, node] : root) {
    const std::string name(entry.str());
    const toml::table& section = at_place(source, node, [&, &found = node]() -> const toml::table& {
      return section_table(config, name, found);
    });
    if (const toml::node* kind = name == "attention" ? section.get("kind") : nullptr) {
      at_place(source, *kind, [&] { set_toml_key(config, "attention.kind", *kind); });
    }
    for (const auto& [field, field_value] : section) {
      const std::string key = name + "." + std::string(field.str());
      at_place(source, field_value, [&, &found = field_value] { set_toml_key(config, key, found); });
    }
  }
}

RunConfig resolve(const ConfigSources& sources) {
  RunConfig config;
  const auto kind = sources.base.find("attention.kind");  // decides which other keys there are
  if (kind != sources.base.end()) set_key(config, kind->first, kind->second);
  for (const auto& [key, value] : sources.base) set_key(config, key, value);
  if (!sources.preset.empty()) apply_preset(config, sources.preset);
  if (!sources.file.empty()) apply_toml(config, read_file(sources.file, kMostTomlBytes), sources.file);
  for (const bool kinds : {true, false}) {  // the kind decides which other keys there are
    for (const auto& setting : sources.settings) {
      if (setting.starts_with("attention.kind=") == kinds) apply_setting(config, setting);
    }
  }
  return config;
}

void validate(const RunConfig& config) {
  performer::validate(config.model, config.attention);
  performer::validate(config.train);
  train::validate_data(config.data, config.train);
  performer::validate(config.task);
}

namespace {

// In quotes. What JSON escapes, TOML reads alike, but it wants one escape more. A text that is not UTF-8,
// which a path may be, has no TOML: U+FFFD stands for its odd bytes.
std::string toml_text(const std::string& text) {
  using nlohmann::json;
  std::string quoted;
  for (const char letter : json(text).dump(-1, ' ', false, json::error_handler_t::replace)) {
    if (letter == '\x7f')
      quoted += "\\u007f";
    else
      quoted += letter;
  }
  return quoted;
}

}  // namespace

std::string fields_to_toml(const std::string& name, const std::vector<FieldInfo>& fields) {
  std::string text = fmt::format("[{}]\n", name);
  for (const auto& field : fields) {
    std::string value = to_text(field.value);
    if (std::holds_alternative<std::string>(field.value)) value = toml_text(value);
    const bool looks_whole = value.find_first_of(".en") == std::string::npos;
    if (std::holds_alternative<double>(field.value) && looks_whole) value += ".0";
    text += fmt::format("{} = {}\n", field.name, value);
  }
  return text;
}

std::string to_toml(const RunConfig& config) {
  std::string text;
  RunConfig::sections(config, [&](const char* name, const auto& section) {
    text += (text.empty() ? "" : "\n") + section_to_toml(name, section);
  });
  return text;
}

std::string describe_keys(const RunConfig& config) {
  return describe_fields(all_fields(config));
}

std::string describe_fields(const std::vector<FieldInfo>& fields) {
  std::string text;
  for (const auto& field : fields) {
    text += fmt::format("  {} = {}", field.key(), to_text(field.value));
    if (!field.choices.empty()) text += fmt::format("  {{{}}}", fmt::join(field.choices, ", "));
    text += fmt::format("\n      {}\n", field.help);
  }
  return text;
}

}  // namespace performer::cli
