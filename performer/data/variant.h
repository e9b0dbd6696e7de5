// SPDX-License-Identifier: Apache-2.0
// Changes of a sequence in the notations of the field: A24P, A24P:G30D, and HGVS's for proteins.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "performer/data/vocabulary.h"

namespace performer::data {

// One change. Positions count from 1, as written. Letters are one-letter codes; `first_letter` and
// `last_letter` are what the notation says stands at the ends of the range ('\0': nothing).
//
//   substitution  A24P          replaces position 24
//   deletion      G30del        removes first .. last
//   insertion     K23_L24insR   puts letters behind position `first` (last = first + 1)
//   duplication   A3_S5dup      puts a copy of first .. last behind it
//   delins        C28_V30delinsWT  replaces first .. last
//   stop          W24*, W24Ter  ends the sequence before position 24
struct Edit {
  enum class Kind { substitution, deletion, insertion, duplication, delins, stop };
  Kind kind = Kind::substitution;
  int64_t first = 0, last = 0;
  char first_letter = '\0', last_letter = '\0';
  std::string letters = {};  // what comes new
  bool operator==(const Edit&) const = default;
};

// What parse_variant() reads. Several changes are separated by ':', ';', ',' or '+', and may stand in
// brackets.
//
//   A24P, A24P:G30D           one-letter codes, as ProteinGym writes them; A24del, A24- (deletions), A24*
//   (stop) p.Ala24Pro, p.(Ala24Pro)  HGVS with three-letter codes, with or without "p.", parentheses and a
//   reference before
//                             it (NP_003997.1:p.Trp24Cys); p.[Ala24Pro;Gly30Asp]
//   Gly30del, Lys23_Val25del, Lys23_Leu24insArgSer, Ala3dup, Ala3_Ser5dup, Cys28delinsTrpVal, Trp24Ter, and
//   the same
//                             with one-letter codes
//   WT, =, p.=                no change; Ala24= and A24A are substitutions by the same
//
// Throws InputError without a place, for the caller to add: what was expected and found. Frameshifts,
// extensions and changes of DNA (c., g.) say nothing of the protein's new sequence and are refused by name,
// as are changes that overlap.
std::vector<Edit> parse_variant(std::string_view text);

// The edits in one-letter notation, separated by ':'; "WT" for none. parse_variant() reads it back.
std::string to_text(const std::vector<Edit>& edits);

// Throws InputError without a place unless the edits fit `wild_type`: positions less `offset` within it, the
// letters that they name there, and new letters of the vocabulary. The message says what was expected and
// found, and the cure.
void check_edits(const std::vector<Edit>& edits, const std::vector<Token>& wild_type,
                 const Vocabulary& vocabulary, int64_t offset);
// The changed sequence. `offset` is subtracted from positions.
std::vector<Token> apply_edits(const std::vector<Edit>& edits, const std::vector<Token>& wild_type,
                               const Vocabulary& vocabulary, int64_t offset);
// Whether the sequence keeps its length and the edits are substitutions.
bool only_substitutions(const std::vector<Edit>& edits);

}  // namespace performer::data
