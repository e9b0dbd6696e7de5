// SPDX-License-Identifier: Apache-2.0
#include "performer/data/variant.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

#include "performer/base/error.h"

namespace performer::data {
namespace {

using Kind = Edit::Kind;

struct Code {
  const char* three;
  char one;
};
// IUPAC-IUB 1983, with the codes of HGVS.
constexpr std::array<Code, 26> kCodes = {
    {{"Ala", 'A'}, {"Arg", 'R'}, {"Asn", 'N'}, {"Asp", 'D'}, {"Cys", 'C'}, {"Gln", 'Q'}, {"Glu", 'E'},
     {"Gly", 'G'}, {"His", 'H'}, {"Ile", 'I'}, {"Leu", 'L'}, {"Lys", 'K'}, {"Met", 'M'}, {"Phe", 'F'},
     {"Pro", 'P'}, {"Ser", 'S'}, {"Thr", 'T'}, {"Trp", 'W'}, {"Tyr", 'Y'}, {"Val", 'V'}, {"Asx", 'B'},
     {"Glx", 'Z'}, {"Sec", 'U'}, {"Pyl", 'O'}, {"Xaa", 'X'}, {"Ter", '*'}}};
constexpr int64_t kLargestPosition = int64_t{1} << 40;

bool is_letter(char letter) {
  return letter >= 'A' && letter <= 'Z';
}
bool is_digit(char letter) {
  return letter >= '0' && letter <= '9';
}

// Reads one change from its beginning to its end.
class EditParser {
 public:
  explicit EditParser(std::string_view text) : whole_(text), rest_(text) {}

  Edit parse() {
    Edit edit;
    edit.first_letter = letter("the residue that is changed, such as A or Ala");
    edit.first = edit.last = position();
    if (take("_")) {
      edit.last_letter = letter("the last residue of the range");
      edit.last = position();
      if (edit.last <= edit.first) fail("a range whose end is behind its beginning");
      read_range(edit);
    } else {
      edit.last_letter = edit.first_letter;
      read_single(edit);
    }
    if (!rest_.empty()) fail("the end of the variant");
    return edit;
  }

 private:
  [[noreturn]] void fail(const std::string& expected) const {
    throw InputError(fmt::format("'{}' is no variant: expected {}, found {}", shown(whole_), expected,
                                 rest_.empty() ? "its end" : fmt::format("'{}'", shown(rest_))));
  }
  bool take(std::string_view word) {
    if (!rest_.starts_with(word)) return false;
    rest_.remove_prefix(word.size());
    return true;
  }

  // One residue, as a letter or as a code of three; '\0' when none stands here.
  char letter_or_none() {
    for (const Code& code : kCodes) {
      const bool same =
          rest_.size() >= 3 &&
          std::ranges::equal(rest_.substr(0, 3), std::string_view(code.three), [](char a, char b) {
            return std::tolower(static_cast<unsigned char>(a)) == std::tolower(static_cast<unsigned char>(b));
          });
      // In ALA24PRO as in Ala24Pro; AL and A of insAL are letters of their own.
      const bool shaped = same && rest_[0] == code.three[0] &&
                          ((rest_[1] == code.three[1] && rest_[2] == code.three[2]) || is_code_of_capitals());
      if (!shaped) continue;
      rest_.remove_prefix(3);
      return code.one;
    }
    if (rest_.empty() || !(is_letter(rest_[0]) || rest_[0] == '*')) return '\0';
    const char one = rest_[0];
    rest_.remove_prefix(1);
    return one;
  }
  // Three capitals are a code where the variant begins so and a number follows, as in ALA24PRO.
  bool is_code_of_capitals() const {
    const auto first_digit = std::ranges::find_if(whole_, is_digit) - whole_.begin();
    return first_digit == 3;
  }
  char letter(const std::string& expected) {
    const char one = letter_or_none();
    if (one == '\0') fail(expected);
    return one;
  }
  std::string letters(const std::string& expected) {
    std::string all;
    for (char one = letter_or_none(); one != '\0'; one = letter_or_none()) all += one;
    if (all.empty()) fail(expected);
    if (all.find('*') != std::string::npos) {
      throw InputError(fmt::format(
          "'{}' inserts a stop: give the sequence that remains as a deletion to the end", shown(whole_)));
    }
    return all;
  }
  int64_t position() {
    int64_t number = 0;
    size_t digits = 0;
    for (; digits < rest_.size() && is_digit(rest_[digits]) && number < kLargestPosition; ++digits) {
      number = 10 * number + (rest_[digits] - '0');
    }
    if (digits == 0) fail("a position, a number from 1 on");
    rest_.remove_prefix(digits);
    if (number < 1 || number >= kLargestPosition) {
      throw InputError(fmt::format("'{}' is no variant: positions count from 1", shown(whole_)));
    }
    return number;
  }
  void refuse(const char* what) const {
    throw InputError(fmt::format(
        "'{}' is {}, which does not say what the changed sequence is: give the sequence itself, in a "
        "column mutated_sequence",
        shown(whole_), what));
  }

