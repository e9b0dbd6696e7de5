// SPDX-License-Identifier: Apache-2.0
#include "performer/data/labels.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <map>
#include <set>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/base/printable.h"
#include "performer/data/fingerprint.h"

namespace performer::data {
namespace {

constexpr std::array kIdNames = {"id",      "name",   "sequence_id", "sequence_name", "accession", "entry",
                                 "protein", "mutant", "variant",     "record",        "identifier"};
constexpr std::array kLabelNames = {"label", "labels", "class", "value", "target", "DMS_score", "fitness"};
constexpr const char* kWeightName = "weight";

std::string lower(std::string text) {
  for (char& letter : text) {
    if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
  }
  return text;
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

bool says_nothing(std::string_view cell) {
  return cell.empty() || cell == "NA" || cell == "na" || cell == "N/A" || cell == "NaN" || cell == "nan";
}

std::optional<float> number_of(std::string_view cell) {
  const std::string_view digits = cell.starts_with('+') ? cell.substr(1) : cell;
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  const bool whole = error == std::errc() && end == digits.data() + digits.size() && !digits.empty();
  const auto narrow = static_cast<float>(value);
  if (!whole || !std::isfinite(narrow)) return std::nullopt;
  return narrow;
}

// The texts of the labels of tokens.
std::vector<std::string> token_texts(std::string_view cell, bool classes) {
  std::vector<std::string> texts;
  if (classes && cell.find(',') == std::string_view::npos) {
    for (size_t at = 0; at < cell.size();) {
      const size_t size = std::max<size_t>(1, utf8_size(cell.substr(at)));
      texts.push_back(printable(cell.substr(at, size)));
      at += size;
    }
    return texts;
  }
  for (size_t at = 0; at <= cell.size();) {
    const size_t end = std::min(cell.find(',', at), cell.size());
    texts.push_back(printable(trimmed(cell.substr(at, end - at))));
    at = end + 1;
  }
  return texts;
}

// Whole numbers in their order where all names are such, else by their bytes.
std::vector<std::string> in_order(const std::set<std::string>& names) {
  std::vector<std::string> sorted(names.begin(), names.end());
  std::map<int64_t, std::string> numbers;
  for (const std::string& name : sorted) {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (error != std::errc() || end != name.data() + name.size() || !numbers.emplace(number, name).second)
      return sorted;
  }
  sorted.clear();
  for (const auto& [number, name] : numbers) sorted.push_back(name);
  return sorted;
}

template <class Names>
bool is_named(const Names& names, const std::string& cell) {
  return std::ranges::any_of(names, [&](const char* name) { return lower(name) == cell; });
}

bool same_values(const std::vector<float>& a, const std::vector<float>& b) {
  return std::ranges::equal(a, b,
                            [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}

}  // namespace

// Goes through a table once.
class LabelReader {
 public:
  LabelReader(TextTable table, const LabelColumns& columns, LabelTable& made,
              const std::optional<std::vector<std::string>>& known)
      : columns_(columns), made_(made), known_(known), table_(std::move(table)) {
    if (is_header(table_.rows.front().cells)) name_columns(table_, made_.name_);
    check<InputError>(!table_.rows.empty(), "{} has no labels, only a line of column names", made_.name_);
    find_columns();
  }

  void read() {
    if (made_.form_.classes) gather_classes();
    for (const TextTable::Row& row : table_.rows) {
      try {
        read_row(row);
      } catch (const InputError& error) {
        throw InputError(fmt::format("{}, line {} ('{}'): {}", made_.name_, row.line,
                                     shown(trimmed(row.cells[id_]), 40), error.what()));
      }
    }
    check<InputError>(!made_.rows_.empty(), "{} has no label in its column of labels", made_.name_);
  }

 private:
  bool is_header(const std::vector<std::string>& cells) const {
    if (!columns_.id.empty() || !columns_.label.empty()) return true;
    if (is_named(kIdNames, lower(std::string(trimmed(cells[0]))))) return true;
    if (cells.size() < 2) return false;
    const std::string label(trimmed(cells[1]));
    if (is_named(kLabelNames, lower(label))) return true;
    return !made_.form_.classes && !made_.form_.per_token && !says_nothing(label) && !number_of(label);
  }

  void find_columns() {
    const std::vector<std::string>& names = table_.columns;
    const size_t cells = table_.rows.front().cells.size();
    check<InputError>(cells >= 2,
                      "{} has one column: expected an id and a label, separated by a tab or comma",
                      made_.name_);
    const auto column = [&](const std::string& wanted) {
      const auto place = table_.find(wanted);
      check<UsageError>(place.has_value(), "{} has no column '{}'; columns are {}", made_.name_,
                        shown(wanted), fmt::join(names, ", "));
      return *place;
    };
    if (columns_.weights && names.empty() && cells == 3) weight_ = 2;
    if (columns_.weights && !names.empty()) weight_ = table_.find(kWeightName);
    if (!columns_.id.empty()) {
      id_ = column(columns_.id);
    } else if (const auto place = first_of(kIdNames)) {
      id_ = *place;
    }
    label_ = id_ == 0 ? 1 : 0;
    if (!columns_.weights) label_ = table_.find(kWeightName).value_or(label_);
    if (!columns_.label.empty()) {
      label_ = column(columns_.label);
    } else if (const auto place = first_of(kLabelNames)) {
      label_ = *place;
    }
    check<InputError>(weight_ != label_ && id_ != label_,
                      "{} has no column of labels: name it label, or set task.label_column; columns are {}",
                      made_.name_, fmt::join(names, ", "));
    made_.has_weights_ = weight_.has_value();
  }

  template <class Names>
  std::optional<size_t> first_of(const Names& wanted) const {
    for (size_t i = 0; i < table_.columns.size(); ++i) {
      if (is_named(wanted, lower(std::string(trimmed(table_.columns[i]))))) return i;
    }
    return std::nullopt;
  }

  std::vector<std::string> texts_of(std::string_view cell) const {
    if (made_.form_.per_token) return token_texts(cell, made_.form_.classes);
    return {printable(cell)};
  }

  bool is_none(const std::string& text) const {
    return says_nothing(text) || (made_.form_.per_token && text == "?");
  }

  // All names of the table, or those of a model.
  void gather_classes() {
    if (known_) {
      made_.classes_ = *known_;
    } else {
      std::set<std::string> names;
      for (const TextTable::Row& row : table_.rows) {
        for (const std::string& text : texts_of(trimmed(row.cells[label_]))) {
          if (!is_none(text)) names.insert(text);
        }
        check<InputError>(names.size() <= LabelTable::kMostClasses,
                          "{} has more than {} classes: labels that are numbers are for task.kind = "
                          "sequence-regression or token-regression",
                          made_.name_, LabelTable::kMostClasses);
      }
      check<InputError>(names.size() >= 2, "{} has {} class{}: there must be two or more", made_.name_,
                        names.size(),
                        names.size() == 1 ? fmt::format(", '{}'", shown(*names.begin())) : "es");
      made_.classes_ = in_order(names);
    }
    for (size_t i = 0; i < made_.classes_.size(); ++i) numbers_[made_.classes_[i]] = static_cast<float>(i);
  }

  float value_of(const std::string& text) const {
    if (is_none(text)) return kNoLabel;
    if (!made_.form_.classes) {
      const std::optional<float> number = number_of(text);
      check<InputError>(number.has_value(), "expected a number as label, found '{}'", shown(text, 40));
      return *number;
    }
    const auto found = numbers_.find(text);
    check<InputError>(found != numbers_.end(), "the class '{}' is none of the model's: {}", shown(text, 40),
                      shown(fmt::format("{}", fmt::join(made_.classes_, ", ")), 200));
    return found->second;
  }

  void read_row(const TextTable::Row& row) {
    const std::string id(trimmed(row.cells[id_]));
    check<InputError>(!id.empty(), "the id is empty");
    const std::string_view cell = trimmed(row.cells[label_]);
    if (says_nothing(cell)) return;
    LabelTable::Row made;
    made.line = row.line;
    for (const std::string& text : texts_of(cell)) made.values.push_back(value_of(text));
    if (weight_) {
      const std::string_view text = trimmed(row.cells[*weight_]);
      const std::optional<float> weight = number_of(text);
      check<InputError>(weight && *weight >= 0, "a weight must be a number of 0 or more, found '{}'",
                        shown(text, 40));
      made.weight = *weight;
    }
    const auto [before, added] = made_.rows_.emplace(id, made);
    if (added) return;
    check<InputError>(same_values(before->second.values, made.values) && before->second.weight == made.weight,
                      "line {} says something else about the same id: an id has one label",
                      before->second.line);
    ++made_.repeated_;
  }

  const LabelColumns& columns_;
  LabelTable& made_;
  const std::optional<std::vector<std::string>>& known_;
  TextTable table_;
  size_t id_ = 0, label_ = 1;
  std::optional<size_t> weight_;
  std::unordered_map<std::string, float> numbers_;  // of classes
};

LabelTable::LabelTable(TextTable table, const std::string& name, const LabelForm& form,
                       const LabelColumns& columns, const std::optional<std::vector<std::string>>& known)
    : name_(name), form_(form) {
  LabelReader(std::move(table), columns, *this, known).read();
}

LabelTable::LabelTable(const std::string& path, const LabelForm& form, const LabelColumns& columns,
                       const std::optional<std::vector<std::string>>& known)
    : LabelTable(read_table(path, /*header=*/false), source_name(path), form, columns, known) {}

const LabelTable::Row* LabelTable::find(const std::string& id) const {
  const auto found = rows_.find(id);
  return found == rows_.end() ? nullptr : &found->second;
}

WeightTable::WeightTable(const std::string& path) : table_(path, {.classes = false}, {.weights = false}) {
  for (const auto& [id, row] : table_.rows()) {
    check<InputError>(row.values[0] >= 0, "{}, line {} ('{}'): a weight must be 0 or more, found {}",
                      table_.name(), row.line, shown(id, 40), row.values[0]);
  }
}

std::optional<float> WeightTable::find(const std::string& id) const {
  const LabelTable::Row* row = table_.find(id);
  return row == nullptr ? std::nullopt : std::optional(row->values[0]);
}

const LabelTable::Row* LabelledSequences::label_of(const Record& record, const std::string& format) {
  const LabelTable::Row* row = find_record(*labels_, record, format);
  if (row == nullptr) {
    if (unlabelled_++ == 0) first_unlabelled_ = record.id;
    return nullptr;
  }
  const bool per_token = labels_->form().per_token;
  check<InputError>(
      !per_token || row->values.size() == record.tokens.size(),
      "{}, line {} ('{}'): expected {} labels, one for each token of the sequence (a character each, or "
      "separated by commas), found {}",
      labels_->name(), row->line, shown(record.id, 40), record.tokens.size(), row->values.size());
  const bool by_number = labels_->find(record.id) == nullptr;
  if (met_[by_number ? std::to_string(record.number) : record.id]++ > 0 && again_++ == 0)
    first_again_ = record.id;
  return row;
}

bool LabelledSequences::take(const Record& record, const std::string& format) {
  if (labels_ == nullptr && weight_table_ == nullptr) return true;
  float weight = 1;
  uint64_t hash = 0;
  const auto add_hash = [&](float value) {
    hash = extended_fingerprint(hash, std::isnan(value) ? ~uint64_t{0} : std::bit_cast<uint32_t>(value));
  };
  if (labels_ != nullptr) {
    const LabelTable::Row* row = label_of(record, format);
    if (row == nullptr) return false;
    values_.insert(values_.end(), row->values.begin(), row->values.end());
    ends_.push_back(std::ssize(values_));
    for (const float value : row->values) add_hash(value);
    weight = row->weight;
  }
  if (weight_table_ != nullptr) {
    const std::optional<float> found = find_record(*weight_table_, record, format);
    if (!found && unweighted_++ == 0) first_unweighted_ = record.id;
    weight = found.value_or(1);
  }
  if (has_weights()) {
    weights_.push_back(weight);
    add_hash(weight);
  }
  fingerprint_ = extended_fingerprint(fingerprint_, hash);
  ++size_;
  return true;
}

std::vector<std::string> LabelledSequences::report(const std::string& what) const {
  std::vector<std::string> lines;
  const auto add = [&](int64_t count, const std::string& first, const std::string& rest) {
    if (count > 0)
      lines.push_back(fmt::format("{} {} {} (the first is '{}')", count, what, rest, shown(first, 40)));
  };
  add(unlabelled_, first_unlabelled_,
      fmt::format("have no label in {} and are left out", labels_ != nullptr ? labels_->name() : ""));
  add(unweighted_, first_unweighted_,
      fmt::format("have no weight in {} and get 1", weight_table_ != nullptr ? weight_table_->name() : ""));
  add(again_, first_again_, "have an id that another one had before, and get its label");
  return lines;
}

std::string unused_labels(const LabelTable& table, const std::vector<const LabelledSequences*>& parts) {
  int64_t unused = 0, first_line = std::numeric_limits<int64_t>::max();
  std::string first;
  for (const auto& row : table.rows()) {
    const auto has_it = [&row](const LabelledSequences* part) { return part->met().contains(row.first); };
    if (std::ranges::any_of(parts, has_it)) continue;
    ++unused;
    if (row.second.line < first_line) first_line = row.second.line, first = row.first;
  }
  if (unused == 0) return "";
  return fmt::format("{} of {} labels in {} belong to no sequence (the first is '{}', line {})", unused,
                     table.size(), table.name(), shown(first, 40), first_line);
}

}  // namespace performer::data
