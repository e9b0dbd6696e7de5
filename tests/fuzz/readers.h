// SPDX-License-Identifier: Apache-2.0
// What the fuzz entries of the readers share. tests/data/readers_fuzz_test.cpp runs the entries on a fixed
// set of damaged inputs in every test run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "performer/base/error.h"
#include "performer/data/reader.h"

namespace performer::data::fuzz {

// Hands out a few bytes a call, so that everything meets the end of a buffer.
class SmallReads final : public ByteSource {
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

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "reader: %s\n", what);
  std::abort();
}

using OpenReader = std::function<std::unique_ptr<Reader>(std::unique_ptr<ByteSource>)>;

struct Transcript {
  std::string text;  // everything that a reader says about an input, the error included
  bool failed = false;
  bool badly_packed() const {
    return failed && (text.find(" is damaged: ") != text.npos || text.find(" is truncated: ") != text.npos);
  }
};

inline Transcript transcript(const OpenReader& open, std::unique_ptr<ByteSource> source) {
  Transcript transcript;
  std::string& text = transcript.text;
  int64_t records = 0, tokens = 0;
  try {
    const auto reader = open(std::move(source));
    Record record;
    while (reader->next(record)) {
      require(!record.tokens.empty(), "a record without tokens came through");
      require(record.number == ++records, "records are not numbered in order");
      for (const Token token : record.tokens) {
        require(reader->vocabulary().is_symbol(token), "a token is no symbol");
      }
      if (const auto shape = reader->image_shape()) {
        require(static_cast<int64_t>(record.tokens.size()) == shape->tokens(), "an image has another shape");
      }
      text +=
          '>' + record.id + ' ' + record.header + '\n' + reader->vocabulary().decode(record.tokens) + '\n';
      tokens += static_cast<int64_t>(record.tokens.size());
    }
    require(records > 0, "an input without records passed");
    const ReadReport report = reader->report();
    require(report.records == records && report.tokens == tokens, "the counts are wrong");
    text += summary(report);
  } catch (const InputError& error) {
    text += error.what();
    transcript.failed = true;
  }
  return transcript;
}

// Reads the bytes at once and in small pieces: the results must be the same, records or errors.
inline void check_reader(const uint8_t* data, size_t size, const OpenReader& open) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const Transcript whole = transcript(open, memory_bytes(bytes));
  const Transcript parts = transcript(open, std::make_unique<SmallReads>(bytes));
  require(whole.failed == parts.failed, "whether an input is good depends on how its bytes arrive");
  // Of damaged packed data more or less comes out before the damage is met, and may have another fault.
  if (!whole.badly_packed() && !parts.badly_packed())
    require(whole.text == parts.text, "the result depends on how the bytes arrive");
}

}  // namespace performer::data::fuzz