  void read_range(Edit& edit) {
    if (take("delins")) {
      edit.kind = Kind::delins;
      edit.letters = letters("what is inserted");
    } else if (take("del")) {
      edit.kind = Kind::deletion;
    } else if (take("dup")) {
      edit.kind = Kind::duplication;
    } else if (take("ins")) {
      if (edit.last != edit.first + 1) fail("an insertion between two neighbouring positions");
      edit.kind = Kind::insertion;
      edit.letters = letters("what is inserted");
    } else {
      fail("del, ins, dup or delins");
    }
  }

  void read_single(Edit& edit) {
    if (take("delins")) {
      edit.kind = Kind::delins;
      edit.letters = letters("what is inserted");
    } else if (take("del") || take("-")) {
      edit.kind = Kind::deletion;
    } else if (take("dup")) {
      edit.kind = Kind::duplication;
    } else if (take("=")) {
      edit.letters = edit.first_letter;
    } else if (rest_.find("fs") != std::string_view::npos) {
      refuse("a frameshift");
    } else if (rest_.find("ext") != std::string_view::npos) {
      refuse("an extension");
    } else {
      const char to = letter("the new residue, del, dup or delins");
      edit.kind = to == '*' ? Kind::stop : Kind::substitution;
      if (to != '*') edit.letters = to;
    }
    if (edit.first_letter == '*') refuse("a change of the stop, an extension");
  }

