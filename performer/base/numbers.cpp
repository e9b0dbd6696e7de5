// SPDX-License-Identifier: Apache-2.0
#include "performer/base/numbers.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "performer/base/error.h"
#include "performer/base/printable.h"

namespace performer {
namespace {

bool is_digit(char letter) {
  return letter >= '0' && letter <= '9';
}

// Moves the digits that `text` begins with, without single underscores between them, to `digits`.
void take_digits(std::string_view& text, std::string& digits) {
  while (!text.empty()) {
    const bool between = !digits.empty() && text.size() > 1 && text[0] == '_' && is_digit(text[1]);
    if (between) text.remove_prefix(1);
    if (!is_digit(text[0])) return;
    digits += text[0];
    text.remove_prefix(1);
  }
}

// A number as it was written: digits * 10^exponent, without zeros at either end of the digits. 0 has no
// digits.
struct Decimal {
  bool negative = false;
  std::string digits;
  int64_t exponent = 0;

  // The place of the first digit: the value is at least 10^(size - 1) and below 10^size.
  int64_t size() const { return std::ssize(digits) + exponent; }
};

// Nothing where the text is no number.
std::optional<Decimal> read_decimal(std::string_view text) {
  Decimal decimal;
  if (text.starts_with('-')) {
    decimal.negative = true;
    text.remove_prefix(1);
  }
  std::string fraction;
  take_digits(text, decimal.digits);
  if (text.starts_with('.')) {
    text.remove_prefix(1);
    take_digits(text, fraction);
  }
  if (decimal.digits.empty() && fraction.empty()) return std::nullopt;
  decimal.digits += fraction;
  decimal.exponent = -std::ssize(fraction);
  if (text.starts_with('e') || text.starts_with('E')) {
    text.remove_prefix(1);
    const bool below = text.starts_with('-');
    if (below || text.starts_with('+')) text.remove_prefix(1);
    std::string digits;
    take_digits(text, digits);
    if (digits.empty()) return std::nullopt;
    int64_t exponent = 0;
    constexpr int64_t kFarAway = int64_t{1} << 40;  // as good as any larger one: no text is that long
    for (const char digit : digits) exponent = std::min(kFarAway, 10 * exponent + (digit - '0'));
    decimal.exponent += below ? -exponent : exponent;
  }
  if (!text.empty()) return std::nullopt;
  const size_t last = decimal.digits.find_last_not_of('0');
  if (last == std::string::npos) return Decimal{decimal.negative, "", 0};
  decimal.exponent += std::ssize(decimal.digits) - static_cast<int64_t>(last + 1);
  decimal.digits.resize(last + 1);
  decimal.digits.erase(0, decimal.digits.find_first_not_of('0'));
  return decimal;
}

// The size of a whole number, without its sign; nothing when it is 2^64 or more.
std::optional<uint64_t> magnitude(const Decimal& decimal) {
  if (decimal.size() > 20) return std::nullopt;
  uint64_t value = 0;
  for (int64_t i = 0; i < decimal.size(); ++i) {
    const uint64_t digit =
        i < std::ssize(decimal.digits) ? static_cast<uint64_t>(decimal.digits[i] - '0') : 0;
    if (value > (std::numeric_limits<uint64_t>::max() - digit) / 10) return std::nullopt;
    value = 10 * value + digit;
  }
  return value;
}

// The bounds of a range in words; no word of one that is that of the type.
template <class Value>
std::string range_words(Value least, Value most) {
  const bool below = least > std::numeric_limits<Value>::lowest(),
             above = most < std::numeric_limits<Value>::max();
  if (below && !above) return fmt::format(" of at least {}", least);
  if (above && !below) return fmt::format(" of at most {}", most);
  return fmt::format(" between {} and {}", least, most);
}

template <class Value>
[[noreturn]] void throw_number(const std::string& name, std::string_view text, const char* kind,
                               bool is_number, Value least, Value most) {
  const bool any = least == std::numeric_limits<Value>::lowest() && most == std::numeric_limits<Value>::max();
  throw UsageError(fmt::format("{} must be {}{}, but is '{}'", name, kind,
                               any && !is_number ? "" : range_words(least, most), shown(text)));
}

constexpr const char *kWhole = "a whole number", *kReal = "a number";

// A whole number, or nothing where the text is none.
std::optional<Decimal> read_whole(std::string_view text) {
  const std::optional<Decimal> decimal = read_decimal(text);
  return decimal && decimal->exponent >= 0 ? decimal : std::nullopt;
}

}  // namespace

int64_t parse_whole(const std::string& name, std::string_view text, const WholeRange& range) {
  const std::optional<Decimal> decimal = read_whole(text);
  const std::optional<uint64_t> size = decimal ? magnitude(*decimal) : std::nullopt;
  constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
  if (size && *size <= kMost + decimal->negative) {
    // In unsigned numbers, where the least of all has a negative too.
    const auto value = static_cast<int64_t>(decimal->negative ? uint64_t{0} - *size : *size);
    if (value >= range.least && value <= range.most) return value;
  }
  throw_number(name, text, kWhole, decimal.has_value(), range.least, range.most);
}

uint64_t parse_unsigned(const std::string& name, std::string_view text, uint64_t most) {
  const std::optional<Decimal> decimal = read_whole(text);
  const std::optional<uint64_t> size = decimal ? magnitude(*decimal) : std::nullopt;
  if (size && *size <= most && !(decimal->negative && *size > 0)) return *size;
  throw_number(name, text, kWhole, decimal.has_value(), uint64_t{0}, most);
}

double parse_real(const std::string& name, std::string_view text, const RealRange& range) {
  const std::optional<Decimal> decimal = read_decimal(text);
  if (decimal) {
    const std::string digits =
        fmt::format("{}{}e{}", decimal->negative ? "-" : "", decimal->digits.empty() ? "0" : decimal->digits,
                    decimal->exponent);
    double value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    const bool vanished = error != std::errc() && decimal->size() < 0;
    check<UsageError>(!vanished, "{} must be a number, but '{}' is too close to 0 to be told from it", name,
                      shown(text));
    if (error == std::errc() && value >= range.least && value <= range.most) return value;
  }
  throw_number(name, text, kReal, decimal.has_value(), range.least, range.most);
}

namespace {

constexpr double kMinute = 60, kHour = 60 * kMinute, kDay = 24 * kHour;

// The seconds of a unit; 0 where it is none.
double seconds_of(std::string_view unit) {
  constexpr std::pair<std::string_view, double> kUnits[] = {
      {"", 1},        {"s", 1},         {"sec", 1},        {"second", 1},       {"seconds", 1},
      {"m", kMinute}, {"min", kMinute}, {"mins", kMinute}, {"minute", kMinute}, {"minutes", kMinute},
      {"h", kHour},   {"hr", kHour},    {"hrs", kHour},    {"hour", kHour},     {"hours", kHour},
      {"d", kDay},    {"day", kDay},    {"days", kDay}};
  const auto* found = std::ranges::find(kUnits, unit, [](const auto& entry) { return entry.first; });
  return found == std::end(kUnits) ? 0 : found->second;
}

void skip_blanks(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
}

// "1h30m", "2d 3h", "90 s", "1e3". Nothing where the text is not of this form.
std::optional<double> read_units(std::string_view text) {
  double sum = 0, unit_before = std::numeric_limits<double>::infinity();
  while (!text.empty()) {
    size_t size = std::min(text.find_first_not_of("0123456789._"), text.size());
    if (sum == 0 && read_decimal(text)) size = text.size();  // a number alone may have an exponent
    const std::optional<Decimal> decimal = read_decimal(text.substr(0, size));
    if (!decimal || decimal->negative) return std::nullopt;
    const double value = parse_real("", text.substr(0, size));
    text.remove_prefix(size);
    skip_blanks(text);
    const std::string_view unit = text.substr(0, text.find_first_of(" 0123456789.-:"));
    text.remove_prefix(unit.size());
    skip_blanks(text);
    // A number without unit is one of seconds, alone.
    const bool alone = text.empty() && std::isinf(unit_before);
    const double seconds = unit.empty() && !alone ? 0 : seconds_of(unit);
    if (seconds == 0 || seconds >= unit_before) return std::nullopt;
    sum += value * seconds;
    unit_before = seconds;
  }
  return std::isinf(unit_before) ? std::nullopt : std::optional(sum);
}

// "30:00", "00:30:00", "1-12:00:00", "1-12". Nothing where the text is not of this form.
std::optional<double> read_clock(std::string_view text) {
  constexpr size_t kMostDigits = 9;
  std::vector<double> parts;  // days, hours, minutes, seconds: those given
  const bool has_days = text.find('-') != std::string_view::npos;
  for (bool more = true; more;) {
    const size_t size = std::min(text.find_first_not_of("0123456789"), text.size());
    const bool first = parts.empty();
    if (first ? size == 0 || size > kMostDigits : size != 2) return std::nullopt;
    parts.push_back(parse_real("", text.substr(0, size)));
    text.remove_prefix(size);
    more = !text.empty();
    if (more && text[0] != (first && has_days ? '-' : ':')) return std::nullopt;
    if (more) text.remove_prefix(1);
  }
  if (parts.size() < 2 || parts.size() > (has_days ? 4 : 3)) return std::nullopt;
  constexpr std::array<double, 4> kUnits = {kDay, kHour, kMinute, 1};
  const size_t unit_of_first = has_days ? 0 : kUnits.size() - parts.size();
  double sum = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const size_t unit = unit_of_first + i;
    if (i > 0 && parts[i] >= (unit == 1 ? 24 : 60)) return std::nullopt;
    sum += parts[i] * kUnits[unit];
  }
  return sum;
}

}  // namespace

double parse_duration(const std::string& name, std::string_view text) {
  constexpr double kLongest = 36525 * kDay;
  std::optional<double> seconds;
  try {
    seconds = text.find_first_of(":-") == std::string_view::npos ? read_units(text) : read_clock(text);
    if (!seconds) seconds = read_units(text);  // 1e-3
  } catch (const UsageError&) {
    // A number that no double holds is no duration either.
  }
  check<UsageError>(
      seconds && *seconds > 0 && *seconds <= kLongest,
      "{} must be a time span above 0 and of at most 36525 days, but is '{}': write 90 or 90s, 1.5m, "
      "2h, 1h30m, 1d, '2d 3h', 30:00 (minutes:seconds), 00:30:00 (hours:minutes:seconds) or 1-12:00:00 "
      "(days-hours:minutes:seconds)",
      name, shown(text));
  return *seconds;
}

}  // namespace performer
