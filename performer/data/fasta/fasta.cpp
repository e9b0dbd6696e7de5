// SPDX-License-Identifier: Apache-2.0
#include "performer/data/fasta/fasta.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <unordered_set>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/base/printable.h"
#include "performer/data/characters.h"
#include "performer/data/detect.h"
#include "performer/data/fasta/line_shape.h"
#include "performer/data/foreign.h"
#include "performer/data/vocabulary_text.h"

namespace performer::data {
namespace {

constexpr std::string_view kSpaces = " \t\r\v\f";
constexpr char kEntryEnd = '\x01';  // between the entries that one header of NCBI's nr joins
constexpr size_t kLongestHeader = size_t{1} << 24, kMostNames = size_t{1} << 24;
constexpr size_t kShownLine = 40;  // of a line in messages

// What a byte means inside a sequence: below kPlainEnd the token itself; a token with flags; or one of the
// others.
constexpr uint16_t kPlainEnd = 256, kTokenBits = 255, kLowerFlag = 256, kAliasFlag = 512;
constexpr uint16_t kOther = 1024, kSpace = 1024, kGap = 1025, kStop = 1026, kIllegal = 1027;

// The letters of a vocabulary as FASTA files hold them.
struct Alphabet {
  explicit Alphabet(const Vocabulary& vocabulary);

  std::array<uint16_t, 256> codes;
  std::vector<AliasGroup> aliases;
  std::array<uint8_t, 256> group{};       // of a letter that is an alias: its place in `aliases`
  bool folds_case = false;                // some lower-case letter is read as upper case
  std::string accepted;                   // what messages call the letters
  std::array<uint8_t, 256> nucleotide{};  // of a token: a bit for A, C, G, T or U, N; 0 for others
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
  for (int64_t id = 0; vocabulary.is_written(id); ++id) accepted += vocabulary.symbol_text(id);
  for (const auto& [letter, bit] : {std::pair('A', 1), {'C', 2}, {'G', 4}, {'T', 8}, {'U', 8}, {'N', 16}}) {
    const int token = vocabulary.token_of(letter);
    if (token >= 0) nucleotide[static_cast<size_t>(token)] = static_cast<uint8_t>(bit);
  }
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

}  // namespace

struct FastaReader::Impl {
  Impl(std::unique_ptr<ByteSource> bytes, std::string file, const Vocabulary& symbols, int64_t most)
      : name(std::move(file)),
        vocabulary(symbols),
        alphabet(symbols),
        longest(most),
        source(unpack(std::move(bytes), name)),
        buffer(new char[kReadBytes]) {
    find_first_header();
  }

  bool next(Record& record);
  ReadReport report() const;

  // Bytes at hand; false at the end of the input.
  bool fill();
  std::string_view rest() const { return {buffer.get() + begin, end - begin}; }
  // The bytes at hand of the present line, without its end.
  std::string_view line_part() const { return rest().substr(0, rest().find('\n')); }
  // Passes `count` bytes of the present line, and the line's end when that is what follows.
  void pass(size_t count);
  void skip_comment();
  // At the start of a line: moves to the first byte of text, past white space, blank lines and comments.
  // False at the end.
  bool find_text();
  void find_first_header();
  void read_header(Record& record);
  void read_sequence(Record& record);
  void read_part(std::string_view part, std::vector<Token>& tokens, const Record& record);
  // Meets a letter that is none of the plain ones at part[at]; returns whether its token is kept.
  bool read_special(std::string_view part, size_t at, uint16_t code, const Record& record);
  // Ends a line of a sequence, of which line_head holds the first `known` bytes or more.
  void end_line(const Record& record, size_t known = kShownLine);
  void note(const Record& record);
  bool looks_like_nucleotides(const std::vector<Token>& sequence) const;
  // The bytes at hand from `at` on, at least four where the input has them. Only before an error: it reads
  // ahead.
  std::string following(size_t at);
  [[noreturn]] void fail(const Record& record, int64_t at_line, const std::string& problem) const;
  [[noreturn]] void fail_at_letter(const Record& record, std::string_view part, size_t at);

