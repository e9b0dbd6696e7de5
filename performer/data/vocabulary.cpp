// SPDX-License-Identifier: Apache-2.0
#include "performer/data/vocabulary.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <optional>
#include <unordered_map>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/vocabulary_text.h"

namespace performer::data {

struct Vocabulary::Content : VocabularyText {
  explicit Content(VocabularyText text);

  // What the parts give together.
  std::array<std::string, 4> markers;             // as they are written
  std::array<int, 256> of_byte;                   // id of a symbol of one byte, aliases included; -1: none
  std::unordered_map<std::string, Token> longer;  // symbols of two bytes and more
  std::unordered_map<uint64_t, Token> of_number;  // where symbols are numbers
  size_t longest = 1;

  // The id at the beginning of `text`, which is not empty, and its size in bytes; -1: none.
  std::pair<int, size_t> first(std::string_view text) const;
  std::string accepted() const;  // what messages say that encode() reads
  std::vector<Token> encode_letters(std::string_view text, bool with_markers) const;
  int64_t written() const { return std::ssize(symbols) - reserved; }
  std::vector<Token> encode_numbers(std::string_view text) const;
  size_t encode_number_prefix(std::string_view text, std::vector<Token>& ids) const;
  template <class Id>
  std::string decode(std::span<const Id> ids) const;
};

namespace {

constexpr std::array<const char*, 4> kMarkerNames = {"<bos>", "<eos>", "<pad>", "<mask>"};
constexpr std::string_view kWhite = " \t\n\r\v\f";

std::vector<std::string> letters(std::string_view text) {
  std::vector<std::string> symbols;
  for (const char letter : text) symbols.emplace_back(1, letter);
  return symbols;
}

std::vector<Vocabulary::Alias> read_as_n(Vocabulary::Alias first) {
  std::vector<Vocabulary::Alias> aliases{first};
  for (const char letter : std::string_view("BDHKMRSVWY")) aliases.push_back({letter, 'N'});
  return aliases;
}

}  // namespace

Vocabulary::Content::Content(VocabularyText text) : VocabularyText(std::move(text)) {
  for (size_t i = 0; i < markers.size(); ++i) {
    markers[i] = marker_letters.empty() ? kMarkerNames[i] : std::string(1, marker_letters[i]);
  }
  of_byte.fill(-1);
  for (int64_t id = 0; id < written(); ++id) {
    const std::string& symbol = symbols[id];
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(symbol.data(), symbol.data() + symbol.size(), value);
    if (numbers && error == std::errc() && end == symbol.data() + symbol.size())
      of_number.emplace(value, static_cast<Token>(id));
    if (symbol.size() == 1) {
      of_byte[static_cast<unsigned char>(symbol[0])] = static_cast<int>(id);
    } else {
      longer.emplace(symbol, static_cast<Token>(id));
    }
    longest = std::max(longest, symbol.size());
  }
  for (const Alias& alias : aliases) {
    of_byte[static_cast<unsigned char>(alias.letter)] = of_byte[static_cast<unsigned char>(alias.read_as)];
  }
}

std::pair<int, size_t> Vocabulary::Content::first(std::string_view text) const {
  for (size_t size = std::min(longest, text.size()); size > 1; --size) {
    const auto found = longer.find(std::string(text.substr(0, size)));
    if (found != longer.end()) return {found->second, size};
  }
  return {of_byte[static_cast<unsigned char>(text[0])], 1};
}

std::string Vocabulary::Content::accepted() const {
  if (longest > 1) return fmt::format("one of the {} symbols of the vocabulary {}", symbols.size(), name);
  std::string text = marker_letters.empty() ? fmt::format("the symbols of the vocabulary {} (", name)
                                            : fmt::format("upper-case {} (", unit);
  for (const std::string& symbol : symbols) text += escape(symbol);
  for (const AliasGroup& group : alias_groups(aliases)) {
    text += fmt::format("; {} {} read as {}", group.letters, group.letters.size() == 1 ? "is" : "are",
                        group.read_as);
  }
  return text + ")";
}

std::vector<Token> Vocabulary::Content::encode_letters(std::string_view text, bool with_markers) const {
  std::vector<Token> ids;
  ids.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    auto [id, size] = first(text.substr(at));
    if (id < 0 && with_markers) {
      const auto marker = std::ranges::find(markers, text.substr(at, 1));
      if (marker != markers.end()) id = static_cast<int>(symbols.size() + (marker - markers.begin()));
    }
    check<InputError>(id >= 0, "illegal letter {} at position {} of a sequence: expected {}{}",
                      quoted(text[at]), at + 1, accepted(),
                      with_markers ? fmt::format(" or the markers {}", fmt::join(markers, " ")) : "");
    ids.push_back(static_cast<Token>(id));
    at += size;
  }
  return ids;
}

