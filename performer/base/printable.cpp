// SPDX-License-Identifier: Apache-2.0
#include "performer/base/printable.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

namespace performer {
namespace {

// Whether a terminal may do something else than show the character.
bool is_command(char32_t character) {
  constexpr std::pair<char32_t, char32_t> kCommands[] = {
      {0x00, 0x1f},     {0x7f, 0x9f},     {0x061c, 0x061c},
      {0x200e, 0x200f}, {0x2028, 0x202e}, {0x2066, 0x2069},  // line ends, and directions of writing
      {0xfff9, 0xfffb},
  };
  return std::ranges::any_of(
      kCommands, [&](const auto& range) { return character >= range.first && character <= range.second; });
}

std::string escaped(std::string_view character) {
  if (character == "\n") return "\\n";
  if (character == "\t") return "\\t";
  if (character == "\r") return "\\r";
  if (character.size() > 1) return fmt::format("\\u{:04x}", static_cast<uint32_t>(utf8_character(character)));
  return fmt::format("\\x{:02x}", static_cast<unsigned char>(character[0]));
}

// The characters of a text, each as it is shown.
std::vector<std::string> shown_characters(std::string_view text) {
  std::vector<std::string> characters;
  while (!text.empty()) {
    const size_t size = utf8_size(text);
    const std::string_view character = text.substr(0, std::max<size_t>(size, 1));
    const bool plain = size > 0 && !is_command(utf8_character(character));
    characters.push_back(plain ? std::string(character) : escaped(character));
    text.remove_prefix(character.size());
  }
  return characters;
}

}  // namespace

size_t utf8_size(std::string_view text) {
  if (text.empty()) return 0;
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t size = lead < 0x80   ? 1
                      : lead < 0xc2 ? 0
                      : lead < 0xe0 ? 2
                      : lead < 0xf0 ? 3
                      : lead < 0xf5 ? 4
                                    : 0;
  if (size < 2 || text.size() < size) return size == 1 ? 1 : 0;
  for (size_t i = 1; i < size; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 0;
  }
  const auto second = static_cast<unsigned char>(text[1]);
  const bool overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
  const bool impossible = (lead == 0xed && second > 0x9f) || (lead == 0xf4 && second > 0x8f);
  return overlong || impossible ? 0 : size;
}

char32_t utf8_character(std::string_view text) {
  const size_t size = utf8_size(text);
  const auto lead = static_cast<unsigned char>(text[0]);
  if (size <= 1) return lead;
  char32_t character = lead & (0xff >> (size + 1));
  for (size_t i = 1; i < size; ++i) character = character << 6 | (static_cast<unsigned char>(text[i]) & 0x3f);
  return character;
}

std::string printable(std::string_view text) {
  std::string line;
  for (const std::string& character : shown_characters(text)) line += character;
  return line;
}

std::string shown(std::string_view name, size_t most) {
  const std::string_view mark = "...";
  // What is far from both ends is never shown: a name of any size costs no more than that.
  const size_t bytes = 4 * most;
  std::vector<std::string> first = shown_characters(name.substr(0, std::min(name.size(), bytes)));
  if (name.size() <= bytes && first.size() <= most) return fmt::format("{}", fmt::join(first, ""));
  size_t begin = name.size() - std::min(name.size(), bytes);
  while (begin < name.size() && (static_cast<unsigned char>(name[begin]) & 0xc0) == 0x80) ++begin;
  const std::vector<std::string> last = shown_characters(name.substr(begin));
  const size_t ahead = (most - mark.size() + 1) / 2,
               behind = std::min(most - mark.size() - ahead, last.size());
  first.resize(std::min(ahead, first.size()));
  return fmt::format("{}{}{}", fmt::join(first, ""), mark,
                     fmt::join(last.end() - static_cast<long>(behind), last.end(), ""));
}

}  // namespace performer
