// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of the FASTA reader (libFuzzer: clang++ -fsanitize=fuzzer,address,undefined).
// tests/data/fasta_fuzz_test.cpp runs it on a fixed set of damaged inputs in every test run.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "performer/base/error.h"
#include "performer/data/fasta.h"
#include "performer/data/vocabulary.h"

namespace {

using performer::data::FastaReader;
using performer::data::FastaRecord;

// Hands out a few bytes a call, so that everything meets the end of a buffer.
class SmallReads final : public performer::data::ByteSource {
 public:
  explicit SmallReads(std::string_view bytes) : left_(bytes) {}
  size_t read(char* buffer, size_t size) override {
    step_ = step_ % 7 + 1;
    const size_t count = left_.copy(buffer, step_ < size ? step_ : size);
    left_.remove_prefix(count);
    return count;
  }

 private:
  std::string_view left_;
  size_t step_ = 0;
};

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "FASTA reader: %s\n", what);
  std::abort();
}

struct Transcript {
  std::string text;  // everything that a reader says about an input, the error included
  bool failed = false;
  bool badly_packed() const {
    return failed && (text.find(" is damaged: ") != text.npos || text.find(" is truncated: ") != text.npos);
  }
};

Transcript transcript(FastaReader reader) {
  Transcript transcript;
  std::string& text = transcript.text;
  int64_t records = 0, residues = 0;
  try {
    FastaRecord record;
    while (reader.next(record)) {
      require(!record.tokens.empty(), "a record without residues came through");
      require(record.number == ++records, "records are not numbered in order");
      text += '>' + record.header + '\n';
      for (const uint8_t token : record.tokens) {
        require(performer::data::is_residue(token), "a token is no residue");
        text += performer::data::letter(token);
      }
      text += '\n';
      residues += static_cast<int64_t>(record.tokens.size());
    }
    require(records > 0, "an input without records passed");
    require(reader.counts().records == records && reader.counts().residues == residues,
            "the counts are wrong");
  } catch (const performer::InputError& error) {
    text += error.what();
    transcript.failed = true;
  }
  return transcript;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const Transcript whole = transcript(FastaReader(performer::data::memory_bytes(bytes), "input"));
  const Transcript parts = transcript(FastaReader(std::make_unique<SmallReads>(bytes), "input"));
  require(whole.failed == parts.failed, "whether an input is good depends on how its bytes arrive");
  // Of damaged packed data more or less comes out before the damage is met, and may have another fault.
  if (!whole.badly_packed() && !parts.badly_packed())
    require(whole.text == parts.text, "the result depends on how the bytes arrive");
  return 0;
}
