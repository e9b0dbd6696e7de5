// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "performer/base/error.h"
#include "performer/data/image/picture.h"
#include "performer/studies/svg.h"

namespace performer::studies {
namespace {

constexpr double kMapTop = 40, kMapMargin = 34, kMapCaption = 40;
constexpr int64_t kInALine = 4;

using Colour = std::array<double, 3>;
constexpr Colour kWhite = {255, 255, 255}, kGrey = {170, 170, 170};
// Two of the colours of chart.cpp, darkened at the end, so that equal steps look alike in grey print too.
constexpr Colour kBlue = {0, 84, 146}, kDarkBlue = {0, 26, 66}, kOrange = {191, 84, 0},
                 kDarkOrange = {84, 32, 0};

Colour between(const Colour& from, const Colour& to, double share) {
  Colour mixed{};
  for (size_t i = 0; i < 3; ++i) mixed[i] = from[i] + (to[i] - from[i]) * share;
  return mixed;
}

Colour colour_of(const HeatMap& map, double value) {
  if (std::isnan(value)) return kGrey;
  const bool negative = map.low < 0 && value < 0;
  const double low = map.low < 0 ? 0 : map.low, size = negative ? -value : value;
  double share = std::clamp((size - low) / (map.high - low), 0.0, 1.0);
  if (map.root) share = std::sqrt(share);
  const Colour &middle = negative ? kOrange : kBlue, &end = negative ? kDarkOrange : kDarkBlue;
  return share < 0.7 ? between(kWhite, middle, share / 0.7) : between(middle, end, (share - 0.7) / 0.3);
}

std::string png_of(const HeatMap& map) {
  std::vector<data::Token> pixels;
  pixels.reserve(map.values.size() * 3);
  for (const double value : map.values) {
    for (const double channel : colour_of(map, value)) {
      pixels.push_back(static_cast<data::Token>(std::lround(channel)));
    }
  }
  return data::encode_png({map.rows, map.columns, 3}, pixels);
}

// Where the name number `index` of `count` stands on a side: the two ends for two names, else in the middle
// of its cell.
double place_of(size_t index, size_t count, double size) {
  if (count == 2) return index == 0 ? 0 : size;
  return (static_cast<double>(index) + 0.5) / static_cast<double>(count) * size;
}

std::string draw(const HeatMap& map, double left, double top, double size) {
  const auto rows = static_cast<double>(map.rows), columns = static_cast<double>(map.columns);
  const double width = size * std::min(1.0, columns / rows), height = size * std::min(1.0, rows / columns);
  std::string svg = fmt::format(
      "<image x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" preserveAspectRatio=\"none\" "
      "style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{}\"/>\n",
      left, top, width, height, base64(png_of(map)));
  svg += fmt::format(
      "<rect class=\"frame\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"none\" "
      "stroke=\"#808080\"/>\n",
      left, top, width, height);
  const auto& across = map.column_names;
  for (size_t i = 0; i < across.size(); ++i) {
    const char* anchor = across.size() != 2 ? "middle" : i == 0 ? "start" : "end";
    svg += svg_text(left + place_of(i, across.size(), width), top + height + 11, across[i],
                    fmt::format("font-size=\"10\" text-anchor=\"{}\"", anchor));
  }
  const auto& down = map.row_names;
  for (size_t i = 0; i < down.size(); ++i) {
    const double shift = down.size() != 2 ? 3.5 : i == 0 ? 9 : 0;
    svg += svg_text(left - 4, top + place_of(i, down.size(), height) + shift, down[i],
                    "font-size=\"10\" text-anchor=\"end\"");
  }
  svg += svg_text(left, top + height + 25, map.caption, "font-size=\"12\" font-weight=\"bold\"");
  if (!map.note.empty()) svg += svg_text(left, top + height + 38, map.note, "font-size=\"10\"");
  return svg;
}

}  // namespace

std::string to_svg(const HeatMapPage& page) {
  const auto count = static_cast<int64_t>(page.maps.size());
  const int64_t lines = (count + kInALine - 1) / kInALine, across = std::clamp<int64_t>(count, 1, kInALine);
  double tallest = 0;
  for (const HeatMap& map : page.maps) {
    check<UsageError>(map.rows > 0 && map.columns > 0 && std::ssize(map.values) == map.rows * map.columns,
                      "a heat map of {} x {} cells cannot have {} values", map.rows, map.columns,
                      map.values.size());
    const double ratio = static_cast<double>(map.rows) / static_cast<double>(map.columns);
    tallest = std::max(tallest, page.size * std::min(1.0, ratio));
  }
  const double step_x = page.size + kMapMargin, step_y = tallest + kMapCaption + 16;
  std::string svg = svg_begin(std::max(420.0, kMapMargin + static_cast<double>(across) * step_x),
                              kMapTop + static_cast<double>(lines) * step_y, page.title, page.description);
  svg += svg_text(kMapMargin, 24, page.title, "font-size=\"15\" font-weight=\"bold\"");
  for (int64_t i = 0; i < count; ++i) {
    svg += draw(page.maps[static_cast<size_t>(i)], kMapMargin + static_cast<double>(i % kInALine) * step_x,
                kMapTop + static_cast<double>(i / kInALine) * step_y, page.size);
  }
  return svg + "</svg>\n";
}

BlockMean::BlockMean(int64_t rows, int64_t columns, int64_t most)
    : rows_{rows, std::min(rows, most)},
      columns_{columns, std::min(columns, most)},
      sums_(static_cast<size_t>(rows_.cells * columns_.cells)) {}

void BlockMean::add(int64_t row, const double* values, int64_t stride) {
  double* sums = sums_.data() + rows_.cell(row) * columns_.cells;
  for (int64_t column = 0; column < columns_.size; ++column) {
    sums[columns_.cell(column)] += values[column * stride];
  }
}

std::vector<double> BlockMean::means() const {
  std::vector<double> means = sums_;
  for (int64_t row = 0; row < rows_.cells; ++row) {
    const int64_t high = rows_.first(row + 1) - rows_.first(row);
    for (int64_t column = 0; column < columns_.cells; ++column) {
      const int64_t wide = columns_.first(column + 1) - columns_.first(column);
      means[static_cast<size_t>(row * columns_.cells + column)] /= static_cast<double>(high * wide);
    }
  }
  return means;
}

}  // namespace performer::studies
