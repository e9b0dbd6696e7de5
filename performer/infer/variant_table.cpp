// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/variant_table.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>

#include "performer/base/error.h"
#include "performer/data/table.h"
#include "performer/data/variant.h"

namespace performer {
namespace {

using data::Edit;
using Tokens = std::vector<data::Token>;

constexpr const char* kVariantColumns[] = {"mutant",    "variant",         "hgvs_pro", "hgvs",
                                           "mutations", "protein_variant", "mutation", "variants"};
constexpr const char* kSequenceColumns[] = {"mutated_sequence", "mutant_sequence", "sequence"};
constexpr const char* kMeasuredColumn = "DMS_score";
constexpr size_t kOffsetRows = 200;  // variants by which an offset is guessed

template <size_t N>
std::optional<size_t> first_of(const data::TextTable& table, const char* const (&names)[N]) {
  for (const char* name : names) {
    if (const auto place = table.find(name)) return place;
  }
  return std::nullopt;
}

// What a cell says: edits, or nothing when it is no notation.
std::optional<std::vector<Edit>> edits_of(const std::string& cell, std::string& reason) {
  try {
    return data::parse_variant(cell);
  } catch (const InputError& error) {
    reason = error.what();
    return std::nullopt;
  }
}

bool is_variant(const std::string& cell) {
  std::string ignored;
  return !cell.empty() && edits_of(cell, ignored).has_value();
}

std::optional<Tokens> tokens_of(const std::string& cell, const data::Vocabulary& vocabulary,
                                std::string& reason) {
  try {
    return vocabulary.encode_symbols(cell);
  } catch (const InputError& error) {
    reason = error.what();
  } catch (const UsageError& error) {
    reason = error.what();
  }
  return std::nullopt;
}

double parse_measured(const std::string& cell) {
  if (cell.empty() || cell == "NA" || cell == "NaN" || cell == "nan" || cell == "na" || cell == "N/A") {
    return std::numeric_limits<double>::quiet_NaN();
  }
  double value = 0;
  const char* begin = cell.data() + (cell.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, cell.data() + cell.size(), value);
  check<InputError>(error == std::errc() && end == cell.data() + cell.size() && std::isfinite(value),
                    "expected a number, or nothing or NA where none was measured, found '{}'", shown(cell));
  return value;
}

class VariantReader {
 public:
  VariantReader(const std::string& path, const Tokens& wild_type, const data::Vocabulary& vocabulary,
                const VariantTableOptions& options)
      : name_(data::source_name(path)), wild_(wild_type), vocabulary_(vocabulary), options_(options) {
    const auto is_data = [](const std::vector<std::string>& cells) { return is_variant(cells[0]); };
    table_ = data::read_table_guessing(path, is_data);
    check<InputError>(!table_.rows.empty(), "{} has no variants, only a line of column names", name_);
    find_columns();
  }

  VariantTable read() {
    VariantTable result;
    if (measured_) result.measured_name = table_.columns[*measured_];
    for (const data::TextTable::Row& row : table_.rows) {
      const std::string& name = variant_ ? row.cells[*variant_] : row.cells[*sequence_];
      try {
        result.variants.push_back(variant_of(row));
        if (measured_) {
          const std::string& cell = row.cells[*measured_];
          try {
            result.measured.push_back(parse_measured(cell));
          } catch (const InputError& error) {
            throw InputError(fmt::format("column {}: {}", result.measured_name, error.what()));
          }
        }
      } catch (const InputError& error) {
        throw InputError(
            fmt::format("{}, line {} ('{}'): {}", name_, row.line, shown(name, 40), error.what()));
      }
    }
    return result;
  }

 private:
  void find_columns() {
    const std::vector<std::string>& columns = table_.columns;
    if (columns.empty()) {
      variant_ = 0;
      check<UsageError>(options_.column.empty() && options_.variant_column.empty(),
                        "{} has no line of column names, so that no column can be asked for", name_);
      return;
    }
    sequence_ = first_of(table_, kSequenceColumns);
    variant_ =
        options_.variant_column.empty() ? first_of(table_, kVariantColumns) : column(options_.variant_column);
    if (!variant_ && columns.size() == 1) variant_ = 0;
    check<UsageError>(
        variant_ || sequence_,
        "{} has no column of variants (mutant, variant, hgvs_pro or mutated_sequence): name it by "
        "--variant-column; columns are {}",
        name_, fmt::join(columns, ", "));
    measured_ = options_.column.empty() ? table_.find(kMeasuredColumn) : column(options_.column);
  }
  size_t column(const std::string& wanted) const {
    const auto place = table_.find(wanted);
    check<UsageError>(place.has_value(), "{} has no column '{}'; columns are {}", name_, wanted,
                      fmt::join(table_.columns, ", "));
    return *place;
  }

