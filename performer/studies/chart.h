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
  bool line = true;   // connect the points
  bool marks = true;  // a dot at each point
  int colour = -1;    // that of the series of this number, from 0; -1: its own
};

struct Chart {
  std::string title, x_label, y_label;
  bool log_x = false, log_y = false;
  std::vector<ChartSeries> series;
  double width = 840, height = 520;
  std::string description = {};           // a sentence for those who cannot see the picture
  std::vector<std::string> x_names = {};  // names of the places 0, 1, 2 ... on the x axis, instead of numbers
};

// Points without a place on the axes (not finite, or not positive on a logarithmic
// one) are left out. Text is escaped. Elements carry classes (ink, paper, grid, frame, stroke-N, mark-N)
// beside their colours, so that a page around the picture may have its own.
std::string to_svg(const Chart& chart);

}  // namespace performer::studies
