// SPDX-License-Identifier: Apache-2.0
#include "performer/data/table.h"

#include <algorithm>

#include "performer/base/error.h"

namespace performer::data {
namespace {

// Goes through the text of a table once.
class TableParser {
 public:
  TableParser(const std::string& text, const std::string& name) : text_(text), name_(name) {
    if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;
    const size_t line_end = text_.find('\n', first_row());
    mark_ = text_.substr(first_row(), line_end - first_row()).find('\t') != std::string::npos ? '\t' : ',';
  }

  // The next row; false at the end.
  bool next(TextTable::Row& row) {
    while (at_ < text_.size() && skips_line()) go_to_next_line();
    if (at_ >= text_.size()) return false;
    row = {line_, {}};
    for (bool more = true; more;) {
      row.cells.push_back(cell());
      more = at_ < text_.size() && text_[at_] == mark_;
      if (more) ++at_;
    }
    end_line();
    return true;
  }

 private:
  size_t first_row() const {
    size_t begin = at_;
    while (begin < text_.size() && (text_[begin] == '\n' || text_[begin] == '\r' || text_[begin] == '#')) {
      const size_t end = text_.find('\n', begin);
      if (end == std::string::npos) return text_.size();
      begin = end + 1;
    }
    return begin;
  }

  bool skips_line() const {
    return text_[at_] == '\n' || text_[at_] == '#' ||
           (text_[at_] == '\r' && text_.compare(at_, 2, "\r\n") == 0);
  }
  void go_to_next_line() {
    const size_t end = text_.find('\n', at_);
    at_ = end == std::string::npos ? text_.size() : end + 1;
    ++line_;
  }
  void end_line() {
    if (at_ < text_.size() && text_[at_] == '\r') ++at_;
    if (at_ < text_.size() && text_[at_] == '\n') ++at_, ++line_;
  }
  bool at_line_end() const {
    return at_ >= text_.size() || text_[at_] == '\n' ||
           (text_[at_] == '\r' && text_.compare(at_, 2, "\r\n") == 0) ||
           (text_[at_] == '\r' && at_ + 1 == text_.size());
  }

  std::string cell() {
    if (at_ < text_.size() && text_[at_] == '"') return quoted_cell();
    const size_t begin = at_;
    while (!at_line_end() && text_[at_] != mark_) ++at_;
    return text_.substr(begin, at_ - begin);
  }

  std::string quoted_cell() {
    const int64_t begun = line_;
    std::string value;
    for (++at_;; ++at_) {
      check<InputError>(at_ < text_.size(), "{}, line {}: the quote that begins a cell is not closed", name_,
                        begun);
      if (text_[at_] == '"') {
        if (at_ + 1 >= text_.size() || text_[at_ + 1] != '"') break;
        ++at_;  // a doubled quote stands for one
      }
      if (text_[at_] == '\n') ++line_;
      value += text_[at_];
    }
    ++at_;
    check<InputError>(
        at_line_end() || text_[at_] == mark_,
        "{}, line {}: text follows the closing quote of a cell; a quote within it is written twice", name_,
        line_);
    return value;
  }

  const std::string& text_;
  const std::string& name_;
  char mark_ = ',';
  size_t at_ = 0;
  int64_t line_ = 1;
};

void check_columns(const TextTable& table, const std::string& name) {
  for (size_t i = 0; i < table.columns.size(); ++i) {
    const auto before = table.columns.begin() + static_cast<std::ptrdiff_t>(i);
    check<InputError>(std::find(table.columns.begin(), before, table.columns[i]) == before,
                      "{}: two columns are named '{}'; give each a name of its own", name,
                      shown(table.columns[i]));
  }
}

}  // namespace

std::optional<size_t> TextTable::find(const std::string& column) const {
  const auto found = std::ranges::find(columns, column);
  if (found == columns.end()) return std::nullopt;
  return static_cast<size_t>(found - columns.begin());
}

void name_columns(TextTable& table, const std::string& name) {
  table.columns = std::move(table.rows.front().cells);
  table.rows.erase(table.rows.begin());
  check_columns(table, name);
}

TextTable read_table(ByteSource& source, const std::string& name, bool header) {
  const std::string text = read_all(source, name, kLargestTable);
  check<InputError>(text.find('\0') == std::string::npos,
                    "{} is not a table of text: it has zero bytes; save it as CSV or TSV in UTF-8", name);
  TextTable table;
  TableParser parser(text, name);
  size_t cells = 0;
  for (TextTable::Row row; parser.next(row);) {
    if (cells == 0) cells = row.cells.size();
    check<InputError>(row.cells.size() == cells, "{}, line {}: {} cells, but the first row has {}", name,
                      row.line, row.cells.size(), cells);
    if (header && table.columns.empty()) {
      table.columns = std::move(row.cells);
    } else {
      table.rows.push_back(std::move(row));
    }
  }
  check<InputError>(cells > 0, "{}: the table is empty", name);
  check_columns(table, name);
  return table;
}

TextTable read_table(const std::string& path, bool header) {
  const std::string name = source_name(path);
  const auto source = unpack(open_bytes(path), name);
  return read_table(*source, name, header);
}

}  // namespace performer::data