// Numbers up to the first one that is no symbol, or the first other character.
size_t Vocabulary::Content::encode_number_prefix(std::string_view text, std::vector<Token>& ids) const {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const auto found = of_number.find(value);
  if (error != std::errc() || found == of_number.end()) return 0;
  ids.push_back(found->second);
  return static_cast<size_t>(end - text.data());
}

std::vector<Token> Vocabulary::Content::encode_numbers(std::string_view text) const {
  std::vector<Token> ids;
  size_t at = 0;
  while ((at = text.find_first_not_of(kWhite, at)) != std::string_view::npos) {
    const std::string_view word = text.substr(at, text.find_first_of(kWhite, at) - at);
    check<InputError>(encode_number_prefix(word, ids) == word.size(),
                      "\"{}\" at position {} of a sequence is no value of the vocabulary {}: expected whole "
                      "numbers from {} "
                      "to {}, separated by white space",
                      word, at + 1, name, symbols.front(), symbols[static_cast<size_t>(written() - 1)]);
    at += word.size();
  }
  return ids;
}

template <class Id>
std::string Vocabulary::Content::decode(std::span<const Id> ids) const {
  std::string text;
  text.reserve(ids.size());
  for (const int64_t id : ids) {
    if (numbers && !text.empty()) text += ' ';
    if (id >= 0 && id < std::ssize(symbols)) {
      text += symbols[id];
    } else if (id >= 0 && id < std::ssize(symbols) + 4) {
      text += markers[id - std::ssize(symbols)];
    } else {
      text += '?';
    }
  }
  return text;
}

Vocabulary::Vocabulary(VocabularyText text) : content_(std::make_shared<const Content>(std::move(text))) {}

// The factories keep what they make: copies of it share one content, so that comparing them costs nothing.
Vocabulary Vocabulary::protein() {
  static const Vocabulary vocabulary({.name = "protein",
                                      .unit = "residues",
                                      .symbols = letters("ACDEFGHIKLMNPQRSTVWYBOUXZ"),
                                      .marker_letters = "<>_*",
                                      .aliases = {{'J', 'X'}}});
  return vocabulary;
}

Vocabulary Vocabulary::dna() {
  static const Vocabulary vocabulary({.name = "dna",
                                      .unit = "nucleotides",
                                      .symbols = letters("ACGTN"),
                                      .marker_letters = "<>_*",
                                      .aliases = read_as_n({'U', 'T'})});
  return vocabulary;
}

Vocabulary Vocabulary::rna() {
  static const Vocabulary vocabulary({.name = "rna",
                                      .unit = "nucleotides",
                                      .symbols = letters("ACGUN"),
                                      .marker_letters = "<>_*",
                                      .aliases = read_as_n({'T', 'U'})});
  return vocabulary;
}

Vocabulary Vocabulary::bytes() {
  static const Vocabulary vocabulary = [] {
    VocabularyText text{.name = "bytes", .unit = "bytes"};
    for (int byte = 0; byte < 256; ++byte) text.symbols.emplace_back(1, static_cast<char>(byte));
    return Vocabulary(std::move(text));
  }();
  return vocabulary;
}

Vocabulary Vocabulary::pixels() {
  static const Vocabulary vocabulary = [] {
    VocabularyText text{.name = "pixels", .unit = "values", .numbers = true};
    for (int value = 0; value < 256; ++value) text.symbols.push_back(std::to_string(value));
    return Vocabulary(std::move(text));
  }();
  return vocabulary;
}

Vocabulary Vocabulary::of_symbols(const std::string& name, const std::vector<std::string>& symbols) {
  check_symbols(symbols, "the vocabulary " + name,
                [](size_t index) { return fmt::format("symbol {}", index + 1); });
  return Vocabulary({.name = name, .symbols = symbols});
}

Vocabulary Vocabulary::from_file(const std::string& path) {
  return Vocabulary({.name = std::filesystem::path(path).stem().string(), .symbols = read_symbol_file(path)});
}

