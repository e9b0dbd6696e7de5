// SPDX-License-Identifier: Apache-2.0
#include "performer/data/reader.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "performer/base/error.h"

namespace performer::data {

std::string to_text(const ImageShape& shape) {
  return fmt::format("{}x{}x{}", shape.height, shape.width, shape.channels);
}

ImageShape parse_image_shape(const std::string& text) {
  constexpr int64_t kMost = int64_t{1} << 20;
  std::array<int64_t, 3> sizes{};
  const char *at = text.data(), *end = text.data() + text.size();
  bool valid = true;
  for (size_t i = 0; i < sizes.size() && valid; ++i) {
    if (i > 0) valid = at < end && *at++ == 'x';
    if (!valid) break;
    const auto [behind, error] = std::from_chars(at, end, sizes[i]);
    valid = error == std::errc() && sizes[i] >= 1 && sizes[i] <= kMost;
    at = behind;
  }
  check<UsageError>(valid && at == end && (sizes[2] == 1 || sizes[2] == 3),
                    "data.image_shape must be HEIGHTxWIDTHxCHANNELS with 1 or 3 channels, such as 64x64x3, "
                    "found \"{}\"",
                    text);
  return {sizes[0], sizes[1], sizes[2]};
}

void ReadReport::add(int64_t count, const std::string& text) {
  if (count == 0) return;
  const auto line = std::ranges::find(lines, text, &ReportLine::text);
  if (line != lines.end()) {
    line->count += count;
  } else {
    lines.push_back({count, text});
  }
}

ReadReport& ReadReport::operator+=(const ReadReport& other) {
  records += other.records;
  tokens += other.tokens;
  records_name = other.records_name;
  tokens_name = other.tokens_name;
  for (const ReportLine& line : other.lines) add(line.count, line.text);
  return *this;
}

std::string changes(const ReadReport& report) {
  std::string text;
  for (const ReportLine& line : report.lines) {
    text += fmt::format("{}{} {}", text.empty() ? "" : "; ", line.count, line.text);
  }
  return text;
}

std::string summary(const ReadReport& report) {
  const std::string changed = changes(report);
  return fmt::format("{} {}, {} {}{}{}", report.records, report.records_name, report.tokens,
                     report.tokens_name, changed.empty() ? "" : "; ", changed);
}

}  // namespace performer::data
