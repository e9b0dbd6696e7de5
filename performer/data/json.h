// SPDX-License-Identifier: Apache-2.0
// Reading of JSON files: every fault is an InputError that names the file, the place or the key, what was
// expected and what was found, in words of this program and not of the JSON library.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "performer/base/error.h"
#include "performer/base/printable.h"

namespace performer::data {

constexpr int kDeepestJson = 32;  // what walks through a value calls itself for each level of it

// The object that `text` holds; `source` names the file in messages. Throws InputError with line and column
// for what is not JSON, and for what is not an object or nested more than kDeepestJson levels. Json is
// nlohmann::json, or ordered_json, which keeps the order of the keys.
template <class Json = nlohmann::json>
Json parse_json_object(std::string_view text, const std::string& source);

// What is wrong, as the library says it, on one line without its tag and without what it read at length.
std::string json_fault(const nlohmann::json::exception& error);

// Runs `read`, which takes values out of JSON; what the library refuses becomes an InputError
// "SOURCE: EXPECTATION: FAULT".
template <class Read>
auto read_json(const std::string& source, std::string_view expectation, Read&& read) -> decltype(read()) {
  try {
    return read();
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: {}: {}", source, expectation, json_fault(error)));
  }
}

// Whether `value` is a whole number of 64 bits with sign.
template <class Json>
bool is_int64(const Json& value) {
  if (!value.is_number_integer()) return false;
  return !value.is_number_unsigned() ||
         value.template get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
}

// How values of type T stand in JSON: their name in messages, and whether `value` is one.
template <class T>
struct JsonForm;

template <>
struct JsonForm<std::string> {
  static std::string name(bool many = false) { return many ? "texts" : "text"; }
  static bool holds(const auto& value) { return value.is_string(); }
};

template <>
struct JsonForm<bool> {
  static std::string name(bool many = false) { return many ? "truth values" : "true or false"; }
  static bool holds(const auto& value) { return value.is_boolean(); }
};

template <>
struct JsonForm<int64_t> {
  static std::string name(bool many = false) { return many ? "whole numbers" : "a whole number"; }
  static bool holds(const auto& value) { return is_int64(value); }
};

template <>
struct JsonForm<double> {
  static std::string name(bool many = false) { return many ? "numbers" : "a number"; }
  static bool holds(const auto& value) { return value.is_number(); }
};

template <class T>
struct JsonForm<std::vector<T>> {
  static std::string name() { return "a list of " + JsonForm<T>::name(true); }
  static bool holds(const auto& value) {
    return value.is_array() &&
           std::all_of(value.begin(), value.end(), [](const auto& item) { return JsonForm<T>::holds(item); });
  }
};

// `value` as a T; `name` is what the message calls it. Throws InputError where it is something else.
template <class T, class Json>
T json_value(const Json& value, std::string_view name, const std::string& source) {
  check<InputError>(JsonForm<T>::holds(value), "{}: {} must be {}, not {}", source, name, JsonForm<T>::name(),
                    shown(value.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return value.template get<T>();
}

// The member `key` of the object `object` as a T. Throws InputError where it is missing or something else.
template <class T, class Json>
T json_field(const Json& object, const std::string& key, const std::string& source) {
  const auto found = object.find(key);
  check<InputError>(found != object.end(), "{}: '{}' is missing: expected {}", source, key,
                    JsonForm<T>::name());
  return json_value<T>(*found, "'" + key + "'", source);
}

}  // namespace performer::data
