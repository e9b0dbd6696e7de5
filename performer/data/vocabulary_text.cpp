// SPDX-License-Identifier: Apache-2.0
#include "performer/data/vocabulary_text.h"

#include <algorithm>
#include <optional>
#include <unordered_map>

#include "performer/base/error.h"
#include "performer/base/printable.h"
#include "performer/data/byte_source.h"
#include "performer/data/detect.h"
#include "performer/data/foreign.h"
#include "performer/data/json.h"

namespace performer::data {
namespace {

constexpr size_t kMostSymbols = 65'536 - 4;           // ids of 16 bits, four of them markers
constexpr size_t kMostSymbolBytes = size_t{1} << 24;  // of a file of symbols

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t size = utf8_size(text);
    if (size == 0) return false;
    text.remove_prefix(size);
  }
  return true;
}

// The bytes that a symbol with escapes stands for; nothing for an unknown escape.
std::optional<std::string> unescape(std::string_view text) {
  static constexpr std::string_view kNames = "ntrs\\#", kBytes = "\n\t\r \\#", kDigits = "0123456789abcdef";
  std::string bytes;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      bytes += text[i];
      continue;
    }
    if (++i == text.size()) return std::nullopt;
    if (const size_t name = kNames.find(text[i]); name != std::string_view::npos) {
      bytes += kBytes[name];
      continue;
    }
    int value = text[i] == 'x' && i + 2 < text.size() ? 0 : -1;
    for (int digit = 0; digit < 2 && value >= 0; ++digit) {
      const size_t place =
          kDigits.find(static_cast<char>(std::tolower(static_cast<unsigned char>(text[++i]))));
      value = place == std::string_view::npos ? -1 : value * 16 + static_cast<int>(place);
    }
    if (value < 0) return std::nullopt;
    bytes += static_cast<char>(value);
  }
  return bytes;
}

void check_markers(const nlohmann::ordered_json& root, const VocabularyText& result,
                   const std::string& source) {
  size_t id = result.symbols.size();
  for (const char* marker : {"bos", "eos", "pad", "mask"}) {
    const auto found = json_field<int64_t>(root, marker, source);
    check<InputError>(found == static_cast<int64_t>(id),
                      "{}: the id of {} is {}, expected {}: bos, eos, pad and mask follow the {} symbols",
                      source, marker, found, id, result.symbols.size());
    ++id;
  }
  check<InputError>(result.marker_letters.empty() || result.marker_letters.size() == 4,
                    "{}: marker_letters must be four letters or none, found \"{}\"", source,
                    result.marker_letters);
}

// The optional parts of an imported model.
void read_import(const nlohmann::ordered_json& root, VocabularyText& result, const std::string& source) {
  if (root.contains("reserved")) result.reserved = json_field<int64_t>(root, "reserved", source);
  if (root.contains("source_ids")) {
    result.source_ids = json_field<std::vector<int64_t>>(root, "source_ids", source);
  }
}

void read_symbols(const nlohmann::ordered_json& root, VocabularyText& result, const std::string& source) {
  for (const auto& written : json_field<std::vector<std::string>>(root, "symbols", source)) {
    const std::optional<std::string> bytes = unescape(written);
    check<InputError>(bytes.has_value(), "{}: unknown escape in the symbol \"{}\"", source, written);
    result.symbols.push_back(*bytes);
  }
}

void read_aliases(const nlohmann::ordered_json& root, VocabularyText& result, const std::string& source) {
  const auto aliases = root.find("aliases");
  check<InputError>(aliases != root.end() && aliases->is_object(),
                    "{}: 'aliases' must be an object that maps letters to symbols", source);
  for (const auto& [letter, read_as] : aliases->items()) {
    const auto target = json_value<std::string>(read_as, "the alias '" + letter + "'", source);
    check<InputError>(
        letter.size() == 1 && target.size() == 1 && std::ranges::count(result.symbols, target) == 1 &&
            std::ranges::count(result.symbols, letter) == 0,
        "{}: the alias \"{}\" of \"{}\" is not a letter that is read as a symbol", source, letter, target);
    result.aliases.push_back({letter[0], target[0]});
  }
}

}  // namespace

void check_parts(const VocabularyText& vocabulary, const std::string& source) {
  check_symbols(vocabulary.symbols, source, [](size_t index) { return fmt::format("symbol {}", index + 1); });
  const int64_t symbols = std::ssize(vocabulary.symbols), ids = std::ssize(vocabulary.source_ids);
  check<InputError>(vocabulary.reserved >= 0 && vocabulary.reserved < symbols,
                    "{}: {} of {} symbols are reserved; at least one must be there to be written", source,
                    vocabulary.reserved, symbols);
  check<InputError>(ids == 0 || ids == symbols + 4, "{}: source_ids has {} ids for {} symbols and 4 markers",
                    source, ids, symbols);
}

