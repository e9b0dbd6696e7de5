// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of tables of variants: the table is read, and each cell as a variant (libFuzzer: clang++
// -fsanitize=fuzzer,address,undefined).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "performer/base/error.h"
#include "performer/data/table.h"
#include "performer/data/variant.h"

namespace performer::variant_fuzz {

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "variants: %s\n", what);
  std::abort();
}

// A variant that can be read is written and read again as it was, and either fits or is refused.
inline void try_variant(const std::string& text) {
  static const data::Vocabulary protein = data::Vocabulary::protein();
  static const std::vector<data::Token> wild = protein.encode("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ");
  std::vector<data::Edit> edits;
  try {
    edits = data::parse_variant(text);
  } catch (const InputError&) {
    return;
  }
  require(data::parse_variant(data::to_text(edits)) == edits, "a variant changes when written and read");
  try {
    data::check_edits(edits, wild, protein, 0);
  } catch (const InputError&) {
    return;
  }
  const std::vector<data::Token> changed = data::apply_edits(edits, wild, protein, 0);
  require(!data::only_substitutions(edits) || changed.size() == wild.size(),
          "a substitution changes the length");
  for (const data::Token token : changed) require(protein.is_symbol(token), "a token is no symbol");
}

}  // namespace performer::variant_fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace performer;
  const std::string text(reinterpret_cast<const char*>(data), size);
  variant_fuzz::try_variant(text);
  const auto source = data::memory_bytes(text);
  try {
    const data::TextTable table = data::read_table(*source, "table", /*header=*/true);
    for (const data::TextTable::Row& row : table.rows) {
      variant_fuzz::require(row.cells.size() == table.columns.size(), "a row has another number of cells");
      variant_fuzz::require(row.line >= 1, "a row has no line");
      for (const std::string& cell : row.cells) variant_fuzz::try_variant(cell);
    }
  } catch (const InputError&) {  // a table that is none
    return 0;
  }
  return 0;
}