  std::string_view whole_, rest_;
};

std::string_view trimmed(std::string_view text) {
  const auto blank = [](char letter) {
    return letter == ' ' || letter == '\t' || letter == '\r' || letter == '\n';
  };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

// Without what surrounds the changes: a reference and "p.", parentheses, brackets.
std::string_view bare(std::string_view text) {
  const std::string_view whole = text;
  text = trimmed(text);
  if (const size_t place = text.rfind(":p."); place != std::string_view::npos) text.remove_prefix(place + 1);
  if (text.starts_with("p.")) text.remove_prefix(2);
  for (const char* change : {"c.", "g.", "n.", "m.", "r."}) {
    const size_t place = text.find(fmt::format(":{}", change));
    check<InputError>(!text.starts_with(change) && place == std::string_view::npos,
                      "'{}' is a change of nucleotides: give that of the protein, such as p.Ala24Pro",
                      shown(whole));
  }
  for (const char* pair : {"()", "[]", "()"}) {
    if (text.size() < 2 || text.front() != pair[0]) continue;
    check<InputError>(text.back() == pair[1],
                      "'{}' is no variant: expected '{}' at its end, since it begins with '{}'", shown(whole),
                      pair[1], pair[0]);
    text = text.substr(1, text.size() - 2);
  }
  return trimmed(text);
}

// Where an edit changes the sequence, half open: what two edits of one variant must not share.
struct Range {
  int64_t begin, end;
};
Range range_of(const Edit& edit) {
  switch (edit.kind) {
    case Kind::insertion:
      return {edit.first + 1, edit.first + 1};
    case Kind::duplication:
      return {edit.last + 1, edit.last + 1};
    case Kind::stop:
      return {edit.first, kLargestPosition};
    default:
      return {edit.first, edit.last + 1};
  }
}

void sort_edits(std::vector<Edit>& edits, std::string_view text) {
  std::ranges::stable_sort(
      edits, {}, [](const Edit& edit) { return std::pair(range_of(edit).begin, range_of(edit).end); });
  for (size_t i = 0; i + 1 < edits.size(); ++i) {
    const Range one = range_of(edits[i]), next = range_of(edits[i + 1]);
    check<InputError>(
        one.end <= next.begin && (one.begin != next.begin || one.begin != one.end || next.begin != next.end),
        "'{}' changes position {} twice", shown(text), next.begin);
  }
}

std::string ends_text(const Edit& edit) {
  std::string text = edit.first_letter + std::to_string(edit.first);
  if (edit.last != edit.first) text += fmt::format("_{}{}", edit.last_letter, edit.last);
  return text;
}

}  // namespace

std::vector<Edit> parse_variant(std::string_view text) {
  const std::string_view inner = bare(text);
  check<InputError>(!inner.empty(),
                    "an empty cell where a variant such as A24P is expected; the wild type is WT");
  std::vector<Edit> edits;
  if (inner == "WT" || inner == "wt" || inner == "_wt" || inner == "=") return edits;
  for (size_t begin = 0; begin <= inner.size();) {
    const size_t end = std::min(inner.find_first_of(":;,+", begin), inner.size());
    edits.push_back(EditParser(trimmed(inner.substr(begin, end - begin))).parse());
    begin = end + 1;
  }
  sort_edits(edits, text);
  return edits;
}

std::string to_text(const std::vector<Edit>& edits) {
  std::vector<std::string> texts;
  for (const Edit& edit : edits) {
    const std::string ends = ends_text(edit);
    switch (edit.kind) {
      case Kind::substitution:
        texts.push_back(ends + edit.letters);
        break;
      case Kind::deletion:
        texts.push_back(ends + "del");
        break;
      case Kind::insertion:
        texts.push_back(ends + "ins" + edit.letters);
        break;
      case Kind::duplication:
        texts.push_back(ends + "dup");
        break;
      case Kind::delins:
        texts.push_back(ends + "delins" + edit.letters);
        break;
      case Kind::stop:
        texts.push_back(ends + "*");
        break;
    }
  }
  return texts.empty() ? "WT" : fmt::format("{}", fmt::join(texts, ":"));
}

void check_edits(const std::vector<Edit>& edits, const std::vector<Token>& wild_type,
                 const Vocabulary& vocabulary, int64_t offset) {
  const int64_t length = std::ssize(wild_type);
  const auto check_place = [&](int64_t written, char letter) {
    const int64_t position = written - offset;
    check<InputError>(
        position >= 1 && position <= length,
        "position {} is outside the wild type, which has {} to {}; if it is numbered from elsewhere, give "
        "--offset",
        written, 1 + offset, length + offset);
    const int found = vocabulary.token_of(letter);
    check<InputError>(found >= 0, "'{}' is no symbol of the vocabulary {}", letter, vocabulary.name());
    const Token there = wild_type[static_cast<size_t>(position - 1)];
    check<InputError>(
        found == there,
        "expected {} at position {} of the wild type, found {}: it is another sequence, or numbered from "
        "elsewhere (--offset)",
        letter, written, vocabulary.symbol_text(there));
  };
  for (const Edit& edit : edits) {
    check_place(edit.first, edit.first_letter);
    if (edit.last != edit.first) check_place(edit.last, edit.last_letter);
    for (const char letter : edit.letters) {
      check<InputError>(vocabulary.token_of(letter) >= 0,
                        "the new residue '{}' is no symbol of the vocabulary {}", letter, vocabulary.name());
    }
  }
}

std::vector<Token> apply_edits(const std::vector<Edit>& edits, const std::vector<Token>& wild_type,
                               const Vocabulary& vocabulary, int64_t offset) {
  std::vector<Token> result;
  int64_t next = 0;  // place of the wild type that comes next, from 0
  const auto copy_until = [&](int64_t end) {
    if (end > next) result.insert(result.end(), wild_type.begin() + next, wild_type.begin() + end);
    next = std::max(next, end);
  };
  for (const Edit& edit : edits) {
    const int64_t first = edit.first - offset - 1, end = edit.last - offset;
    const bool adds = edit.kind == Kind::insertion || edit.kind == Kind::duplication;
    copy_until(edit.kind == Kind::insertion ? first + 1 : adds ? end : first);
    if (edit.kind == Kind::duplication) {
      result.insert(result.end(), wild_type.begin() + first, wild_type.begin() + end);
    }
    for (const char letter : edit.letters) result.push_back(static_cast<Token>(vocabulary.token_of(letter)));
    if (edit.kind == Kind::stop) return result;
    if (!adds) next = end;
  }
  copy_until(std::ssize(wild_type));
  return result;
}

bool only_substitutions(const std::vector<Edit>& edits) {
  return std::ranges::all_of(edits, [](const Edit& edit) { return edit.kind == Kind::substitution; });
}

}  // namespace performer::data