std::string escape(std::string_view symbol) {
  const bool utf8 = is_utf8(symbol);
  std::string text;
  for (const char letter : symbol) {
    const auto byte = static_cast<unsigned char>(letter);
    switch (letter) {
      case '\n':
        text += "\\n";
        break;
      case '\t':
        text += "\\t";
        break;
      case '\r':
        text += "\\r";
        break;
      case ' ':
        text += "\\s";
        break;
      case '\\':
        text += "\\\\";
        break;
      default:
        if (byte < 32 || byte == 127 || (byte > 127 && !utf8)) {
          text += fmt::format("\\x{:02x}", byte);
        } else {
          text += letter;
        }
    }
  }
  return text;
}

std::vector<std::string> read_symbol_file(const std::string& path) {
  return symbols_of_text(read_all(*open_bytes(path), path, kMostSymbolBytes), path);
}

std::vector<std::string> symbols_of_text(std::string_view text, const std::string& source) {
  const std::optional<Foreign> foreign = identify(text.substr(0, kLook));
  check<InputError>(!foreign || foreign->kind != Foreign::Kind::binary,
                    "{} is no list of symbols, one a line{}", source, looks_like(foreign));
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  std::vector<std::string> symbols;
  std::vector<int64_t> lines;  // of each
  int64_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line[0] == '#') continue;
    std::optional<std::string> symbol = unescape(line);
    check<InputError>(
        symbol.has_value(),
        "{}: line {}: unknown escape in \"{}\"; expected \\n \\t \\r \\s (space) \\\\ \\# or \\xHH with "
        "two hexadecimal digits",
        source, number, shown(line));
    symbols.push_back(std::move(*symbol));
    lines.push_back(number);
  }
  check_symbols(symbols, source, [&](size_t index) { return fmt::format("line {}", lines[index]); });
  return symbols;
}

void check_symbols(const std::vector<std::string>& symbols, const std::string& source,
                   const std::function<std::string(size_t)>& place) {
  check<InputError>(!symbols.empty(), "{} has no symbol: expected one a line", source);
  check<InputError>(symbols.size() <= kMostSymbols, "{} has {} symbols: ids have 16 bits, so at most {} fit",
                    source, symbols.size(), kMostSymbols);
  std::unordered_map<std::string_view, size_t> seen;
  for (size_t i = 0; i < symbols.size(); ++i) {
    check<InputError>(!symbols[i].empty(), "{}: {} is empty: a symbol has at least one byte", source,
                      place(i));
    const auto [before, is_new] = seen.emplace(symbols[i], i);
    check<InputError>(is_new, "{}: {} gives the symbol \"{}\" a second time, after {}", source, place(i),
                      shown(escape(symbols[i])), place(before->second));
  }
}

std::vector<AliasGroup> alias_groups(const std::vector<Vocabulary::Alias>& aliases) {
  std::vector<AliasGroup> groups;
  for (const Vocabulary::Alias& alias : aliases) {
    auto group = std::ranges::find(groups, alias.read_as, &AliasGroup::read_as);
    if (group == groups.end()) group = groups.insert(group, AliasGroup{"", alias.read_as});
    group->letters += alias.letter;
  }
  return groups;
}

std::string write_vocabulary(const VocabularyText& vocabulary) {
  nlohmann::ordered_json root;
  root["name"] = vocabulary.name;
  root["unit"] = vocabulary.unit;
  root["spelling"] = vocabulary.numbers ? "numbers" : "letters";
  root["symbols"] = nlohmann::ordered_json::array();
  for (const std::string& symbol : vocabulary.symbols) root["symbols"].push_back(escape(symbol));
  root["aliases"] = nlohmann::ordered_json::object();
  for (const Vocabulary::Alias& alias : vocabulary.aliases) {
    root["aliases"][std::string(1, alias.letter)] = std::string(1, alias.read_as);
  }
  root["marker_letters"] = vocabulary.marker_letters;
  size_t id = vocabulary.symbols.size();
  for (const char* marker : {"bos", "eos", "pad", "mask"}) root[marker] = id++;
  if (vocabulary.reserved > 0) root["reserved"] = vocabulary.reserved;
  if (!vocabulary.source_ids.empty()) root["source_ids"] = vocabulary.source_ids;
  return root.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

VocabularyText read_vocabulary(const std::string& text, const std::string& source) {
  const auto root = parse_json_object<nlohmann::ordered_json>(text, source);
  VocabularyText result;
  result.name = json_field<std::string>(root, "name", source);
  result.unit = json_field<std::string>(root, "unit", source);
  const auto spelling = json_field<std::string>(root, "spelling", source);
  check<InputError>(spelling == "letters" || spelling == "numbers",
                    "{}: spelling must be letters or numbers, found \"{}\"", source, spelling);
  result.numbers = spelling == "numbers";
  read_symbols(root, result, source);
  read_import(root, result, source);
  check_parts(result, source);
  read_aliases(root, result, source);
  result.marker_letters = json_field<std::string>(root, "marker_letters", source);
  check_markers(root, result, source);
  return result;
}

}  // namespace performer::data
