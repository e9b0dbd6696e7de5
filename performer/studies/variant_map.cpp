// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/variant_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "performer/studies/svg.h"

namespace performer::studies {
namespace {

constexpr double kCell = 9, kMapLeft = 34, kMapTop = 64, kBandGap = 30, kMapRight = 20;

struct Colour {
  double red, green, blue;
};
// ColorBrewer's RdBu, turned round, which those who confuse red and green can read.
constexpr Colour kLow = {33, 102, 172}, kHigh = {178, 24, 43}, kZero = {247, 247, 247};

// value in [-1, 1].
std::string colour_of(double value) {
  const Colour& end = value < 0 ? kLow : kHigh;
  const double share = std::min(1.0, std::abs(value));
  const auto mix = [&](double from, double to) {
    return static_cast<int>(std::lround(from + share * (to - from)));
  };
  return fmt::format("#{:02x}{:02x}{:02x}", mix(kZero.red, end.red), mix(kZero.green, end.green),
                     mix(kZero.blue, end.blue));
}

// The size that 98 % of the values do not exceed; 1 where there is none.
double scale_of(const VariantMap& map) {
  std::vector<double> sizes;
  for (const std::vector<double>& row : map.values) {
    for (const double value : row) {
      if (std::isfinite(value)) sizes.push_back(std::abs(value));
    }
  }
  if (sizes.empty()) return 1;
  const auto place = sizes.begin() + static_cast<std::ptrdiff_t>((sizes.size() - 1) * 98 / 100);
  std::nth_element(sizes.begin(), place, sizes.end());
  return *place > 0 ? *place : 1;
}

std::string draw_legend(const VariantMap& map, double scale) {
  std::string drawn = svg_text(kMapLeft, 44, map.legend, "font-size=\"12\"");
  const double left = kMapLeft + 400;
  for (int step = 0; step < 21; ++step) {
    drawn += fmt::format("<rect x=\"{:.1f}\" y=\"34\" width=\"{:.1f}\" height=\"10\" fill=\"{}\"/>\n",
                         left + 9 * step, 9.2, colour_of((step - 10) / 10.0));
  }
  const char* style = "font-size=\"10\" text-anchor=\"middle\"";
  return drawn + svg_text(left, 56, fmt::format("{:.2g}", -scale), style) +
         svg_text(left + 94.5, 56, "0", style) +
         svg_text(left + 189, 56, fmt::format("{:.2g}", scale), style);
}

std::string draw_cell(const VariantMap& map, size_t row, int64_t place, double x, double y, double scale) {
  const char symbol = map.rows[row], own = map.sequence[static_cast<size_t>(place)];
  if (symbol == own) {
    return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"1.6\" fill=\"#555\"/>\n", x + kCell / 2,
                       y + kCell / 2);
  }
  const double value = map.values[row][static_cast<size_t>(place)];
  const std::string fill = std::isfinite(value) ? colour_of(value / scale) : "#d9d9d9";
  const std::string shown = std::isfinite(value) ? fmt::format("{:.3f}", value) : "none";
  return fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"{}\" fill=\"{}\"><title>{}</title></rect>\n", x,
      y, kCell, kCell, fill,
      escape(fmt::format("{}{}{} {}", own, place + map.first_position, symbol, shown)));
}

std::string draw_band(const VariantMap& map, int64_t first, int64_t end, double top, double scale) {
  std::string drawn;
  for (size_t row = 0; row < map.rows.size(); ++row) {
    const double y = top + kCell * static_cast<double>(row);
    drawn += svg_text(kMapLeft - 6, y + kCell - 1, std::string(1, map.rows[row]),
                      "font-size=\"8\" text-anchor=\"end\"");
    for (int64_t place = first; place < end; ++place) {
      drawn += draw_cell(map, row, place, kMapLeft + kCell * static_cast<double>(place - first), y, scale);
    }
  }
  const double below = top + kCell * static_cast<double>(map.rows.size()) + 10;
  for (int64_t place = first; place < end; ++place) {
    const int64_t number = place + map.first_position;
    if (place != first && number % 10 != 0) continue;
    drawn += svg_text(kMapLeft + kCell * (static_cast<double>(place - first) + 0.5), below,
                      std::to_string(number), "font-size=\"9\" text-anchor=\"middle\"");
  }
  return drawn;
}

}  // namespace

std::string to_svg(const VariantMap& map) {
  const auto length = static_cast<int64_t>(map.sequence.size());
  const int64_t bands = std::max<int64_t>(1, (length + kPositionsInBand - 1) / kPositionsInBand);
  const double band_height = kCell * static_cast<double>(map.rows.size()) + kBandGap;
  const double width = kMapLeft + kCell * kPositionsInBand + kMapRight;
  const double height = kMapTop + band_height * static_cast<double>(bands);
  const double scale = scale_of(map);
  std::string picture = svg_begin(width, height, map.title, map.legend);
  picture += svg_text(kMapLeft, 24, map.title, "font-size=\"15\" font-weight=\"bold\"");
  picture += draw_legend(map, scale);
  for (int64_t band = 0; band < bands; ++band) {
    const int64_t first = band * kPositionsInBand;
    picture += draw_band(map, first, std::min(first + kPositionsInBand, length),
                         kMapTop + band_height * static_cast<double>(band), scale);
  }
  return picture + "</svg>\n";
}

}  // namespace performer::studies
