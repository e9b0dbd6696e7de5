// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "performer/studies/svg.h"

namespace performer::studies {
namespace {

using svg::begin, svg::escape, svg::line, svg::text_at;

constexpr double kWidth = 840, kHeight = 520;
constexpr double kLeft = 70, kRight = 230, kTop = 46, kBottom = 56;  // the legend stands on the right

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

std::string draw_series(const ChartSeries& series, size_t index, const Axis& x, const Axis& y) {
  const char* colour = kColours[index % std::size(kColours)];
  const bool hollow = index >= std::size(kColours);
  std::string path, marks;
  for (const ChartPoint& point : series.points) {
    if (!x.shows(point.x) || !y.shows(point.y)) continue;
    const double px = x.place(point.x), py = y.place(point.y);
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : " L", px, py);
    const double low = point.y - point.error, high = point.y + point.error;
    if (point.error > 0 && y.shows(low)) {
      marks += line(px, y.place(low), px, y.place(high), fmt::format("stroke=\"{}\"", colour).c_str());
    }
    marks += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\" stroke=\"{}\"/>\n", px, py,
                         hollow ? "white" : colour, colour);
  }
  const double legend_x = kWidth - kRight + 14, legend_y = kTop + 8 + 18.0 * static_cast<double>(index);
  std::string drawn;
  if (!path.empty() && series.line) {
    drawn += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"{}/>\n", path,
                         colour, series.dashed ? " stroke-dasharray=\"6 4\"" : "");
  }
  drawn += marks;
  drawn += fmt::format(
      "<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{2:.1f}\" y2=\"{1:.1f}\" stroke=\"{3}\" "
      "stroke-width=\"2\"{4}/>\n",
      legend_x, legend_y, legend_x + 22, colour, series.dashed ? " stroke-dasharray=\"6 4\"" : "");
  drawn += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\" stroke=\"{}\"/>\n",
                       legend_x + 11, legend_y, hollow ? "white" : colour, colour);
  return drawn + text_at(legend_x + 28, legend_y + 4, series.name, "font-size=\"12\"");
}

}  // namespace

std::string to_svg(const Chart& chart) {
  Axis x(chart.log_x, kLeft, kWidth - kRight), y(chart.log_y, kHeight - kBottom, kTop);
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& point : series.points) {
      if (!x.shows(point.x) || !y.shows(point.y)) continue;
      x.cover(point.x);
      y.cover(point.y);
    }
  }
  x.settle();
  y.settle();
  std::string picture = begin(kWidth, kHeight, chart.title);
  picture += text_at(kLeft, 26, chart.title, "font-size=\"15\" font-weight=\"bold\"");
  for (const double tick : x.ticks()) {
    picture += line(x.place(tick), kTop, x.place(tick), kHeight - kBottom, "stroke=\"#e0e0e0\"");
    picture += text_at(x.place(tick), kHeight - kBottom + 18, fmt::format("{:g}", tick),
                       "font-size=\"11\" text-anchor=\"middle\"");
  }
  for (const double tick : y.ticks()) {
    picture += line(kLeft, y.place(tick), kWidth - kRight, y.place(tick), "stroke=\"#e0e0e0\"");
    picture += text_at(kLeft - 8, y.place(tick) + 4, fmt::format("{:g}", tick),
                       "font-size=\"11\" text-anchor=\"end\"");
  }
  picture +=
      fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"black\"/>\n",
                  kLeft, kTop, kWidth - kLeft - kRight, kHeight - kTop - kBottom);
  picture += text_at((kLeft + kWidth - kRight) / 2, kHeight - 14, chart.x_label,
                     "font-size=\"13\" text-anchor=\"middle\"");
  picture += fmt::format(
      "<text transform=\"translate(18 {:.1f}) rotate(-90)\" font-size=\"13\" "
      "text-anchor=\"middle\">{}</text>\n",
      (kTop + kHeight - kBottom) / 2, escape(chart.y_label));
  for (size_t i = 0; i < chart.series.size(); ++i) picture += draw_series(chart.series[i], i, x, y);
  return picture + "</svg>\n";
}

}  // namespace performer::studies