  std::string name;
  Vocabulary vocabulary;
  Alphabet alphabet;
  int64_t longest;
  PeekedSource source;
  std::unique_ptr<char[]> buffer;  // of kReadBytes
  size_t begin = 0, end = 0;
  int64_t line = 1, column = 1;            // of buffer[begin]
  bool line_start = true;                  // nothing but white space so far in this line
  LineShape shape;                         // of the present line of a sequence
  std::string line_head;                   // its first bytes
  size_t head_before = 0;                  // how many of them came before the part that is being read
  bool after_return = false;               // it has a carriage return, and no letter behind it so far
  int64_t stop_line = 0, stop_column = 0;  // of a '*' met in the present record; line 0: none
  int64_t records = 0, tokens = 0, lower_case = 0, stops = 0, gaps = 0, blanks = 0, returns = 0;
  int64_t duplicate_names = 0, joined_headers = 0, control_names = 0, nucleotides = 0, unchecked_names = 0;
  std::array<int64_t, 256> aliases{};  // read, of each group
  std::unordered_set<uint64_t> names;  // hashes: a collision among 10^8 names has probability 3e-4
};

bool FastaReader::Impl::fill() {
  if (begin < end) return true;
  begin = 0;
  end = source.read(buffer.get(), kReadBytes);
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

void FastaReader::Impl::skip_comment() {
  bool returned = false;
  for (const int64_t here = line; line == here && fill();) {
    const std::string_view part = line_part();
    for (const char letter : part) {
      check<InputError>(
          !returned || kSpaces.find(letter) != std::string_view::npos,
          "{}: line {}: the comment ends with a bare carriage return, as on an old Mac: convert them, tr "
          "'\\r' '\\n'",
          name, line);
      returned |= letter == '\r';
    }
    pass(part.size());
  }
}

bool FastaReader::Impl::find_text() {
  while (fill()) {
    const std::string_view part = line_part();
    const size_t text = part.find_first_not_of(kSpaces);
    if (text == std::string_view::npos) {
      pass(part.size());
    } else if (part[text] == ';') {
      skip_comment();
    } else {
      pass(text);
      return true;
    }
  }
  return false;
}

void FastaReader::Impl::find_first_header() {
  const std::string_view head = source.peek(kLook);
  check<InputError>(!head.empty(), "{} is empty: expected FASTA, a line that begins with '>' and lines of {}",
                    name, vocabulary.unit());
  const std::optional<Foreign> foreign = identify_beside_fasta(head);
  check<InputError>(!foreign || !fasta_header(head), "{} is not FASTA{}", name, looks_like(foreign));
  fill();
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  if (rest().starts_with(kByteOrderMark)) begin += kByteOrderMark.size();
  check<InputError>(find_text(), "{} has no FASTA record: only blank lines and comments", name);
  check<InputError>(buffer[begin] == '>', "{} is not FASTA: line {} begins with {}, expected '>'{}", name,
                    line, quoted(buffer[begin]), looks_like(foreign));
}

void FastaReader::Impl::fail(const Record& record, int64_t at_line, const std::string& problem) const {
  throw InputError(
      fmt::format("{}: record {} ({}), line {}{}", name, record.number, shown(record.id), at_line, problem));
}

std::string FastaReader::Impl::following(size_t at) {
  constexpr size_t kCharacter = 4;
  std::string bytes(buffer.get() + at, std::min(kCharacter, end - at));
  while (bytes.size() < kCharacter) {
    char next = 0;
    if (source.read(&next, 1) == 0) break;
    bytes += next;
  }
  return bytes;
}

void FastaReader::Impl::fail_at_letter(const Record& record, std::string_view part, size_t at) {
  const char letter = part[at];
  const bool nucleotides = vocabulary == Vocabulary::dna() || vocabulary == Vocabulary::rna();
  std::string note = character_note(following(static_cast<size_t>(part.data() - buffer.get()) + at));
  std::string cure;
  if (letter == '>') {
    note = " (the line end before a header is missing, or is a bare carriage return: begin a new line there)";
  } else if (letter >= '0' && letter <= '9' && !shape.has_blanks()) {
    note = " (if it counts positions, remove it)";
  } else if (nucleotides && Vocabulary::protein().token_of(
                                static_cast<char>(std::toupper(static_cast<unsigned char>(letter)))) >= 0) {
    cure =
        "; the sequences seem to be proteins: a model of nucleotides cannot read them, and data are read as "
        "proteins "
        "with data.vocabulary = protein";
  }
  if (shape.has_blanks() && letter != '>') {
    cure += fmt::format("; the line begins with '{}': if these are words, remove it",
                        shown(std::string_view(line_head).substr(0, head_before + at)));
  }
  fail(record, line,
       fmt::format(
           ", column {}: illegal letter {}{}; accepted are {}, gaps '-' and '.', and one '*' at the end{}",
           column + static_cast<int64_t>(at), quoted(letter), note, alphabet.accepted, cure));
}

void FastaReader::Impl::read_header(Record& record) {
  record.number = records + 1;
  record.line = line;
  record.header.clear();
  pass(1);  // '>'
  while (line == record.line && fill()) {
    const std::string_view part = line_part();
    record.header += part;
    check<InputError>(record.header.size() <= kLongestHeader,
                      "{}: record {}, line {}: the header has more than {} bytes", name, record.number,
                      record.line, kLongestHeader);
    pass(part.size());
  }
  record.header = std::string(trimmed(record.header));
  record.id =
      record.header.substr(0, std::min(record.header.find_first_of(kSpaces), record.header.find(kEntryEnd)));
  if (record.header.find('\r') != std::string::npos) {
    fail(record, record.line,
         ": lines end with bare carriage returns, as on an old Mac: convert them, tr '\\r' '\\n'");
  }
  if (is_pir_header(record.header)) {
    fail(record, record.line,
         fmt::format(": the header is one of PIR (NBRF){}", looks_like(identify(">P1;X"))));
  }
}

void FastaReader::Impl::read_sequence(Record& record) {
  record.tokens.clear();
  stop_line = 0;
  shape.begin_record();
  while (fill()) {
    if (line_start) {
      end_line(record);
      if (!find_text() || buffer[begin] == '>') break;
      line_start = false;
      line_head.clear();
    }
    const std::string_view part = line_part();
    read_part(part, record.tokens, record);
    pass(part.size());
  }
  end_line(record);
  if (stop_line != 0) ++stops;
  if (record.tokens.empty()) {
    fail(record, record.line,
         ": no sequence follows the header; remove the record or give it " + vocabulary.unit());
  }
}

void FastaReader::Impl::end_line(const Record& record, size_t known) {
  blanks += shape.blanks_between();
  after_return = false;
  if (shape.end_line() && alphabet.folds_case) {
    fail(record, line - (line_start ? 1 : 0),
         fmt::format(
             ": the line reads like words, not like {}: '{}'; remove it, or, if these are {}, write them in "
             "capitals without blanks",
             vocabulary.unit(), shown(std::string_view(line_head).substr(0, known)), vocabulary.unit()));
  }
}

void FastaReader::Impl::read_part(std::string_view part, std::vector<Token>& tokens, const Record& record) {
  head_before = line_head.size();
  if (line_head.size() < kShownLine) line_head += part.substr(0, kShownLine - line_head.size());
  const size_t before = tokens.size();
  tokens.resize(before + part.size());
  Token* out = tokens.data() + before;
  uint16_t largest = 0;
  for (size_t i = 0; i < part.size(); ++i) {
    out[i] = alphabet.codes[static_cast<unsigned char>(part[i])];
    largest = std::max(largest, out[i]);
  }
  size_t kept = part.size();
  if (largest < kPlainEnd && stop_line == 0 && !after_return) {
    shape.add_capitals(static_cast<int64_t>(part.size()));
  } else {
    kept = 0;
    for (size_t i = 0; i < part.size(); ++i) {
      const uint16_t code = out[i];
      if (read_special(part, i, code, record)) out[kept++] = code & kTokenBits;
    }
  }
  tokens.resize(before + kept);
  if (std::ssize(tokens) > longest) {
    fail(record, line,
         fmt::format(": the sequence has more than {} {}: split it", longest, vocabulary.unit()));
  }
}

bool FastaReader::Impl::read_special(std::string_view part, size_t at, uint16_t code, const Record& record) {
  const char letter = part[at];
  if (code == kSpace) {
    // A bare carriage return ends a line; what an old Mac wrote is one long line.
    if (letter == '\r') after_return = true;
    shape.add_blank();
    return false;
  }
  if (after_return && code != kIllegal) {
    ++returns;
    end_line(record, head_before + at);
  }
  if (code == kGap) {
    ++gaps;
    shape.add_capitals(1);
  } else if (code == kStop && stop_line == 0) {
    stop_line = line;
    stop_column = column + static_cast<int64_t>(at);
    shape.add_capitals(1);
  } else if (code >= kOther) {
    fail_at_letter(record, part, at);
  } else {
    if (stop_line != 0) {
      fail(record, stop_line,
           fmt::format(", column {}: '*' before the end of a sequence; only the last letter may be a stop",
                       stop_column));
    }
    if ((code & kLowerFlag) != 0) {
      ++lower_case;
      shape.add_small();
    } else {
      shape.add_capitals(1);
    }
    if ((code & kAliasFlag) != 0) ++aliases[alphabet.group[static_cast<unsigned char>(letter)]];
    return true;
  }
  return false;
}

bool FastaReader::Impl::next(Record& record) {
  if (!fill()) return false;  // otherwise the next byte is the '>' of a header
  read_header(record);
  read_sequence(record);
  note(record);
  return true;
}

void FastaReader::Impl::note(const Record& record) {
  ++records;
  tokens += static_cast<int64_t>(record.tokens.size());
  const uint64_t hash = stable_hash(record.id);
  if (names.size() < kMostNames) {
    if (!names.insert(hash).second) ++duplicate_names;
  } else if (names.contains(hash)) {
    ++duplicate_names;
  } else {
    ++unchecked_names;
  }
  joined_headers += record.header.find(kEntryEnd) != std::string::npos;
  control_names += std::ranges::any_of(
      record.id, [](char letter) { return static_cast<unsigned char>(letter) < ' ' || letter == 127; });
  nucleotides += looks_like_nucleotides(record.tokens);
}

bool FastaReader::Impl::looks_like_nucleotides(const std::vector<Token>& sequence) const {
  constexpr size_t kLongEnough = 30;  // hardly a protein of that length has these amino acids only
  if (sequence.size() < kLongEnough || vocabulary != Vocabulary::protein()) return false;
  int met = 0;
  for (const Token token : sequence) {
    if (alphabet.nucleotide[token] == 0) return false;
    met |= alphabet.nucleotide[token];
  }
  return (met & 15) == 15;  // A, C, G and T or U; antifreeze proteins of A and T exist
}

ReadReport FastaReader::Impl::report() const {
  ReadReport report{records, tokens, "sequences", vocabulary.unit(), {}};
  report.add(lower_case, "lower-case letters read as upper case");
  report.add(stops, "'*' at the end of a record dropped");
  report.add(gaps, "gaps dropped");
  report.add(blanks, "blanks between letters dropped");
  report.add(returns, "bare carriage returns within sequences read as line ends");
  for (size_t i = 0; i < alphabet.aliases.size(); ++i) {
    const AliasGroup& group = alphabet.aliases[i];
    report.add(aliases[i], fmt::format("{}{} read as {}", group.letters.size() > 1 ? "letters of " : "",
                                       group.letters, group.read_as));
  }
  report.add(duplicate_names, "duplicate names kept");
  report.add(unchecked_names, fmt::format("names behind the first {} not looked for among them", kMostNames));
  report.add(joined_headers, "headers of several entries (joined by Ctrl-A), named by the first");
  report.add(control_names, "names with control characters kept");
  report.add(nucleotides,
             "sequences of A, C, G, T, U and N only, read as proteins: if they are DNA or RNA, "
             "data.vocabulary must be dna "
             "or rna");
  return report;
}

FastaReader::FastaReader(const std::string& path, const Vocabulary& vocabulary)
    : FastaReader(open_bytes(path), source_name(path), vocabulary) {}
FastaReader::FastaReader(std::unique_ptr<ByteSource> source, const std::string& name,
                         const Vocabulary& vocabulary, int64_t longest)
    : impl_(std::make_unique<Impl>(std::move(source), name, vocabulary, longest)) {}
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
