// SPDX-License-Identifier: Apache-2.0
// The residue vocabulary of protein_lm (domains.py): one id a letter.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace performer::data {

// A C D E F G H I K L M N P Q R S T V W Y = 0..19, B O U X Z = 20..24, then four markers.
inline constexpr int kStandardResidues = 20, kResidues = 25;
inline constexpr uint8_t kBos = 25, kEos = 26, kPad = 27, kMask = 28;
inline constexpr int kVocabularySize = 29;
inline constexpr std::string_view kLetters = "ACDEFGHIKLMNPQRSTVWYBOUXZ<>_*";

inline bool is_residue(int64_t token) {
  return token >= 0 && token < kResidues;
}
char letter(int64_t token);  // '?' for an id outside the vocabulary
// Id of an upper-case residue letter; -1 when it is none. J (leucine or isoleucine) gives X.
int token_of(char residue);
std::string decode(std::span<const int64_t> tokens);
// Tokens of a string of upper-case residues and the marker letters < > _ *. Throws InputError naming the
// position (from 1) and the letter. Unlike protein_lm, which refuses J, J gives X.
std::vector<int64_t> encode(std::string_view text);
// A byte as messages show it: 'a' in quotes when it can be printed, else as a hexadecimal number, "byte
// 0x07".
std::string quoted(char byte);

}  // namespace performer::data
