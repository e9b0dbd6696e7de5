// SPDX-License-Identifier: Apache-2.0
// What a table says of sequences by their ids: the label that a model learns to predict, and how much a
// sequence counts (docs/finetuning.md).
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "performer/data/label_form.h"
#include "performer/data/reader.h"
#include "performer/data/section_file.h"
#include "performer/data/table.h"

namespace performer::data {

struct LabelColumns {
  std::string id = {}, label = {};  // empty: the column of a usual name, or else the first and the second
  bool weights = true;              // whether a column `weight`, or a third one without a header, is read
};

// The value of a token that has no label.
inline constexpr float kNoLabel = std::numeric_limits<float>::quiet_NaN();

// Reads CSV or TSV (data/table.h): id, label, and perhaps a weight. A first line is taken for column names
// when it begins with a usual one (id, name, sequence_id, mutant, ...), when a name of a column is asked for,
// and where a number is expected and none is there. The label of a sequence is a class name or a number;
// empty, NA and NaN stand for none. Labels of tokens are written as one character a token, or separated by
// commas; ? and an empty place stand for none. Blanks around cells are dropped. Texts are made printable.
class LabelTable {
 public:
  struct Row {
    std::vector<float> values;  // one, or one a token: the number of a class, a value, or kNoLabel
    float weight = 1;
    int64_t line = 0;
  };

  // `known` are the classes of a model; without them they are those of the table, in order (as numbers where
  // all of them are whole ones). Throws InputError naming file, line and id for what cannot be read: a label
  // that is no number, a class that is not known, a weight below 0, an id with two labels; UsageError for a
  // column that is not there; InputError for fewer than 2 or more than kMostClasses classes.
  LabelTable(const std::string& path, const LabelForm& form, const LabelColumns& columns = {},
             const std::optional<std::vector<std::string>>& known = std::nullopt);
  // Of a table that was read without a header; `name` is used in messages.
  LabelTable(TextTable table, const std::string& name, const LabelForm& form,
             const LabelColumns& columns = {},
             const std::optional<std::vector<std::string>>& known = std::nullopt);

  static constexpr size_t kMostClasses = 4096;

  const std::string& name() const { return name_; }  // of the file, for messages
  const LabelForm& form() const { return form_; }
  const std::vector<std::string>& classes() const { return classes_; }
  bool has_weights() const { return has_weights_; }
  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  int64_t repeated() const { return repeated_; }  // rows that say again what an earlier one said
  // Null for an id without a label.
  const Row* find(const std::string& id) const;
  const std::unordered_map<std::string, Row>& rows() const { return rows_; }

 private:
  friend class LabelReader;
  std::string name_;
  LabelForm form_;
  std::vector<std::string> classes_;
  std::unordered_map<std::string, Row> rows_;
  bool has_weights_ = false;
  int64_t repeated_ = 0;
};

// A table of ids and weights, numbers of 0 or more, read as a LabelTable is.
class WeightTable {
 public:
  explicit WeightTable(const std::string& path);
  const std::string& name() const { return table_.name(); }
  std::optional<float> find(const std::string& id) const;
  int64_t size() const { return table_.size(); }

 private:
  LabelTable table_;
};

// The key of a record in a table: its id; of a text without an entry of that id, its number from 1.
template <class Table>
auto find_record(const Table& table, const Record& record, const std::string& format) {
  auto found = table.find(record.id);
  return !found && format == "text" ? table.find(std::to_string(record.number)) : found;
}

// Labels and weights of the sequences of one corpus, by their index: gathered while it is read (take() is
// called for each record in order), or those that were gathered so and written beside the sequences
// (store.h).
class LabelledSequences {
 public:
  // Both tables may be null, and outlive this.
  LabelledSequences(const LabelTable* labels, const WeightTable* weights)
      : labels_(labels), weight_table_(weights) {}
  // Those in a file that write() wrote, which outlives this; nothing where it wrote none. `offsets` are those
  // of the sequences in the file: where each begins, and where the last one ends. Throws InputError where
  // labels and weights are not as many as sequences and their tokens, and for numbers that are none of a
  // class.
  LabelledSequences(const SectionFile& file, std::span<const int64_t> offsets);

  // Whether the record belongs to the corpus: without a label it does not; without tables all do, and nothing
  // is gathered. Throws InputError where a sequence has another number of tokens than labels.
  bool take(const Record& record, const std::string& format);
  // Adds sections of what was gathered; none where there is no table.
  void write(SectionWriter& file) const;

  int64_t size() const { return size_; }
  // One value, or one for each token; nothing without a table of labels.
  std::span<const float> values(int64_t index) const;
  // Of all sequences; empty without weights.
  std::span<const float> weights() const { return file_ != nullptr ? mapped_weights_ : std::span(weights_); }
  bool has_weights() const {
    return weight_table_ != nullptr || (labels_ != nullptr && labels_->has_weights()) || !weights().empty();
  }
  const std::vector<std::string>& classes() const {
    return labels_ != nullptr ? labels_->classes() : classes_;
  }
  uint64_t fingerprint() const { return fingerprint_; }
  // Sentences for the user about what was left out or found twice; `what` says of which sequences. Nothing of
  // labels from a file.
  std::vector<std::string> report(const std::string& what) const;
  // Ids met so far, for unused_labels().
  const std::unordered_map<std::string, int64_t>& met() const { return met_; }

 private:
  const LabelTable::Row* label_of(const Record& record, const std::string& format);
  void read_description(const SectionFile& file, bool& per_token);
  void check_values(std::span<const int64_t> offsets, bool per_token) const;

  const LabelTable* labels_ = nullptr;
  const WeightTable* weight_table_ = nullptr;
  int64_t size_ = 0;
  std::vector<float> values_;  // of all sequences, one after the other
  std::vector<int64_t> ends_;  // where those of each sequence end
  std::vector<float> weights_;
  std::unordered_map<std::string, int64_t> met_;  // how often, by the id in the table of labels
  int64_t unlabelled_ = 0, unweighted_ = 0, again_ = 0;
  std::string first_unlabelled_, first_unweighted_, first_again_;
  uint64_t fingerprint_ = 0;

  const SectionFile* file_ = nullptr;  // null: gathered
  std::span<const float> mapped_values_, mapped_weights_;
  std::span<const int64_t> mapped_ends_;
  std::vector<std::string> classes_;
};

// A sentence about rows of a table that belong to none of the sequences met, or nothing.
std::string unused_labels(const LabelTable& table, const std::vector<const LabelledSequences*>& parts);

}  // namespace performer::data
