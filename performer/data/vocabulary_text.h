// SPDX-License-Identifier: Apache-2.0
// The written forms of a vocabulary: escapes, the file with one symbol a line, and JSON. For vocabulary.cpp
// and the FASTA reader.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "performer/data/vocabulary.h"

namespace performer::data {

// A symbol with \n \t \r \s \\ and \xHH for what is no plain visible text; UTF-8 is left as it is.
std::string escape(std::string_view symbol);

// The symbols of a file of up to 16 MiB, read and checked as Vocabulary::from_file() says.
std::vector<std::string> read_symbol_file(const std::string& path);
// The same of its text; `source` is used in messages.
std::vector<std::string> symbols_of_text(std::string_view text, const std::string& source);

// Throws InputError where Vocabulary::of_symbols() does; `place` names the symbol of an index.
void check_symbols(const std::vector<std::string>& symbols, const std::string& source,
                   const std::function<std::string(size_t)>& place);

// Aliases that are read as one symbol, in the order in which they are listed.
struct AliasGroup {
  std::string letters;
  char read_as = 0;
};
std::vector<AliasGroup> alias_groups(const std::vector<Vocabulary::Alias>& aliases);

// What a vocabulary consists of, and tokenizer.json:
//   {"name", "unit", "spelling": "letters" | "numbers", "symbols": [escaped ...], "aliases": {"J": "X"},
//    "marker_letters": "<>_*" or "", "bos", "eos", "pad", "mask"}
// and, where they are not empty, "reserved" and "source_ids".
struct VocabularyText {
  std::string name = {}, unit = "tokens";
  bool numbers = false;  // symbols are written as numbers between white space
  std::vector<std::string> symbols = {};
  std::string marker_letters = {};  // four, or none
  std::vector<Vocabulary::Alias> aliases = {};
  int64_t reserved = 0;  // the last symbols, which no text stands for: their names are for people alone
  // Of imported models: the id that each symbol and marker had there, -1 for one that was not there.
  std::vector<int64_t> source_ids = {};
};
// Throws InputError naming `source` where Vocabulary::from_parts() does.
void check_parts(const VocabularyText& vocabulary, const std::string& source);
std::string write_vocabulary(const VocabularyText& vocabulary);
// Throws InputError naming `source` and what is wrong.
VocabularyText read_vocabulary(const std::string& text, const std::string& source);

}  // namespace performer::data
