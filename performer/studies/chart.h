// SPDX-License-Identifier: Apache-2.0
// Line charts as plain SVG: enough for the studies, without a plotting library.
#pragma once

#include <string>
#include <vector>

namespace performer::studies {

struct ChartPoint {
  double x = 0, y = 0;
  double error = 0;  // standard error of y, drawn as a bar; 0: none
};

struct ChartSeries {
  std::string name;
  std::vector<ChartPoint> points;
  bool dashed = false;
  bool line = true;  // connect the points
};

struct Chart {
  std::string title, x_label, y_label;
  bool log_x = false, log_y = false;
  std::vector<ChartSeries> series;
};

// A picture of 840 x 520. Points without a place on the axes (not finite, or not positive on a logarithmic
// one) are left out. Text is escaped.
std::string to_svg(const Chart& chart);

}  // namespace performer::studies
