// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "performer/base/printable.h"
#include "performer/studies/svg.h"

namespace performer::studies {
namespace {

constexpr double kLeft = 70, kTop = 46, kBottom = 56;

// The plot's right and lower edge; the legend stands on the right.
double right_of(const Chart& chart) {
  return chart.width - (chart.width < 700 ? 180 : 230);
}
double bottom_of(const Chart& chart) {
  return chart.height - kBottom;
}

constexpr size_t kLongestName = 30;  // characters of a legend's line

// Colours that differ for most kinds of colour blindness (Okabe and Ito 2008), reused with other marks.
constexpr const char* kColours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                    "#56B4E9", "#E69F00", "#000000"};

// One axis: values to places, and where the ticks stand.
class Axis {
 public:
  Axis(bool logarithmic, double from, double to) : logarithmic_(logarithmic), from_(from), to_(to) {}

  bool shows(double value) const { return std::isfinite(value) && (!logarithmic_ || value > 0); }
  void cover(double value) {
    if (!shows(value)) return;
    low_ = std::min(low_, scaled(value));
    high_ = std::max(high_, scaled(value));
  }
  void settle() {
    if (low_ > high_) low_ = 0, high_ = 1;  // nothing to show
    if (low_ == high_) low_ -= 0.5, high_ += 0.5;
    const double margin = 0.04 * (high_ - low_);
    low_ -= margin;
    high_ += margin;
  }
  double place(double value) const { return from_ + (scaled(value) - low_) / (high_ - low_) * (to_ - from_); }

  std::vector<double> ticks() const {
    std::vector<double> values;
    if (logarithmic_) {
      const int step = std::max(1, static_cast<int>(std::ceil((high_ - low_) / 8)));
      for (int power = static_cast<int>(std::ceil(low_)); power <= high_; power += step)
        values.push_back(std::pow(10.0, power));
      if (values.size() >= 2) return values;
      values.clear();
      for (int power = static_cast<int>(std::floor(low_)); power <= high_; ++power) {
        for (const double digit : {1.0, 2.0, 5.0}) {
          const double value = digit * std::pow(10.0, power);
          if (std::log10(value) >= low_ && std::log10(value) <= high_) values.push_back(value);
        }
      }
      return values;
    }
    const double rough = (high_ - low_) / 6, power = std::pow(10.0, std::floor(std::log10(rough)));
    const double step = power * (rough / power < 1.5   ? 1
                                 : rough / power < 3.5 ? 2
                                 : rough / power < 7.5 ? 5
                                                       : 10);
    for (double value = std::ceil(low_ / step) * step; value <= high_; value += step) {
      values.push_back(std::abs(value) < step / 1e6 ? 0 : value);
    }
    return values;
  }

 private:
  double scaled(double value) const { return logarithmic_ ? std::log10(value) : value; }
  bool logarithmic_;
  double from_, to_;
  double low_ = std::numeric_limits<double>::infinity(), high_ = -std::numeric_limits<double>::infinity();
};

std::string draw_series(const Chart& chart, size_t index, const Axis& x, const Axis& y) {
  const ChartSeries& series = chart.series[index];
  const size_t number = series.colour < 0 ? index : static_cast<size_t>(series.colour);
  const size_t row = number % std::size(kColours);
  const char* colour = kColours[row];
  const bool hollow = number >= std::size(kColours);
  // Colours are attributes, and classes beside them for pages with colours of their own.
  const std::string stroke = fmt::format("class=\"stroke-{}\" stroke=\"{}\"", row, colour);
  const std::string dashes = series.dashed ? " stroke-dasharray=\"6 4\"" : "";
  const auto mark = [&](double at_x, double at_y) {
    return fmt::format(
        "<circle class=\"mark-{} {}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\" stroke=\"{}\"/>\n", row,
        hollow ? "hollow" : "filled", at_x, at_y, hollow ? "white" : colour, colour);
  };
  std::string path, marks;
  for (const ChartPoint& point : series.points) {
    if (!x.shows(point.x) || !y.shows(point.y)) continue;
    const double px = x.place(point.x), py = y.place(point.y);
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : " L", px, py);
    const double low = point.y - point.error, high = point.y + point.error;
    if (point.error > 0 && y.shows(low)) marks += svg_line(px, y.place(low), px, y.place(high), stroke);
    if (series.marks) marks += mark(px, py);
  }
  const double legend_x = right_of(chart) + 14, legend_y = kTop + 8 + 18.0 * static_cast<double>(index);
  std::string drawn;
  if (!path.empty() && series.line) {
    drawn += fmt::format("<path d=\"{}\" fill=\"none\" stroke-width=\"1.6\" {}{}/>\n", path, stroke, dashes);
  }
  drawn += marks;
  if (series.name.empty()) return drawn;
  if (series.line) {
    drawn += svg_line(legend_x, legend_y, legend_x + 22, legend_y,
                      fmt::format("stroke-width=\"2\" {}{}", stroke, dashes));
  }
  if (series.marks) drawn += mark(legend_x + 11, legend_y);
  return drawn + svg_text(legend_x + 28, legend_y + 4, shown(series.name, kLongestName), "font-size=\"12\"");
}

