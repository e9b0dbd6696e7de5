// SPDX-License-Identifier: Apache-2.0
#include "performer/data/json.h"

namespace performer::data {
namespace {

constexpr size_t kMostOfAFault = 120;  // characters: a fault may quote all of a long text

// Line and column, both from 1, of the byte `at` of `text`.
std::string place(std::string_view text, size_t at) {
  const std::string_view before = text.substr(0, std::min(at, text.size()));
  const size_t end_of_line = before.rfind('\n');
  const size_t column =
      end_of_line == std::string_view::npos ? before.size() : before.size() - end_of_line - 1;
  return fmt::format("line {}, column {}", std::ranges::count(before, '\n') + 1, column + 1);
}

}  // namespace

std::string json_fault(const nlohmann::json::exception& error) {
  // "[json.exception.NAME.NUMBER] ", then of a text that is not JSON "parse error at line ...: syntax error
  // while ... - ", which the place says already.
  std::string_view text = error.what();
  if (const size_t tag = text.find("] "); text.starts_with('[') && tag != std::string_view::npos) {
    text.remove_prefix(tag + 2);
  }
  if (const size_t detail = text.find(" - ");
      text.starts_with("parse error") && detail != std::string_view::npos) {
    text.remove_prefix(detail + 3);
  }
  // "cannot use FUNCTION with TYPE"
  if (text.starts_with("cannot use ")) {
    return fmt::format("expected an object or a list, found {}", text.substr(text.rfind(' ') + 1));
  }
  return shown(text, kMostOfAFault);
}

template <class Json>
Json parse_json_object(std::string_view text, const std::string& source) {
  const auto check_depth = [&](int depth, typename Json::parse_event_t, const Json&) {
    check<InputError>(depth <= kDeepestJson, "{} is damaged: its values are nested more than {} deep", source,
                      kDeepestJson);
    return true;
  };
  Json value;
  try {
    value = Json::parse(text, check_depth);
  } catch (const nlohmann::json::parse_error& error) {
    throw InputError(fmt::format("{}, {}: not JSON ({}): write or copy the file again", source,
                                 place(text, error.byte > 0 ? error.byte - 1 : 0), json_fault(error)));
  } catch (const nlohmann::json::exception& error) {  // a number outside the range of double
    throw InputError(fmt::format("{} is damaged: {}", source, json_fault(error)));
  }
  check<InputError>(value.is_object(), "{} is damaged: expected a JSON object, found one value of type {}",
                    source, value.type_name());
  return value;
}

template nlohmann::json parse_json_object(std::string_view, const std::string&);
template nlohmann::ordered_json parse_json_object(std::string_view, const std::string&);

}  // namespace performer::data
