// SPDX-License-Identifier: Apache-2.0
// Tables of text: comma-separated or tab-separated files as other programs write them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "performer/data/byte_source.h"

namespace performer::data {

// Rows of cells. Every row has as many cells as the header, or where there is none as the first row.
struct TextTable {
  struct Row {
    int64_t line = 0;  // of its beginning in the file, from 1
    std::vector<std::string> cells;
  };
  std::vector<std::string> columns;  // empty: the table has no header
  std::vector<Row> rows;

  // The place of a column, or nothing.
  std::optional<size_t> find(const std::string& column) const;
};

inline constexpr size_t kLargestTable = size_t{1} << 30;  // bytes, unpacked

// Reads a table: cells are separated by tabs where the first line has one, else by commas (RFC 4180: a cell
// in quotes may hold commas, line ends and doubled quotes). CRLF, a byte order mark, blank lines and lines
// that begin with '#' are passed over. With `header` the first row names the columns. Throws InputError
// naming file and line for a quote that is not closed, text behind a closed one, a row of another number of
// cells, a column named twice, bytes of zero, no row at all, and more than kLargestTable bytes.
TextTable read_table(ByteSource& source, const std::string& name, bool header);
// A file, plain, gzip or zstd; "-" is standard input.
TextTable read_table(const std::string& path, bool header);

// Takes the first row for the names of the columns. Throws InputError for a column named twice.
void name_columns(TextTable& table, const std::string& name);

// Reads the rows and takes the first for a header unless `is_data` says that it is not one.
template <class IsData>
TextTable read_table_guessing(const std::string& path, const IsData& is_data) {
  TextTable table = read_table(path, /*header=*/false);
  if (is_data(table.rows.front().cells)) return table;
  name_columns(table, source_name(path));
  return table;
}

}  // namespace performer::data
