// SPDX-License-Identifier: Apache-2.0
// Matrices as pictures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace performer::studies {

struct HeatMap {
  std::string caption;  // below the picture, one line
  std::string note;     // below that, smaller; may be empty
  int64_t rows = 0, columns = 0;
  std::vector<double> values;  // row by row
  // Values of white and of the darkest colour. With low < 0 they are -high and high, 0 is white, and negative
  // values have the other colour. Values beyond have the colour of the end, NaN is grey.
  double low = 0, high = 1;
  bool root = false;  // colour by the square root, which shows small values
  // What the first and last row and column are called, or all of them (letters).
  std::vector<std::string> row_names, column_names;
};

struct HeatMapPage {
  std::string title, description;
  std::vector<HeatMap> maps;  // four in a line
  double size = 190;          // of a map, its longer side
};

// Plain SVG in which each matrix is a PNG of one pixel a cell. Throws UsageError for a map without cells or
// with another number of values.
std::string to_svg(const HeatMapPage& page);

// Sums of rows and columns that fall into the same cell of a smaller matrix, made of blocks of rows in any
// order; at most `most` cells a side.
class BlockMean {
 public:
  BlockMean(int64_t rows, int64_t columns, int64_t most);

  int64_t rows() const { return rows_.cells; }
  int64_t columns() const { return columns_.cells; }
  // The values of a row, `stride` apart.
  void add(int64_t row, const double* values, int64_t stride = 1);
  std::vector<double> means() const;  // of the cells, row by row

 private:
  struct Side {
    int64_t size, cells;
    int64_t cell(int64_t at) const { return at * cells / size; }
    int64_t first(int64_t cell) const { return (cell * size + cells - 1) / cells; }  // at in the cell
  };
  Side rows_, columns_;
  std::vector<double> sums_;
};

}  // namespace performer::studies
