// SPDX-License-Identifier: Apache-2.0
// Results of a study as rows and columns.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>
#include <vector>

namespace performer::studies {

using Cell = std::variant<std::string, int64_t, double>;

struct Table {
  std::string name;   // of the files it is written to
  std::string title;  // one line: what was measured
  std::vector<std::string> columns;
  std::vector<std::vector<Cell>> rows;

  // Throws UsageError unless the row has a cell for every column.
  void add(std::vector<Cell> row);
};

// Numbers with six significant digits; a NaN is an empty cell: not measured.
std::string to_tsv(const Table& table);
nlohmann::ordered_json to_json(const Table& table);  // {"title", "rows": [{column: value}]}; NaN is null
std::string to_text(const Table& table);             // aligned for reading

// The same, shorter: for each combination of values in the columns `group` one table with the values of
// column `row` down, those of `column` across, and `value` within. Throws UsageError for a column that the
// table lacks.
std::string to_pivot_text(const Table& table, const std::vector<std::string>& group, const std::string& row,
                          const std::string& column, const std::string& value);

}  // namespace performer::studies
