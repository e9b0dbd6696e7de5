// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of what is told by content: any bytes, any format (libFuzzer: clang++
// -fsanitize=fuzzer,address,undefined).
#include "tests/fuzz/readers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace performer::data;
  for (const char* vocabulary : {"auto", "protein", "dna"}) {
    performer::DataConfig config;
    config.vocabulary = vocabulary;
    fuzz::check_reader(data, size,
                       [&](auto source) { return open_reader(std::move(source), "input", config); });
  }
  return 0;
}
