// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of the text reader, with bytes and with symbols of its own (libFuzzer: clang++
// -fsanitize=fuzzer,address,undefined).
#include "performer/data/text/text.h"
#include "tests/fuzz/readers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace performer::data;
  static const Vocabulary own = Vocabulary::of_symbols("own", {"a", "b", "ab", "abc", " a", "e", "o"});
  for (const Documents documents : {Documents::file, Documents::blank_line}) {
    for (const Vocabulary& vocabulary : {Vocabulary::bytes(), own}) {
      fuzz::check_reader(data, size, [&](auto source) {
        return std::make_unique<TextReader>(std::move(source), "input", documents, vocabulary);
      });
    }
  }
  return 0;
}
