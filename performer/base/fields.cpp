// SPDX-License-Identifier: Apache-2.0
#include "performer/base/fields.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "performer/base/error.h"
#include "performer/base/numbers.h"
#include "performer/base/printable.h"

namespace performer {

std::string to_text(const FieldValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, bool>) return v ? "true" : "false";
        if constexpr (std::is_same_v<T, std::string>) return v;
        return fmt::format("{}", v);
      },
      value);
}

const char* type_name(const FieldValue& value) {
  constexpr const char* names[] = {"true or false", "a whole number", "a number", "text"};
  return names[value.index()];
}

FieldValue parse_field(const FieldInfo& field, const std::string& text) {
  const auto fail = [&](const std::string& expected) -> UsageError {
    return UsageError(fmt::format("{} must be {}, but is '{}'", field.key(), expected, shown(text)));
  };
  if (std::holds_alternative<bool>(field.value)) {
    if (text == "true") return true;
    if (text == "false") return false;
    throw fail("true or false");
  }
  if (std::holds_alternative<int64_t>(field.value)) return parse_whole(field.key(), text);
  if (std::holds_alternative<double>(field.value)) return parse_real(field.key(), text);
  if (!field.choices.empty() &&
      std::find(field.choices.begin(), field.choices.end(), text) == field.choices.end()) {
    throw fail(fmt::format("one of {}", fmt::join(field.choices, ", ")));
  }
  return text;
}

void check_choices(const std::vector<FieldInfo>& fields) {
  for (const FieldInfo& field : fields) {
    if (!field.choices.empty()) parse_field(field, to_text(field.value));
  }
}

namespace {

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const auto& candidate : known) {
    // The distance is at least the difference in size, which is all that a word of any size costs here.
    const size_t sizes = std::max(word.size(), candidate.size()) - std::min(word.size(), candidate.size());
    if (sizes >= best_distance) continue;
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

void throw_unknown_key(const std::string& key, const std::vector<std::string>& known) {
  const std::string near = nearest(key, known);
  throw UsageError(
      near.empty()
          ? fmt::format("unknown configuration key '{}'; known keys: {}", key, fmt::join(known, ", "))
          : fmt::format("unknown configuration key '{}': did you mean '{}'?", key, near));
}

}  // namespace performer
