// SPDX-License-Identifier: Apache-2.0
// libFuzzer entry: whatever the bytes are, as a Flax checkpoint and as a model of CTranslate2, the readers
// return tensors or throw InputError.
#include <cstddef>
#include <cstdint>
#include <span>

#include "performer/base/error.h"
#include "performer/models/readers/ctranslate2.h"
#include "performer/models/readers/msgpack.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    performer::parse_flax(bytes, "fuzz");
  } catch (const performer::InputError&) {
    // The expected answer to damaged bytes.
  }
  try {
    performer::parse_ctranslate2(bytes, "fuzz");
  } catch (const performer::InputError&) {
  }
  return 0;
}
