// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of the image readers: PNG, JPEG and tar archives of them, and of image shapes (libFuzzer:
// clang++ -fsanitize=fuzzer,address,undefined).
#include "tests/fuzz/readers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  performer::DataConfig config;
  config.format = "image";
  performer::data::fuzz::check_reader(data, size, [&](auto source) {
    return performer::data::open_reader(std::move(source), "input", config);
  });
  try {
    const std::string text(reinterpret_cast<const char*>(data), size);
    const auto shape = performer::data::parse_image_shape(text);
    performer::data::fuzz::require(performer::data::parse_image_shape(to_text(shape)) == shape,
                                   "a shape changes");
  } catch (const performer::UsageError&) {
    // The expected answer to a text that is no shape.
  }
  return 0;
}
