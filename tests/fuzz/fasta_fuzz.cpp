// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of the FASTA reader (libFuzzer: clang++ -fsanitize=fuzzer,address,undefined).
#include "performer/data/fasta/fasta.h"
#include "tests/fuzz/readers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  performer::data::fuzz::check_reader(data, size, [](auto source) {
    return std::make_unique<performer::data::FastaReader>(std::move(source), "input");
  });
  return 0;
}
