// SPDX-License-Identifier: Apache-2.0
#include "performer/data/fasta/fasta.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <unordered_set>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/detect.h"
#include "performer/data/vocabulary_text.h"

namespace performer::data {
namespace {

constexpr size_t kBuffer = size_t{1} << 18;
constexpr std::string_view kSpaces = " \t\r\v\f";

// What a byte means inside a sequence: below kPlainEnd the token itself; a token with flags; or one of the
// others.
constexpr uint16_t kPlainEnd = 256, kTokenBits = 255, kLowerFlag = 256, kAliasFlag = 512;
constexpr uint16_t kOther = 1024, kSpace = 1024, kGap = 1025, kStop = 1026, kIllegal = 1027;

// The letters of a vocabulary as FASTA files hold them.
struct Alphabet {
  explicit Alphabet(const Vocabulary& vocabulary);

  std::array<uint16_t, 256> codes;
  std::vector<AliasGroup> aliases;
  std::array<uint8_t, 256> group{};  // of a letter that is an alias: its place in `aliases`
  bool folds_case = false;           // some lower-case letter is read as upper case
  std::string accepted;              // what messages call the letters
};

Alphabet::Alphabet(const Vocabulary& vocabulary) : aliases(alias_groups(vocabulary.aliases())) {
  check<UsageError>(
      vocabulary.has_letters(),
      "the vocabulary {} cannot be read from FASTA, whose sequences are words of letters: choose "
      "another data.vocabulary or data.format",
      vocabulary.name());
  for (const char letter : std::string_view(" \t\r\v\f\n>;")) {
    check<UsageError>(vocabulary.token_of(letter) < 0,
                      "the vocabulary {} has the symbol {}, which has a meaning of its own in FASTA: set "
                      "data.format = text, or choose another data.vocabulary",
                      vocabulary.name(), letter == '\n' ? "byte 0x0a" : quoted(letter));
  }
  for (size_t i = 0; i < aliases.size(); ++i) {
    for (const unsigned char letter : aliases[i].letters) {
      group[letter] = group[std::tolower(letter)] = static_cast<uint8_t>(i);
    }
  }
  codes.fill(kIllegal);
  for (const unsigned char space : kSpaces) codes[space] = kSpace;
  codes['-'] = codes['.'] = kGap;
  codes['*'] = kStop;
  const auto is_alias = [&](char letter) {
    return std::ranges::find(vocabulary.aliases(), letter, &Vocabulary::Alias::letter) !=
           vocabulary.aliases().end();
  };
  const auto code_of = [&](char letter) {
    return static_cast<uint16_t>(vocabulary.token_of(letter) | (is_alias(letter) ? kAliasFlag : 0));
  };
  for (int byte = 0; byte < 256; ++byte) {
    const char letter = static_cast<char>(byte), upper = static_cast<char>(std::toupper(byte));
    if (vocabulary.token_of(letter) >= 0) {
      codes[byte] = code_of(letter);
    } else if (byte < 128 && vocabulary.token_of(upper) >= 0) {
      codes[byte] = code_of(upper) | kLowerFlag;
      folds_case = true;
    }
  }
  for (int64_t id = 0; id < vocabulary.symbols(); ++id) accepted += vocabulary.symbol_text(id);
  for (size_t i = 0; i < aliases.size(); ++i) {
    accepted += fmt::format("{}{} (read as {})", i + 1 < aliases.size() ? ", " : " and ", aliases[i].letters,
                            aliases[i].read_as);
  }
  if (folds_case) accepted += " in either case";
}

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

// What a file that is not FASTA seems to be, with the cure, or nothing.
std::string_view guess_format(std::string_view head) {
  if (head.starts_with("@"))
    return "; it looks like FASTQ, or another format that begins with '@': convert it";
  return packing_cure(head);
}

}  // namespace

struct FastaReader::Impl {
  Impl(std::unique_ptr<ByteSource> bytes, std::string file, const Vocabulary& symbols)
      : name(std::move(file)),
        vocabulary(symbols),
        alphabet(symbols),
        source(unpack(std::move(bytes), name)),
        buffer(kBuffer) {}

  bool next(Record& record);
  ReadReport report() const;

