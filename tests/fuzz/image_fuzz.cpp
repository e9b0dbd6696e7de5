// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of the image readers: PNG, JPEG and tar archives of them (libFuzzer: clang++
// -fsanitize=fuzzer,address,undefined).
#include "tests/fuzz/readers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  performer::DataConfig config;
  config.format = "image";
  performer::data::fuzz::check_reader(data, size, [&](auto source) {
    return performer::data::open_reader(std::move(source), "input", config);
  });
  return 0;
}
