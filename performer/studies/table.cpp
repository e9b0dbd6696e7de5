// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"

namespace performer::studies {
namespace {

std::string cell_text(const Cell& cell, const char* number_format) {
  if (const auto* text = std::get_if<std::string>(&cell)) return *text;
  if (const auto* whole = std::get_if<int64_t>(&cell)) return fmt::format("{}", *whole);
  const double number = std::get<double>(cell);
  return std::isnan(number) ? "" : fmt::format(fmt::runtime(number_format), number);
}

size_t column_index(const Table& table, const std::string& name) {
  const auto found = std::find(table.columns.begin(), table.columns.end(), name);
  check<UsageError>(found != table.columns.end(), "table {} has no column '{}'", table.name, name);
  return static_cast<size_t>(found - table.columns.begin());
}

// Position of `text` in `seen`, where it is appended when new: order of first appearance.
size_t place_of(std::vector<std::string>& seen, const std::string& text) {
  const auto found = std::find(seen.begin(), seen.end(), text);
  if (found != seen.end()) return static_cast<size_t>(found - seen.begin());
  seen.push_back(text);
  return seen.size() - 1;
}

std::string aligned(const std::vector<std::vector<std::string>>& cells, const std::vector<bool>& words) {
  std::vector<size_t> widths(words.size());
  for (const auto& line : cells) {
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text;
  for (const auto& line : cells) {
    for (size_t i = 0; i < widths.size(); ++i) {
      // Words to the left, numbers to the right; a header stands over its column's kind.
      text += words[i] ? fmt::format("{:<{}}", line[i], widths[i] + 2)
                       : fmt::format("{:>{}}  ", line[i], widths[i]);
    }
    while (!text.empty() && text.back() == ' ') text.pop_back();
    text += '\n';
  }
  return text;
}

}  // namespace

void Table::add(std::vector<Cell> row) {
  check<UsageError>(row.size() == columns.size(), "table {}: a row of {} cells for {} columns", name,
                    row.size(), columns.size());
  rows.push_back(std::move(row));
}

std::string to_tsv(const Table& table) {
  std::string text = fmt::format("{}\n", fmt::join(table.columns, "\t"));
  for (const auto& row : table.rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      if (i > 0) text += '\t';
      text += cell_text(row[i], "{:.6g}");
    }
    text += '\n';
  }
  return text;
}

nlohmann::ordered_json to_json(const Table& table) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const auto& row : table.rows) {
    nlohmann::ordered_json object;
    for (size_t i = 0; i < row.size(); ++i) {
      std::visit([&](const auto& value) { object[table.columns[i]] = value; }, row[i]);
      if (const auto* number = std::get_if<double>(&row[i]); number != nullptr && !std::isfinite(*number)) {
        object[table.columns[i]] = nullptr;
      }
    }
    rows.push_back(std::move(object));
  }
  return {{"title", table.title}, {"rows", std::move(rows)}};
}

std::string to_text(const Table& table) {
  std::vector<std::vector<std::string>> cells = {table.columns};
  std::vector<bool> words;
  for (size_t i = 0; i < table.columns.size(); ++i) {
    words.push_back(!table.rows.empty() && std::holds_alternative<std::string>(table.rows.front()[i]));
  }
  for (const auto& row : table.rows) {
    auto& line = cells.emplace_back();
    for (const Cell& cell : row) line.push_back(cell_text(cell, "{:.4g}"));
  }
  return table.title + "\n" + aligned(cells, words);
}

std::string to_pivot_text(const Table& table, const std::vector<std::string>& group, const std::string& row,
                          const std::string& column, const std::string& value) {
  const size_t row_at = column_index(table, row), across_at = column_index(table, column),
               value_at = column_index(table, value);
  std::vector<std::string> headings;                   // of the groups
  std::vector<std::vector<std::string>> down, across;  // row and column names of each
  std::vector<std::map<std::pair<size_t, size_t>, std::string>> values;
  for (const auto& cells : table.rows) {
    std::string heading = value;
    for (const std::string& name : group) {
      heading += fmt::format(", {} {}", name, cell_text(cells[column_index(table, name)], "{:.4g}"));
    }
    const size_t at = place_of(headings, heading);
    down.resize(headings.size());
    across.resize(headings.size());
    values.resize(headings.size());
    const size_t line = place_of(down[at], cell_text(cells[row_at], "{:.4g}"));
    const size_t place = place_of(across[at], cell_text(cells[across_at], "{:.4g}"));
    values[at][{line, place}] = cell_text(cells[value_at], "{:.3g}");
  }
  std::string text = table.title + "\n";
  for (size_t at = 0; at < headings.size(); ++at) {
    std::vector<std::vector<std::string>> cells = {{row}};
    cells[0].insert(cells[0].end(), across[at].begin(), across[at].end());
    for (size_t line = 0; line < down[at].size(); ++line) {
      auto& made = cells.emplace_back(1, down[at][line]);
      for (size_t place = 0; place < across[at].size(); ++place) {
        const auto found = values[at].find({line, place});
        made.push_back(found == values[at].end() ? "" : found->second);
      }
    }
    std::vector<bool> words(across[at].size() + 1, false);
    words[0] = true;
    text += headings[at] + " against " + column + "\n" + aligned(cells, words) +
            (at + 1 < headings.size() ? "\n" : "");
  }
  return text;
}

}  // namespace performer::studies
