// SPDX-License-Identifier: Apache-2.0
// How the tests run the fuzz entries without libFuzzer: on inputs damaged in a fixed way, and on the corpus
// with which libFuzzer reached most of their code.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "performer/base/files.h"
#include "performer/base/philox.h"

namespace performer::fuzz {

using Entry = int (*)(const uint8_t*, size_t);

inline void run(Entry entry, const std::string& input) {
  entry(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

// One to four edits: a byte replaced, by one of `telling` too, dropped or doubled, or the end cut off.
inline std::string damaged(std::string bytes, std::string_view telling, PhiloxStream& draws) {
  for (uint64_t edits = 1 + draws.below(4); edits > 0 && !bytes.empty(); --edits) {
    const size_t at = draws.below(bytes.size());
    switch (draws.below(5)) {
      case 0:
        bytes[at] = static_cast<char>(draws.below(256));
        break;
      case 1:
        bytes[at] = telling[draws.below(telling.size())];
        break;
      case 2:
        bytes.erase(at, 1 + draws.below(3));
        break;
      case 3:
        bytes.insert(at, bytes.substr(draws.below(bytes.size()), draws.below(20)));
        break;
      default:
        bytes.resize(at);
    }
  }
  return bytes;
}

inline void run_damaged(Entry entry, const std::vector<std::string>& forms, int rounds,
                        std::string_view telling) {
  PhiloxStream draws(7, 0);
  for (int round = 0; round < rounds; ++round) {
    for (const std::string& form : forms) run(entry, damaged(form, telling, draws));
  }
}

// tests/fuzz/corpus/NAME.
inline void run_corpus(Entry entry, const char* name) {
  int inputs = 0;
  const auto corpus = std::filesystem::path(PERFORMER_SOURCE_DIR) / "tests/fuzz/corpus" / name;
  for (const auto& file : std::filesystem::directory_iterator(corpus)) {
    run(entry, read_file(file.path().string()));
    ++inputs;
  }
  EXPECT_GT(inputs, 0) << name;
}

}  // namespace performer::fuzz
