// SPDX-License-Identifier: Apache-2.0
// Effects of substitutions, positions by symbols, as a heat map in plain SVG.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace performer::studies {

struct VariantMap {
  std::string title;
  std::string legend;                       // what the values are
  std::vector<char> rows;                   // a symbol each, from the top
  std::string sequence;                     // the symbol at each position: its own cell is marked
  int64_t first_position = 1;               // number of the first one
  std::vector<std::vector<double>> values;  // [rows][positions]; NaN: not there
};

// Positions run from left to right, in bands of kPositionsInBand below each other, and are numbered in tens.
// Colours go from blue (below 0) over white (0) to red (above), as far as 98 % of the values reach; each cell
// names itself and its value when pointed at. Text is escaped.
inline constexpr int64_t kPositionsInBand = 100;
std::string to_svg(const VariantMap& map);

}  // namespace performer::studies
