// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of vocabularies: a list of symbols, tokenizer.json, and texts in the vocabularies that come of
// them (libFuzzer: clang++ -fsanitize=fuzzer,address,undefined).
#include "performer/data/vocabulary_text.h"
#include "tests/fuzz/readers.h"

namespace performer::data::fuzz {

// What is written is read again as the same, and ids stand for the text that they are made of.
inline void check_vocabulary(const Vocabulary& vocabulary, std::string_view text) {
  require(Vocabulary::from_json(vocabulary.to_json(), "again") == vocabulary,
          "tokenizer.json changes when read again");
  try {
    const std::vector<Token> ids = vocabulary.encode_symbols(text);
    require(vocabulary.encode_symbols(vocabulary.decode(ids)).size() <= text.size(), "a text grows");
    for (const Token id : ids) require(vocabulary.is_symbol(id), "a token is no symbol");
  } catch (const InputError&) {
    // Letters that are none.
  }
}

}  // namespace performer::data::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace performer::data;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    fuzz::check_vocabulary(Vocabulary::of_symbols("own", symbols_of_text(text, "input")), text);
  } catch (const performer::InputError&) {
    // The expected answer to damaged lists.
  }
  try {
    fuzz::check_vocabulary(Vocabulary::from_json(text, "input"), text);
  } catch (const performer::InputError&) {
    // The expected answer to damaged descriptions.
  }
  return 0;
}
