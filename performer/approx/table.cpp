// SPDX-License-Identifier: Apache-2.0
#include "performer/approx/table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"

namespace performer::approx {
namespace {

std::string cell_text(const Cell& cell, const char* number_format) {
  if (const auto* text = std::get_if<std::string>(&cell)) return *text;
  if (const auto* whole = std::get_if<int64_t>(&cell)) return fmt::format("{}", *whole);
  const double number = std::get<double>(cell);
  return std::isnan(number) ? "" : fmt::format(fmt::runtime(number_format), number);
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
    for (size_t i = 0; i < row.size(); ++i) text += (i == 0 ? "" : "\t") + cell_text(row[i], "{:.6g}");
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
  for (const auto& row : table.rows) {
    auto& line = cells.emplace_back();
    for (const Cell& cell : row) line.push_back(cell_text(cell, "{:.4g}"));
  }
  std::vector<size_t> widths(table.columns.size());
  for (const auto& line : cells) {
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text = table.title + "\n";
  for (size_t row = 0; row < cells.size(); ++row) {
    for (size_t i = 0; i < widths.size(); ++i) {
      // Words to the left, numbers to the right; a header stands over its column's kind.
      const bool words = !table.rows.empty() && std::holds_alternative<std::string>(table.rows.front()[i]);
      text += words ? fmt::format("{:<{}}", cells[row][i], widths[i] + 2)
                    : fmt::format("{:>{}}  ", cells[row][i], widths[i]);
    }
    while (!text.empty() && text.back() == ' ') text.pop_back();
    text += '\n';
  }
  return text;
}

}  // namespace performer::approx