  // Bytes at hand; false at the end of the input.
  bool fill();
  std::string_view rest() const { return {buffer.data() + begin, end - begin}; }
  // The bytes at hand of the present line, without its end.
  std::string_view line_part() const { return rest().substr(0, rest().find('\n')); }
  // Passes `count` bytes of the present line, and the line's end when that is what follows.
  void pass(size_t count);
  void skip_line();
  // At the start of a line: moves to the first byte of text, past white space, blank lines and comments.
  // False at the end.
  bool find_text();
  void find_first_header();
  void read_header(Record& record);
  void read_sequence(Record& record);
  void read_part(std::string_view part, std::vector<Token>& tokens, const Record& record);
  void note(const Record& record);
  [[noreturn]] void fail(const Record& record, int64_t at_line, const std::string& problem) const;

  std::string name;
  Vocabulary vocabulary;
  Alphabet alphabet;
  std::unique_ptr<ByteSource> source;
  std::vector<char> buffer;
  size_t begin = 0, end = 0;
  int64_t line = 1, column = 1;  // of buffer[begin]
  bool line_start = true;        // nothing but white space so far in this line
  bool started = false;
  int64_t stop_line = 0, stop_column = 0;  // of a '*' met in the present record; line 0: none
  int64_t records = 0, tokens = 0, lower_case = 0, stops = 0, gaps = 0, duplicate_names = 0;
  std::array<int64_t, 256> aliases{};  // read, of each group
  bool looks_like_nucleotides = false;
  std::unordered_set<uint64_t> names;  // hashes: a collision among 10^8 names has probability 3e-4
};

bool FastaReader::Impl::fill() {
  if (begin < end) return true;
  begin = 0;
  end = source->read(buffer.data(), buffer.size());
  return end > 0;
}

void FastaReader::Impl::pass(size_t count) {
  begin += count;
  column += static_cast<int64_t>(count);
  if (begin < end && buffer[begin] == '\n') {
    ++begin;
    ++line;
    column = 1;
    line_start = true;
  }
}

void FastaReader::Impl::skip_line() {
  for (const int64_t here = line; line == here && fill();) pass(line_part().size());
}

bool FastaReader::Impl::find_text() {
  while (fill()) {
    const std::string_view part = line_part();
    const size_t text = part.find_first_not_of(kSpaces);
    if (text == std::string_view::npos) {
      pass(part.size());
    } else if (part[text] == ';') {
      skip_line();
    } else {
      pass(text);
      return true;
    }
  }
  return false;
}

void FastaReader::Impl::find_first_header() {
  started = true;
  check<InputError>(fill(), "{} is empty: expected FASTA, a line that begins with '>' and lines of residues",
                    name);
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  if (rest().starts_with(kByteOrderMark)) begin += kByteOrderMark.size();
  const std::string head(rest().substr(0, 8));
  check<InputError>(find_text(), "{} has no FASTA record: only blank lines and comments", name);
  check<InputError>(buffer[begin] == '>', "{} is not FASTA: line {} begins with {}, expected '>'{}", name,
                    line, quoted(buffer[begin]), guess_format(head));
}

void FastaReader::Impl::fail(const Record& record, int64_t at_line, const std::string& problem) const {
  throw InputError(
      fmt::format("{}: record {} ({}), line {}{}", name, record.number, record.id, at_line, problem));
}

void FastaReader::Impl::read_header(Record& record) {
  record.number = records + 1;
  record.line = line;
  record.header.clear();
  pass(1);  // '>'
  while (line == record.line && fill()) {
    const std::string_view part = line_part();
    record.header += part;
    pass(part.size());
  }
  record.header = std::string(trimmed(record.header));
  record.id = record.header.substr(0, record.header.find_first_of(kSpaces));
}

void FastaReader::Impl::read_sequence(Record& record) {
  record.tokens.clear();
  stop_line = 0;
  while (fill()) {
    if (line_start) {
      if (!find_text() || buffer[begin] == '>') break;
      line_start = false;
    }
    const std::string_view part = line_part();
    read_part(part, record.tokens, record);
    pass(part.size());
  }
  if (stop_line != 0) ++stops;
  if (!record.tokens.empty()) return;
  const bool old_mac = record.header.find('\r') != std::string::npos;
  fail(record, record.line,
       old_mac ? ": no sequence; the line ends are bare carriage returns: convert them, tr '\\r' '\\n'"
               : ": no sequence follows the header; remove the record or give it residues");
}

void FastaReader::Impl::read_part(std::string_view part, std::vector<Token>& tokens, const Record& record) {
  const size_t before = tokens.size();
  tokens.resize(before + part.size());
  Token* out = tokens.data() + before;
  uint16_t largest = 0;
  for (size_t i = 0; i < part.size(); ++i) {
    out[i] = alphabet.codes[static_cast<unsigned char>(part[i])];
    largest = std::max(largest, out[i]);
  }
  if (largest < kPlainEnd && stop_line == 0) return;
  size_t kept = 0;
  for (size_t i = 0; i < part.size(); ++i) {
    const uint16_t code = out[i];
    if (code < kOther) {
      if (stop_line != 0) {
        fail(record, stop_line,
             fmt::format(", column {}: '*' before the end of a sequence; only the last letter may be a stop",
                         stop_column));
      }
      lower_case += (code & kLowerFlag) != 0;
      if ((code & kAliasFlag) != 0) ++aliases[alphabet.group[static_cast<unsigned char>(part[i])]];
      out[kept++] = code & kTokenBits;
    } else if (code == kGap) {
      ++gaps;
    } else if (code == kStop && stop_line == 0) {
      stop_line = line;
      stop_column = column + static_cast<int64_t>(i);
    } else if (code != kSpace) {
      fail(record, line,
           fmt::format(
               ", column {}: illegal letter {}; accepted are {}, gaps '-' and '.', and one '*' at the end",
               column + static_cast<int64_t>(i), quoted(part[i]), alphabet.accepted));
    }
  }
  tokens.resize(before + kept);
}

bool FastaReader::Impl::next(Record& record) {
  if (!started) find_first_header();
  if (!fill()) return false;  // otherwise the next byte is the '>' of a header
  read_header(record);
  read_sequence(record);
  note(record);
  return true;
}

void FastaReader::Impl::note(const Record& record) {
  ++records;
  tokens += static_cast<int64_t>(record.tokens.size());
  if (!names.insert(stable_hash(record.id)).second) ++duplicate_names;
  constexpr size_t kLongEnough = 30;  // no protein of that length consists of four or five amino acids only
  if (records > 1 || record.tokens.size() < kLongEnough || vocabulary != Vocabulary::protein()) return;
  looks_like_nucleotides = std::ranges::all_of(record.tokens, [&](Token token) {
    return std::string_view("ACGTUN").find(vocabulary.symbol_text(token)) != std::string_view::npos;
  });
}

ReadReport FastaReader::Impl::report() const {
  ReadReport report{records, tokens, "sequences", vocabulary.unit(), {}};
  report.add(lower_case, "lower-case letters read as upper case");
  report.add(stops, "'*' at the end of a record dropped");
  report.add(gaps, "gaps dropped");
  for (size_t i = 0; i < alphabet.aliases.size(); ++i) {
    const AliasGroup& group = alphabet.aliases[i];
    report.add(aliases[i], fmt::format("{}{} read as {}", group.letters.size() > 1 ? "letters of " : "",
                                       group.letters, group.read_as));
  }
  report.add(duplicate_names, "duplicate names kept");
  report.add(
      looks_like_nucleotides,
      "first record of A, C, G, T, U and N only, read as a protein: for nucleotides set data.vocabulary "
      "to dna or rna");
  return report;
}

FastaReader::FastaReader(const std::string& path, const Vocabulary& vocabulary)
    : FastaReader(open_bytes(path), source_name(path), vocabulary) {}
FastaReader::FastaReader(std::unique_ptr<ByteSource> source, const std::string& name,
                         const Vocabulary& vocabulary)
    : impl_(std::make_unique<Impl>(std::move(source), name, vocabulary)) {}
FastaReader::~FastaReader() = default;
FastaReader::FastaReader(FastaReader&&) noexcept = default;

bool FastaReader::next(Record& record) {
  return impl_->next(record);
}
ReadReport FastaReader::report() const {
  return impl_->report();
}
const Vocabulary& FastaReader::vocabulary() const {
  return impl_->vocabulary;
}

std::string format_fasta(const std::string& header, const std::string& sequence, int width) {
  const size_t step = width > 0 ? static_cast<size_t>(width) : std::max<size_t>(sequence.size(), 1);
  std::string text = ">" + header + "\n";
  for (size_t at = 0; at < sequence.size(); at += step) text.append(sequence, at, step) += '\n';
  return text;
}

}  // namespace performer::data
