// SPDX-License-Identifier: Apache-2.0
// libFuzzer entry: whatever the bytes are, the reader returns tensors or throws InputError; it never crashes.
#include <cstddef>
#include <cstdint>
#include <span>

#include "performer/base/error.h"
#include "performer/models/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    performer::parse_safetensors(std::as_bytes(std::span(data, size)), "fuzz");
  } catch (const performer::InputError&) {
    // The expected answer to damaged bytes.
  }
  return 0;
}