  Variant variant_of(const data::TextTable::Row& row) const {
    std::string reason;
    std::optional<Tokens> sequence;
    if (sequence_ && !row.cells[*sequence_].empty()) {
      sequence = tokens_of(row.cells[*sequence_], vocabulary_, reason);
      check<InputError>(sequence.has_value(), "column {}: {}", table_.columns[*sequence_], reason);
    }
    if (!variant_) {
      check<InputError>(sequence.has_value(), "column {} is empty", table_.columns[*sequence_]);
      return of_sequence(row.cells[*sequence_], *sequence, row.line);
    }
    const std::string& cell = row.cells[*variant_];
    const auto edits = edits_of(cell, reason);
    if (!edits && !sequence && cell.size() > 1) {
      std::string ignored;
      sequence = tokens_of(cell, vocabulary_, ignored);
    }
    check<InputError>(edits || sequence, "{}", reason);
    if (!edits) return of_sequence(cell, *sequence, row.line);
    return of_edits(cell, *edits, sequence, row.line);
  }

  Variant of_sequence(const std::string& name, const Tokens& tokens, int64_t line) const {
    return {name, tokens, tokens.size() == wild_.size(), line};
  }

  Variant of_edits(const std::string& name, const std::vector<Edit>& edits,
                   const std::optional<Tokens>& sequence, int64_t line) const {
    try {
      data::check_edits(edits, wild_, vocabulary_, options_.offset);
    } catch (const InputError& error) {
      throw InputError(fmt::format("{}{}", error.what(), offset_hint()));
    }
    Tokens tokens = data::apply_edits(edits, wild_, vocabulary_, options_.offset);
    if (sequence && *sequence != tokens) {
      const auto [one, other] = std::ranges::mismatch(*sequence, tokens);
      throw InputError(
          fmt::format("the column {} differs from what the variant says at position {}: expected {}, found "
                      "{}; give the wild type "
                      "that the table is about",
                      table_.columns[*sequence_], one - sequence->begin() + 1,
                      other == tokens.end() ? "its end" : vocabulary_.symbol_text(*other),
                      one == sequence->end() ? "its end" : vocabulary_.symbol_text(*one)));
    }
    return {name, tokens, data::only_substitutions(edits), line};
  }

  // " (--offset 24 would fit ...)" where one offset, and no other, fits the first variants.
  std::string offset_hint() const {
    std::vector<Edit> all;
    for (size_t i = 0; i < std::min(kOffsetRows, table_.rows.size()); ++i) {
      std::string ignored;
      const auto edits = edits_of(table_.rows[i].cells[*variant_], ignored);
      if (edits) all.insert(all.end(), edits->begin(), edits->end());
    }
    if (all.empty()) return "";
    std::vector<int64_t> fitting;
    for (int64_t place = 0; place < std::ssize(wild_) && fitting.size() < 2; ++place) {
      const int64_t offset = all[0].first - 1 - place;
      try {
        data::check_edits(all, wild_, vocabulary_, offset);
        fitting.push_back(offset);
      } catch (const InputError&) {  // this one does not fit
        continue;
      }
    }
    std::set<int64_t> positions;
    for (const Edit& edit : all) positions.insert(edit.first);
    // A few letters fit somewhere in any protein.
    if (fitting.size() != 1 || positions.size() < 3) return "";
    return fmt::format("; the first {} variants all fit --offset {}",
                       std::min(kOffsetRows, table_.rows.size()), fitting[0]);
  }

  std::string name_;
  const Tokens& wild_;
  const data::Vocabulary& vocabulary_;
  const VariantTableOptions& options_;
  data::TextTable table_;
  std::optional<size_t> variant_, sequence_, measured_;
};

}  // namespace

VariantTable read_variants(const std::string& path, const Tokens& wild_type,
                           const data::Vocabulary& vocabulary, const VariantTableOptions& options) {
  return VariantReader(path, wild_type, vocabulary, options).read();
}

std::vector<char> replacing_letters(const data::Vocabulary& vocabulary) {
  check<UsageError>(vocabulary.has_letters(),
                    "variants are written in letters, which the vocabulary {} of this model does not have",
                    vocabulary.name());
  std::string letters;
  if (vocabulary.unit() == "residues") {  // imported ones too, which may have letters for gaps
    letters = "ACDEFGHIKLMNPQRSTVWY";
  } else if (vocabulary.name() == "dna") {
    letters = "ACGT";
  } else if (vocabulary.name() == "rna") {
    letters = "ACGU";
  } else {
    for (int64_t id = 0; id < vocabulary.symbols(); ++id) {
      const std::string text = vocabulary.symbol_text(id);
      if (text.size() == 1) letters += text;
    }
  }
  return {letters.begin(), letters.end()};
}

std::vector<Variant> all_single_variants(const Tokens& wild_type, const data::Vocabulary& vocabulary,
                                         int64_t offset) {
  const std::vector<char> letters = replacing_letters(vocabulary);
  std::vector<Variant> variants;
  for (size_t place = 0; place < wild_type.size(); ++place) {
    for (const char letter : letters) {
      const auto token = static_cast<data::Token>(vocabulary.token_of(letter));
      if (token == wild_type[place]) continue;
      Variant variant{fmt::format("{}{}{}", vocabulary.symbol_text(wild_type[place]),
                                  static_cast<int64_t>(place) + 1 + offset, letter),
                      wild_type, true, 0};
      variant.tokens[place] = token;
      variants.push_back(std::move(variant));
    }
  }
  return variants;
}

}  // namespace performer
