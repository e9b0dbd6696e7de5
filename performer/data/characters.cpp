// SPDX-License-Identifier: Apache-2.0
#include "performer/data/characters.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "performer/base/printable.h"

namespace performer::data {
namespace {

struct Named {
  char32_t first, last;
  std::string_view name;
};

constexpr Named kNamed[] = {
    {0x80, 0x9f, "a control character"},
    {0xa0, 0xa0, "a no-break space"},
    {0xad, 0xad, "a soft hyphen, which is not shown"},
    {0x1680, 0x1680, "a space"},
    {0x2000, 0x200a, "a space"},
    {0x200b, 0x200b, "a zero-width space, which is not shown"},
    {0x200c, 0x200f, "a mark that is not shown"},
    {0x2010, 0x2015, "a dash; gaps are written '-'"},
    {0x2018, 0x201f, "a quotation mark"},
    {0x2026, 0x2026, "three dots in one character"},
    {0x2028, 0x2029, "a line end of its own kind"},
    {0x202a, 0x202e, "a mark that is not shown"},
    {0x202f, 0x202f, "a narrow no-break space"},
    {0x205f, 0x205f, "a space"},
    {0x2060, 0x206f, "a mark that is not shown"},
    {0x2212, 0x2212, "a minus sign; gaps are written '-'"},
    {0x3000, 0x3000, "an ideographic space"},
    {0xfeff, 0xfeff, "a byte order mark, which belongs at the start of a file"},
};

// Letters of other scripts that look like Latin ones.
constexpr std::u32string_view
    kCyrillic =
        U"\u0410\u0412\u0415\u0405\u0406\u0408\u041a\u041c\u041d\u041e\u0420\u0421"
        U"\u0422\u0423\u0425\u04ae\u0501\u0430\u0435\u0455\u0456\u0458\u043e\u0440"
        U"\u0441\u0443\u0445",
    kGreek =
        U"\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5"
        U"\u03a7";
constexpr std::string_view kLatinOfCyrillic = "ABESIJKMHOPCTYXYdaesijopcyx", kLatinOfGreek = "ABEZHIKMNOPTYX";

std::string look_alike(char32_t character) {
  if (const size_t at = kCyrillic.find(character); at != std::u32string_view::npos)
    return fmt::format("a Cyrillic letter that looks like '{}'", kLatinOfCyrillic[at]);
  if (const size_t at = kGreek.find(character); at != std::u32string_view::npos)
    return fmt::format("a Greek letter that looks like '{}'", kLatinOfGreek[at]);
  const bool upper = character >= 0xff21 && character <= 0xff3a,
             lower = character >= 0xff41 && character <= 0xff5a;
  if (upper || lower)
    return fmt::format("a wide '{}'",
                       static_cast<char>(upper ? 'A' + (character - 0xff21) : 'a' + (character - 0xff41)));
  return "";
}

}  // namespace

std::string character_note(std::string_view text) {
  if (text.starts_with('\x1a')) return " (Ctrl-Z, the end-of-file mark of DOS: remove it with tr -d '\\032')";
  if (text.starts_with('\0')) return " (a zero: the file is damaged, or no text)";
  if (text.empty() || static_cast<unsigned char>(text[0]) < 0x80) return "";
  const size_t size = utf8_size(text);
  if (size == 0) return " (no UTF-8: text of another encoding, or no text)";
  const char32_t character = utf8_character(text);
  const auto number = static_cast<uint32_t>(character);
  const auto* named = std::ranges::find_if(
      kNamed, [&](const Named& range) { return character >= range.first && character <= range.last; });
  if (named != std::end(kNamed)) return fmt::format(" ({}, U+{:04X}: remove it)", named->name, number);
  if (const std::string alike = look_alike(character); !alike.empty())
    return fmt::format(" ({}, U+{:04X}: write the Latin letter)", alike, number);
  return fmt::format(" ('{}', U+{:04X})", text.substr(0, size), number);
}

}  // namespace performer::data