std::string draw_axes(const Chart& chart, const Axis& x, const Axis& y) {
  const std::string grid = "class=\"grid\" stroke=\"#e0e0e0\"";
  std::string svg;
  for (const double tick : x.ticks()) {
    svg += svg_line(x.place(tick), kTop, x.place(tick), bottom_of(chart), grid);
    if (!chart.x_names.empty()) continue;
    svg += svg_text(x.place(tick), bottom_of(chart) + 18, fmt::format("{:g}", tick),
                    "font-size=\"11\" text-anchor=\"middle\"");
  }
  for (size_t i = 0; i < chart.x_names.size(); ++i) {
    svg += svg_text(x.place(static_cast<double>(i)), bottom_of(chart) + 18, chart.x_names[i],
                    "font-size=\"11\" text-anchor=\"middle\"");
  }
  for (const double tick : y.ticks()) {
    svg += svg_line(kLeft, y.place(tick), right_of(chart), y.place(tick), grid);
    svg += svg_text(kLeft - 8, y.place(tick) + 4, fmt::format("{:g}", tick),
                    "font-size=\"11\" text-anchor=\"end\"");
  }
  svg += fmt::format(
      "<rect class=\"frame\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"black\"/>\n",
      kLeft, kTop, right_of(chart) - kLeft, bottom_of(chart) - kTop);
  svg += svg_text((kLeft + right_of(chart)) / 2, chart.height - 14, chart.x_label,
                  "font-size=\"13\" text-anchor=\"middle\"");
  return svg + fmt::format(
                   "<text class=\"ink\" transform=\"translate(18 {:.1f}) rotate(-90)\" font-size=\"13\" "
                   "text-anchor=\"middle\">{}</text>\n",
                   (kTop + bottom_of(chart)) / 2, escape(chart.y_label));
}

}  // namespace

std::string to_svg(const Chart& chart) {
  Axis x(chart.log_x, kLeft, right_of(chart)), y(chart.log_y, bottom_of(chart), kTop);
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& point : series.points) {
      if (!x.shows(point.x) || !y.shows(point.y)) continue;
      x.cover(point.x);
      y.cover(point.y);
    }
  }
  for (size_t i = 0; i < chart.x_names.size(); ++i) x.cover(static_cast<double>(i));
  x.settle();
  y.settle();
  std::string svg = svg_begin(chart.width, chart.height, chart.title, chart.description);
  svg += svg_text(kLeft, 26, chart.title, "font-size=\"15\" font-weight=\"bold\"");
  svg += draw_axes(chart, x, y);
  for (size_t i = 0; i < chart.series.size(); ++i) svg += draw_series(chart, i, x, y);
  return svg + "</svg>\n";
}

}  // namespace performer::studies
