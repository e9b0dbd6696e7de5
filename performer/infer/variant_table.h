// SPDX-License-Identifier: Apache-2.0
// Variants as users give them: a table with a measured effect, or all substitutions of a sequence.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "performer/data/vocabulary.h"
#include "performer/infer/variants.h"

namespace performer {

struct VariantTableOptions {
  int64_t offset = 0;          // subtracted from positions: 24 where the wild type begins with residue 25
  std::string variant_column;  // empty: mutant, variant, hgvs_pro, ... or the only column
  std::string column;          // of measured effects; empty: DMS_score where there is one
};

struct VariantTable {
  std::vector<Variant> variants;
  std::string measured_name;     // empty: no such column
  std::vector<double> measured;  // one a variant, NaN where the cell is empty or says NA
};

// Reads CSV or TSV (data/table.h) or a list of variants, one a line. A column mutated_sequence, or cells that
// hold a whole sequence instead of a notation (ProteinGym's insertions and deletions), give the sequence
// itself. Throws InputError naming file, line and variant for a residue that the wild type does not have
// there, a position outside of it, an unknown residue, a notation that cannot be read, a sequence that is not
// what the notation says, and a measured effect that is no number; UsageError for a column that is not there.
VariantTable read_variants(const std::string& path, const std::vector<data::Token>& wild_type,
                           const data::Vocabulary& vocabulary, const VariantTableOptions& options);

// Residues that stand for one thing each, by which positions are replaced: the 20 amino acids, ACGT, ACGU; of
// other vocabularies all symbols. Throws UsageError for a vocabulary without letters.
std::vector<char> replacing_letters(const data::Vocabulary& vocabulary);
// Each position replaced by each other letter, position by position.
std::vector<Variant> all_single_variants(const std::vector<data::Token>& wild_type,
                                         const data::Vocabulary& vocabulary, int64_t offset);

}  // namespace performer
