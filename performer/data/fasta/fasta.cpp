// SPDX-License-Identifier: Apache-2.0
#include "performer/data/fasta.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <unordered_set>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/vocabulary.h"

namespace performer::data {
namespace {

constexpr size_t kBuffer = size_t{1} << 18;
constexpr std::string_view kSpaces = " \t\r\v\f";

// What a byte means inside a sequence: below kPlainEnd the token itself; a token with flags; or one of the
// others.
constexpr uint8_t kPlainEnd = kResidues, kTokenBits = 31, kLowerFlag = 32, kJFlag = 64;
constexpr uint8_t kOther = 128, kSpace = 128, kGap = 129, kStop = 130, kIllegal = 255;

constexpr auto kCodes = [] {
  std::array<uint8_t, 256> table{};
  table.fill(kIllegal);
  for (uint8_t token = 0; token < kResidues; ++token) {
    const auto upper = static_cast<unsigned char>(kLetters[token]);
    table[upper] = token;
    table[upper - 'A' + 'a'] = token | kLowerFlag;
  }
  table['J'] = table['X'] | kJFlag;
  table['j'] = table['x'] | kJFlag;
  for (const unsigned char space : kSpaces) table[space] = kSpace;
  table['-'] = table['.'] = kGap;
  table['*'] = kStop;
  return table;
}();

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

// What a file that is not FASTA seems to be, with the cure, or nothing.
std::string_view guess_format(std::string_view head) {
  if (head.starts_with("BZh")) return "; it looks like bzip2: unpack it with bunzip2";
  if (head.starts_with("\xfd"
                       "7zXZ"))
    return "; it looks like xz: unpack it with xz -d";
  if (head.starts_with("PK\x03\x04")) return "; it looks like a zip archive: unpack it";
  if (head.starts_with("@"))
    return "; it looks like FASTQ, or another format that begins with '@': convert it";
  return "";
}

}  // namespace

FastaCounts& FastaCounts::operator+=(const FastaCounts& other) {
  records += other.records;
  residues += other.residues;
  lower_case += other.lower_case;
  stops += other.stops;
  gaps += other.gaps;
  j_to_x += other.j_to_x;
  duplicate_names += other.duplicate_names;
  return *this;
}

struct FastaReader::Impl {
  Impl(std::unique_ptr<ByteSource> bytes, std::string file)
      : name(std::move(file)), source(unpack(std::move(bytes), name)), buffer(kBuffer) {}

  bool next(FastaRecord& record);

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
  void read_header(FastaRecord& record);
  void read_residues(FastaRecord& record);
  void read_part(std::string_view part, std::vector<uint8_t>& tokens, const FastaRecord& record);
  [[noreturn]] void fail(const FastaRecord& record, int64_t at_line, const std::string& problem) const;

  std::string name;
  std::unique_ptr<ByteSource> source;
  std::vector<char> buffer;
  size_t begin = 0, end = 0;
  int64_t line = 1, column = 1;  // of buffer[begin]
  bool line_start = true;        // nothing but white space so far in this line
  bool started = false;
  int64_t stop_line = 0, stop_column = 0;  // of a '*' met in the present record; line 0: none
  FastaCounts counts;
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

void FastaReader::Impl::fail(const FastaRecord& record, int64_t at_line, const std::string& problem) const {
  throw InputError(
      fmt::format("{}: record {} ({}), line {}{}", name, record.number, record.id, at_line, problem));
}

void FastaReader::Impl::read_header(FastaRecord& record) {
  record.number = counts.records + 1;
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

void FastaReader::Impl::read_residues(FastaRecord& record) {
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
  if (stop_line != 0) ++counts.stops;
  if (!record.tokens.empty()) return;
  const bool old_mac = record.header.find('\r') != std::string::npos;
  fail(record, record.line,
       old_mac ? ": no sequence; the line ends are bare carriage returns: convert them, tr '\\r' '\\n'"
               : ": no sequence follows the header; remove the record or give it residues");
}

void FastaReader::Impl::read_part(std::string_view part, std::vector<uint8_t>& tokens,
                                  const FastaRecord& record) {
  const size_t before = tokens.size();
  tokens.resize(before + part.size());
  uint8_t* out = tokens.data() + before;
  uint8_t largest = 0;
  for (size_t i = 0; i < part.size(); ++i) {
    out[i] = kCodes[static_cast<unsigned char>(part[i])];
    largest = std::max(largest, out[i]);
  }
  if (largest < kPlainEnd && stop_line == 0) return;
  size_t kept = 0;
  for (size_t i = 0; i < part.size(); ++i) {
    const uint8_t code = out[i];
    if (code < kOther) {
      if (stop_line != 0) {
        fail(record, stop_line,
             fmt::format(", column {}: '*' before the end of a sequence; only the last letter may be a stop",
                         stop_column));
      }
      counts.lower_case += (code & kLowerFlag) != 0;
      counts.j_to_x += (code & kJFlag) != 0;
      out[kept++] = code & kTokenBits;
    } else if (code == kGap) {
      ++counts.gaps;
    } else if (code == kStop && stop_line == 0) {
      stop_line = line;
      stop_column = column + static_cast<int64_t>(i);
    } else if (code != kSpace) {
      fail(record, line,
           fmt::format(", column {}: illegal letter {}; accepted are {} and J (read as X) in either case, "
                       "gaps '-' and '.', "
                       "and one '*' at the end",
                       column + static_cast<int64_t>(i), quoted(part[i]), kLetters.substr(0, kResidues)));
    }
  }
  tokens.resize(before + kept);
}

bool FastaReader::Impl::next(FastaRecord& record) {
  if (!started) find_first_header();
  if (!fill()) return false;  // otherwise the next byte is the '>' of a header
  read_header(record);
  read_residues(record);
  ++counts.records;
  counts.residues += static_cast<int64_t>(record.tokens.size());
  if (!names.insert(stable_hash(record.id)).second) ++counts.duplicate_names;
  return true;
}

FastaReader::FastaReader(const std::string& path) : FastaReader(open_bytes(path), source_name(path)) {}
FastaReader::FastaReader(std::unique_ptr<ByteSource> source, const std::string& name)
    : impl_(std::make_unique<Impl>(std::move(source), name)) {}
FastaReader::~FastaReader() = default;
FastaReader::FastaReader(FastaReader&&) noexcept = default;

bool FastaReader::next(FastaRecord& record) {
  return impl_->next(record);
}
const FastaCounts& FastaReader::counts() const {
  return impl_->counts;
}

std::string format_fasta(const std::string& header, const std::string& residues, int width) {
  const size_t step = width > 0 ? static_cast<size_t>(width) : std::max<size_t>(residues.size(), 1);
  std::string text = ">" + header + "\n";
  for (size_t at = 0; at < residues.size(); at += step) text.append(residues, at, step) += '\n';
  return text;
}

}  // namespace performer::data
