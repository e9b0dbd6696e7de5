// SPDX-License-Identifier: Apache-2.0
// What sequences consist of: a vocabulary gives every symbol (a residue, a nucleotide, a byte, a pixel's
// value) and every marker a number, its id.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace performer::data {

using Token = uint16_t;  // an id

struct VocabularyText;  // vocabulary_text.h

// Symbols have the ids 0 .. symbols() - 1; four markers follow them, in this order: BOS (begin of a
// sequence), EOS (end of a sequence), PAD (padding) and MASK (a hidden token). A vocabulary never changes;
// copies share their content and cost nothing.
class Vocabulary {
 public:
  // A letter that is no symbol and is read as one, such as J as X in proteins.
  struct Alias {
    char letter, read_as;
    bool operator==(const Alias&) const = default;
  };

  // 25 residues, with the ids of protein_lm (domains.py): A C D E F G H I K L M N P Q R S T V W Y = 0..19,
  // B O U X Z = 20..24. J (leucine or isoleucine) is read as X. The markers are written < > _ *.
  static Vocabulary protein();
  // A C G T N = 0..4. U is read as T; the IUPAC letters of several bases, B D H K M R S V W Y, are read as N.
  static Vocabulary dna();
  // A C G U N = 0..4. T is read as U; the IUPAC letters of several bases are read as N.
  static Vocabulary rna();
  // 256 byte values. No byte stands for a marker.
  static Vocabulary bytes();
  // 256 values of a channel of a pixel; written as decimal numbers separated by white space.
  static Vocabulary pixels();
  // One symbol a line, in the order of their ids; a symbol is one or more bytes. Blank lines are ignored, and
  // a line that begins with '#' is a comment. Escapes: \n \t \r \s (space) \\ \# and \xHH (a byte by its
  // hexadecimal number). The name of the vocabulary is that of the file without its ending. Throws InputError
  // naming file and line for an unknown escape, a symbol given twice, no symbol, and more than 65,532 of
  // them.
  static Vocabulary from_file(const std::string& path);
  // The vocabulary of that name (vocabulary_names()), or else the one of a file with that path. Throws
  // UsageError when it is neither.
  static Vocabulary named(const std::string& name_or_path);
  // A vocabulary of its own symbols, each of one or more bytes. Throws InputError for an empty symbol, a
  // symbol given twice, no symbol, and more than 65,532 of them; the number of the symbol counts from 1.
  static Vocabulary of_symbols(const std::string& name, const std::vector<std::string>& symbols);

  // A vocabulary of the parts that a tokenizer of another program gives (vocabulary_text.h). Throws
  // InputError as of_symbols() does, and for more reserved symbols than there are, or source ids that are not
  // one for each symbol and marker.
  static Vocabulary from_parts(VocabularyText parts);

  const std::string& name() const;  // protein, dna, rna, bytes, pixels, or what its maker called it
  // What its tokens are called in messages, in the plural: residues, nucleotides, bytes, values, tokens.
  const std::string& unit() const;
  int64_t symbols() const;
  int64_t size() const { return symbols() + 4; }  // with the markers
  bool is_symbol(int64_t id) const { return id >= 0 && id < symbols(); }
  bool is_written(int64_t id) const;  // a symbol that a text can hold: not a reserved one
  // Of a model that was imported: the ids that its symbols and markers had in the source, -1 for those that
  // are not there; empty for other vocabularies.
  const std::vector<int64_t>& source_ids() const;
  Token bos() const { return static_cast<Token>(symbols()); }
  Token eos() const { return static_cast<Token>(symbols() + 1); }
  Token pad() const { return static_cast<Token>(symbols() + 2); }
  Token mask() const { return static_cast<Token>(symbols() + 3); }

  // Ids of a text. Where several symbols fit, the longest is taken. Letters of aliases are read as what they
  // stand for. A vocabulary with marker letters (protein, dna, rna) takes those too. Throws InputError naming
  // the position (from 1, in bytes) and the byte found.
  std::vector<Token> encode(std::string_view text) const;
  // The same without markers, which are illegal here: for texts that a user gives.
  std::vector<Token> encode_symbols(std::string_view text) const;
  // Appends the ids of the longest beginning of `text` that consists of symbols, and returns its size in
  // bytes.
  size_t encode_prefix(std::string_view text, std::vector<Token>& ids) const;
  // The text of ids, as encode() reads it. Markers without a letter are written <bos> <eos> <pad> <mask>, and
  // an id outside the vocabulary '?'.
  std::string decode(std::span<const Token> ids) const;
  std::string decode(std::span<const int64_t> ids) const;
  // One id for people and tables, free of white space and control characters: as decode() writes it, with the
  // escapes of from_file() where needed.
  std::string symbol_text(int64_t id) const;

  // Id of a symbol of one byte, followed through aliases; -1 when there is none. Markers have none.
  int token_of(char letter) const;
  const std::vector<Alias>& aliases() const;
  // Whether each symbol that is written is one byte, so that a sequence can be written as a word (FASTA needs
  // this). Not pixels.
  bool has_letters() const;

  // Of the symbols, their spelling and the aliases, not of the name; the same on all machines and in all
  // releases.
  uint64_t fingerprint() const;
  bool operator==(const Vocabulary& other) const;  // the same symbols, spelling and aliases

  // The text of a model folder's tokenizer.json, and back. from_json() throws InputError naming `source`.
  std::string to_json() const;
  static Vocabulary from_json(const std::string& text, const std::string& source);

 private:
  struct Content;
  explicit Vocabulary(VocabularyText text);
  std::shared_ptr<const Content> content_;
};

// protein, dna, rna, bytes, pixels
const std::vector<std::string>& vocabulary_names();

// A byte as messages show it: 'a' in quotes when it can be printed, else as a hexadecimal number, "byte
// 0x07".
std::string quoted(char byte);

// Hash of a sequence of symbols: over one byte a token for up to 256 symbols, else over two bytes, the lower
// first. The held-out split, fingerprints and the masks of an evaluation are keyed by it.
uint64_t sequence_hash(std::span<const Token> sequence, const Vocabulary& vocabulary);

}  // namespace performer::data
