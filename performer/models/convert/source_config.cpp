// SPDX-License-Identifier: Apache-2.0
#include "performer/models/convert/source_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/data/json.h"
#include "performer/nn/config.h"

namespace performer::convert {
namespace {

std::string scalar_text(const Scalar& value) {
  return std::visit([](const auto& v) { return fmt::format("{}", v); }, value);
}

void flatten(const nlohmann::json& value, const std::string& name, std::map<std::string, Scalar>& values) {
  const auto part = [&](const std::string& key) { return name.empty() ? key : name + "." + key; };
  if (value.is_object()) {
    for (const auto& [key, inner] : value.items()) flatten(inner, part(key), values);
  } else if (value.is_array()) {
    for (size_t i = 0; i < value.size(); ++i) flatten(value[i], part(std::to_string(i)), values);
  } else if (value.is_boolean()) {
    values[name] = value.get<bool>();
  } else if (value.is_number_integer()) {
    values[name] = value.get<int64_t>();
  } else if (value.is_number()) {
    values[name] = value.get<double>();
  } else if (value.is_string()) {
    values[name] = value.get<std::string>();
  }
}

}  // namespace

SourceConfig SourceConfig::of_json(const std::string& text, const std::string& path) {
  const auto root = data::parse_json_object(text, path);
  std::map<std::string, Scalar> values;
  flatten(root, "", values);
  return {std::move(values), path};
}

const Scalar* SourceConfig::find(const std::string& key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

int64_t SourceConfig::whole(const std::string& key, const std::string& or_key) const {
  const Scalar* value = find(key);
  if (value == nullptr && !or_key.empty()) value = find(or_key);
  check<InputError>(value != nullptr && std::holds_alternative<int64_t>(*value),
                    "{}: {} is missing or no whole number", source_, key);
  return std::get<int64_t>(*value);
}

int64_t SourceConfig::size(const std::string& key, const std::string& or_key) const {
  const int64_t value = whole(key, or_key);
  check<InputError>(value >= 1 && value <= kLargestSize, "{}: {} = {} is no size from 1 to {}", source_, key,
                    value, kLargestSize);
  return value;
}

int64_t SourceConfig::whole_or(const std::string& key, int64_t otherwise) const {
  return has(key) ? whole(key) : otherwise;
}

double SourceConfig::real_or(const std::string& key, double otherwise) const {
  const Scalar* value = find(key);
  if (value == nullptr) return otherwise;
  if (const auto* whole = std::get_if<int64_t>(value)) return static_cast<double>(*whole);
  check<InputError>(std::holds_alternative<double>(*value), "{}: {} is no number", source_, key);
  return std::get<double>(*value);
}

bool SourceConfig::flag_or(const std::string& key, bool otherwise) const {
  const Scalar* value = find(key);
  if (value == nullptr) return otherwise;
  check<InputError>(std::holds_alternative<bool>(*value), "{}: {} is neither true nor false", source_, key);
  return std::get<bool>(*value);
}

std::string SourceConfig::text_or(const std::string& key, const std::string& otherwise) const {
  const Scalar* value = find(key);
  if (value == nullptr) return otherwise;
  check<InputError>(std::holds_alternative<std::string>(*value), "{}: {} is no text", source_, key);
  return std::get<std::string>(*value);
}

void SourceConfig::require(const std::string& key, const Scalar& only) const {
  const Scalar* value = find(key);
  check<InputError>(value == nullptr || *value == only, "{}: {} = {} cannot be expressed here; only {} can",
                    source_, key, value == nullptr ? "" : scalar_text(*value), scalar_text(only));
}

SourceConfig SourceConfig::part(const std::string& prefix) const {
  std::map<std::string, Scalar> values;
  for (const auto& [key, value] : values_) {
    if (key.starts_with(prefix + ".")) values[key.substr(prefix.size() + 1)] = value;
  }
  return {std::move(values), source_};
}

}  // namespace performer::convert
