// SPDX-License-Identifier: Apache-2.0
// Reads tar archives (POSIX ustar and pax, GNU) as a stream.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "performer/data/byte_source.h"

namespace performer::data {

// Whether bytes begin as a tar archive does: a header of 512 bytes whose checksum is right.
bool is_tar(std::string_view head);

class TarReader {
 public:
  struct Entry {
    std::string name;
    int64_t size = 0;  // of its content, in bytes
  };

  // `name` is used in messages.
  TarReader(std::unique_ptr<ByteSource> source, std::string name)
      : source_(std::move(source)), name_(std::move(name)) {}
  // The next regular file; false at the end mark. What is left of the file before is passed over. Throws
  // InputError when a header is damaged or the archive ends in the middle (one without its end mark
  // included).
  bool next(Entry& entry);
  // The next bytes of the present file, at most `most`; fewer only at its end. Throws as next() does.
  std::string read(size_t most);

 private:
  // Reads exactly `size` bytes.
  void read_exactly(char* buffer, size_t size);
  void skip(int64_t size);
  std::string read_extension(int64_t size);  // the content of an entry that says something about the next

  std::unique_ptr<ByteSource> source_;
  std::string name_;
  int64_t left_ = 0, padding_ = 0;  // of the present file, and behind it
};

}  // namespace performer::data