Vocabulary Vocabulary::named(const std::string& name_or_path) {
  if (name_or_path == "protein") return protein();
  if (name_or_path == "dna") return dna();
  if (name_or_path == "rna") return rna();
  if (name_or_path == "bytes") return bytes();
  if (name_or_path == "pixels") return pixels();
  std::error_code ignored;
  check<UsageError>(std::filesystem::exists(name_or_path, ignored),
                    "data.vocabulary = {}: expected {}, or the path of a file with one symbol a line, and "
                    "there is no such file",
                    name_or_path, fmt::join(vocabulary_names(), ", "));
  return from_file(name_or_path);
}

Vocabulary Vocabulary::from_parts(VocabularyText parts) {
  check_parts(parts, "the vocabulary " + parts.name);
  return Vocabulary(std::move(parts));
}

bool Vocabulary::is_written(int64_t id) const {
  return id >= 0 && id < content_->written();
}
const std::vector<int64_t>& Vocabulary::source_ids() const {
  return content_->source_ids;
}

const std::string& Vocabulary::name() const {
  return content_->name;
}
const std::string& Vocabulary::unit() const {
  return content_->unit;
}
int64_t Vocabulary::symbols() const {
  return std::ssize(content_->symbols);
}
const std::vector<Vocabulary::Alias>& Vocabulary::aliases() const {
  return content_->aliases;
}
bool Vocabulary::has_letters() const {
  return !content_->numbers && content_->longest == 1;
}

std::vector<Token> Vocabulary::encode(std::string_view text) const {
  if (content_->numbers) return content_->encode_numbers(text);
  return content_->encode_letters(text, !content_->marker_letters.empty());
}

std::vector<Token> Vocabulary::encode_symbols(std::string_view text) const {
  return content_->numbers ? content_->encode_numbers(text) : content_->encode_letters(text, false);
}

size_t Vocabulary::encode_prefix(std::string_view text, std::vector<Token>& ids) const {
  // One number at a time: what separates them is no part of them.
  if (content_->numbers) return content_->encode_number_prefix(text, ids);
  size_t at = 0;
  while (at < text.size()) {
    const auto [id, size] = content_->first(text.substr(at));
    if (id < 0) break;
    ids.push_back(static_cast<Token>(id));
    at += size;
  }
  return at;
}

std::string Vocabulary::decode(std::span<const Token> ids) const {
  return content_->decode(ids);
}
std::string Vocabulary::decode(std::span<const int64_t> ids) const {
  return content_->decode(ids);
}

std::string Vocabulary::symbol_text(int64_t id) const {
  return is_symbol(id) ? escape(content_->symbols[id]) : decode(std::span<const int64_t>(&id, 1));
}

int Vocabulary::token_of(char letter) const {
  return content_->numbers ? -1 : content_->of_byte[static_cast<unsigned char>(letter)];
}

uint64_t Vocabulary::fingerprint() const {
  std::string text = content_->numbers ? "numbers" : "letters";
  const auto add = [&](const std::string& part) { text += fmt::format("\n{}:", part.size()) + part; };
  for (const Alias& alias : content_->aliases) add({alias.letter, alias.read_as});
  for (const std::string& marker : content_->markers) add(marker);
  for (const std::string& symbol : content_->symbols) add(symbol);
  if (content_->reserved > 0) add("reserved " + std::to_string(content_->reserved));
  return stable_hash(text);
}

bool Vocabulary::operator==(const Vocabulary& other) const {
  const Content &a = *content_, &b = *other.content_;
  return &a == &b || (a.numbers == b.numbers && a.symbols == b.symbols && a.aliases == b.aliases &&
                      a.marker_letters == b.marker_letters && a.reserved == b.reserved);
}

std::string Vocabulary::to_json() const {
  return write_vocabulary(*content_);
}

Vocabulary Vocabulary::from_json(const std::string& text, const std::string& source) {
  return Vocabulary(read_vocabulary(text, source));
}

const std::vector<std::string>& vocabulary_names() {
  static const std::vector<std::string> names = {"protein", "dna", "rna", "bytes", "pixels"};
  return names;
}

std::string quoted(char byte) {
  const auto code = static_cast<unsigned char>(byte);
  return code > 32 && code < 127 ? fmt::format("'{}'", byte) : fmt::format("byte {:#04x}", code);
}

uint64_t sequence_hash(std::span<const Token> sequence, const Vocabulary& vocabulary) {
  const bool narrow = vocabulary.symbols() <= 256;
  std::string bytes;
  bytes.reserve(sequence.size() * (narrow ? 1 : 2));
  for (const Token token : sequence) {
    bytes += static_cast<char>(token & 0xff);
    if (!narrow) bytes += static_cast<char>(token >> 8);
  }
  return stable_hash(bytes);
}

}  // namespace performer::data
