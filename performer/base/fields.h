// SPDX-License-Identifier: Apache-2.0
// Configuration fields are written once. A config struct lists them in one static function,
//
//   struct TrainConfig {
//     double learning_rate = 1e-3;
//     template <class Self, class Visit> static void fields(Self& self, Visit&& visit) {
//       visit("learning_rate", self.learning_rate, "step size before the schedule");
//     }
//   };
//
// and the TOML parser, `--set`, `--help`, the printer and the checkpoint all visit that list. A field is a
// bool, int64_t, double or std::string; a closed set of strings is given as a fourth argument.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace performer {

using FieldValue = std::variant<bool, int64_t, double, std::string>;

// A set of field values addressed as "section.key".
struct FieldInfo {
  std::string section;
  std::string name;
  std::string help;
  FieldValue value;
  std::vector<std::string> choices;  // empty: any value of the type
  std::string key() const { return section + "." + name; }
};

using Choices = std::vector<std::string>;

// The fields of a config struct as data, with their present values.
template <class Config>
std::vector<FieldInfo> list_fields(const std::string& section, const Config& config) {
  std::vector<FieldInfo> fields;
  Config::fields(config, [&](const char* name, const auto& value, const char* help, Choices choices = {}) {
    fields.push_back({section, name, help, FieldValue(value), std::move(choices)});
  });
  return fields;
}

// Text form of a value as it is printed and as TOML reads it; strings without quotes.
std::string to_text(const FieldValue& value);
// Type name for messages: "true or false", "a whole number", "a number", "text".
const char* type_name(const FieldValue& value);
// Parses `text` as the type that `field` has (numbers as numbers.h says) and checks its choices. Throws
// UsageError naming the key, the expectation and the value found.
FieldValue parse_field(const FieldInfo& field, const std::string& text);

// Checks the closed sets of words of configurations that were filled in by code, not by the parser. Throws
// UsageError naming the first key whose value is none of its choices.
void check_choices(const std::vector<FieldInfo>& fields);

// Sets one field by name. Throws UsageError with the nearest known name for an unknown one.
template <class Config>
void set_field(const std::string& section, Config& config, const std::string& name, const std::string& text);

// The known word nearest to `word` by edit distance, or "" when none is near.
std::string nearest(const std::string& word, const std::vector<std::string>& known);
[[noreturn]] void throw_unknown_key(const std::string& key, const std::vector<std::string>& known);

template <class Config>
void set_field(const std::string& section, Config& config, const std::string& name, const std::string& text) {
  bool found = false;
  std::vector<std::string> known;
  Config::fields(config, [&](const char* field, auto& value, const char* help, Choices choices = {}) {
    known.push_back(section + "." + field);
    if (name != field) return;
    const FieldInfo info{section, field, help, FieldValue(value), std::move(choices)};
    value = std::get<std::remove_cvref_t<decltype(value)>>(parse_field(info, text));
    found = true;
  });
  if (!found) throw_unknown_key(section + "." + name, known);
}

}  // namespace performer
