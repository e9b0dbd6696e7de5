// SPDX-License-Identifier: Apache-2.0
#include "performer/data/vocabulary.h"

#include "performer/base/error.h"

namespace performer::data {
namespace {

constexpr auto kTokens = [] {
  std::array<int8_t, 256> table{};
  table.fill(-1);
  for (int token = 0; token < kVocabularySize; ++token) {
    table[static_cast<unsigned char>(kLetters[token])] = static_cast<int8_t>(token);
  }
  table['J'] = table['X'];
  return table;
}();

}  // namespace

char letter(int64_t token) {
  return token >= 0 && token < kVocabularySize ? kLetters[token] : '?';
}

int token_of(char residue) {
  const int token = kTokens[static_cast<unsigned char>(residue)];
  return token < kResidues ? token : -1;
}

std::string decode(std::span<const int64_t> tokens) {
  std::string text;
  text.reserve(tokens.size());
  for (const int64_t token : tokens) text += letter(token);
  return text;
}

std::vector<int64_t> encode(std::string_view text) {
  std::vector<int64_t> tokens;
  tokens.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const int token = kTokens[static_cast<unsigned char>(text[i])];
    check<InputError>(
        token >= 0,
        "illegal letter {} at position {} of a sequence: expected upper-case residues ({}; J is read "
        "as X) or the markers < > _ *",
        quoted(text[i]), i + 1, kLetters.substr(0, kResidues));
    tokens.push_back(token);
  }
  return tokens;
}

std::string quoted(char byte) {
  const auto code = static_cast<unsigned char>(byte);
  return code > 32 && code < 127 ? fmt::format("'{}'", byte) : fmt::format("byte {:#04x}", code);
}

}  // namespace performer::data
