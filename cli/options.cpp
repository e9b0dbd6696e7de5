// SPDX-License-Identifier: Apache-2.0
#include "cli/options.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>
#include <toml++/toml.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/process.h"
#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/sizes.h"

namespace performer::cli {

namespace {

// The name of an option in messages: "--count" of "-n,--count".
std::string message_name(const std::string& names) {
  return names.substr(names.rfind(',') + 1);
}

// An option that takes one text and gives it to `parse`.
template <class Parse>
CLI::Option* number_option(CLI::App& app, const std::string& names, const std::string& help, const char* type,
                           Parse parse) {
  const std::string name = message_name(names);
  return app
      .add_option_function<std::string>(
          names, [name, parse](const std::string& text) { parse(name, text); }, help)
      ->type_name(type);
}

template <class Value, class Parse>
CLI::Option* list_option(CLI::App& app, const std::string& names, std::vector<Value>& values,
                         const std::string& help, const char* type, Parse parse) {
  const std::string name = message_name(names);
  const auto set = [name, parse, &values](const std::vector<std::string>& texts) {
    values.clear();
    for (const std::string& text : texts) values.push_back(parse(name, text));
  };
  CLI::Option* option = app.add_option_function<std::vector<std::string>>(names, set, help);
  option->type_name(type)->delimiter(',');
  if (!values.empty()) option->default_str(fmt::format("{}", fmt::join(values, ",")));
  return option;
}

}  // namespace

CLI::Option* whole_option(CLI::App& app, const std::string& names, int64_t& value, const std::string& help,
                          const WholeRange& range) {
  const auto parse = [&value, range](const std::string& name, const std::string& text) {
    value = parse_whole(name, text, range);
  };
  return number_option(app, names, help, "INT", parse)->default_str(fmt::format("{}", value));
}

CLI::Option* whole_option(CLI::App& app, const std::string& names, std::optional<int64_t>& value,
                          const std::string& help, const WholeRange& range) {
  return number_option(app, names, help, "INT",
                       [&value, range](const std::string& name, const std::string& text) {
                         value = parse_whole(name, text, range);
                       });
}

CLI::Option* seed_option(CLI::App& app, uint64_t& value, const std::string& help) {
  const auto parse = [&value](const std::string& name, const std::string& text) {
    value = parse_unsigned(name, text);
  };
  return number_option(app, "--seed", help, "INT", parse)->default_str(fmt::format("{}", value));
}

CLI::Option* real_option(CLI::App& app, const std::string& names, double& value, const std::string& help,
                         const RealRange& range) {
  const auto parse = [&value, range](const std::string& name, const std::string& text) {
    value = parse_real(name, text, range);
  };
  return number_option(app, names, help, "NUMBER", parse)->default_str(fmt::format("{}", value));
}

CLI::Option* whole_list(CLI::App& app, const std::string& names, std::vector<int64_t>& values,
                        const std::string& help, const WholeRange& range) {
  return list_option(app, names, values, help, "INT", [range](const std::string& name, const auto& text) {
    return parse_whole(name, text, range);
  });
}

CLI::Option* real_list(CLI::App& app, const std::string& names, std::vector<double>& values,
                       const std::string& help, const RealRange& range) {
  return list_option(app, names, values, help, "NUMBER", [range](const std::string& name, const auto& text) {
    return parse_real(name, text, range);
  });
}

void CommonOptions::add_to(CLI::App& app) {
  const ThreadChoice choice = default_threads();
  threads = choice.threads;
  threads_from = choice.reason;
  whole_option(
      app, "-t,--threads", threads,
      "threads to compute with; the default follows OMP_NUM_THREADS, else the CPUs that this process "
      "may use",
      {1, kMostThreads})
      ->each([this](const std::string&) { threads_from = "-t"; });
  app.add_flag("--quiet", quiet, "only warnings and errors on standard error");
}

void CommonOptions::apply() const {
  at::set_num_threads(static_cast<int>(threads));
  if (quiet) spdlog::set_level(spdlog::level::warn);
}

namespace {

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
  const std::vector<FieldInfo> fields = all_fields(config);
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

void apply_file(RunConfig& config, const std::string& path) {
  const std::string text = read_file(path);
  check<UsageError>(
      !text.starts_with("\xff\xfe") && !text.starts_with("\xfe\xff"),
      "{} is written in UTF-16, but TOML is UTF-8: store it as UTF-8 (iconv -f UTF-16 -t UTF-8)", path);
  toml::table root;
  try {
    root = toml::parse(text, path);
  } catch (const toml::parse_error& error) {
    throw UsageError(fmt::format("{}:{}:{}: not TOML: {}", path, error.source().begin.line,
                                 error.source().begin.column, error.description()));
  }
  for (const auto& [entry, node] : root) {
    const std::string name(entry.str());
    const toml::table& section =
        at_place(path, node, [&]() -> const toml::table& { return section_table(config, name, node); });
    if (const toml::node* kind = name == "attention" ? section.get("kind") : nullptr) {
      at_place(path, *kind, [&] { set_toml_key(config, "attention.kind", *kind); });
    }
    for (const auto& [key, value] : section) {
      at_place(path, value, [&] { set_toml_key(config, name + "." + std::string(key.str()), value); });
    }
  }
}

}  // namespace

RunConfig resolve(const ConfigSources& sources) {
  RunConfig config;
  const auto kind = sources.base.find("attention.kind");  // decides which other keys there are
  if (kind != sources.base.end()) set_key(config, kind->first, kind->second);
  for (const auto& [key, value] : sources.base) set_key(config, key, value);
  if (!sources.preset.empty()) apply_preset(config, sources.preset);
  if (!sources.file.empty()) apply_file(config, sources.file);
  for (const bool kinds : {true, false}) {  // the kind decides which other keys there are
    for (const auto& setting : sources.settings) {
      if (setting.starts_with("attention.kind=") == kinds) apply_setting(config, setting);
    }
  }
  return config;
}

void validate(const RunConfig& config) {
  performer::validate(config.model, config.attention);
  performer::validate(config.data);
  performer::validate(config.train);
}

std::string fields_to_toml(const std::string& name, const std::vector<FieldInfo>& fields) {
  std::string text = fmt::format("[{}]\n", name);
  for (const auto& field : fields) {
    std::string value = to_text(field.value);
    if (std::holds_alternative<std::string>(field.value)) value = nlohmann::json(value).dump();
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
