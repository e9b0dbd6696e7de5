// SPDX-License-Identifier: Apache-2.0
// Where bytes come from: a file, standard input, memory, or one of those unpacked on the way.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace performer::data {

// How many bytes readers ask for at a time. The fuzz entries are built with fewer: then short inputs meet the
// end of a buffer too, and a run spends no time on large buffers.
#ifndef PERFORMER_READ_BYTES
#define PERFORMER_READ_BYTES (size_t{1} << 18)
#endif
inline constexpr size_t kReadBytes = PERFORMER_READ_BYTES;

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Reads between 1 and `size` bytes (size > 0) into `buffer` and returns how many; 0 only at the end. Throws
  // InputError naming the source.
  virtual size_t read(char* buffer, size_t size) = 0;
};

// A file, or standard input for "-". Throws InputError when it cannot be opened or is a directory.
std::unique_ptr<ByteSource> open_bytes(const std::string& path);
// Bytes that lie in memory and outlive the source.
std::unique_ptr<ByteSource> memory_bytes(std::string_view bytes);
template <std::same_as<std::string> Text>
std::unique_ptr<ByteSource> memory_bytes(Text&& bytes) = delete;  // a temporary would not outlive it
// What messages call a path: standard input for "-".
std::string source_name(const std::string& path);

// `source` itself, or what it unpacks to when it begins as gzip (RFC 1952, any number of members, bgzip
// included) or zstd (RFC 8878, any number of frames, skippable ones included). `name` is used in messages.
// Reads throw InputError for a stream that is truncated or damaged, for zstd windows beyond 128 MiB (zstd's
// own limit, --long=27), and for one that grows too much: after kFreeGrowth bytes, to more than kMostGrowth
// times the packed bytes read, so that a small file cannot fill memory or disk. Throws InputError for data
// packed twice.
inline constexpr uint64_t kFreeGrowth = uint64_t{1} << 26, kMostGrowth = 200;
std::unique_ptr<ByteSource> unpack(std::unique_ptr<ByteSource> source, const std::string& name);

// A source whose first bytes can be looked at before they are read.
class PeekedSource final : public ByteSource {
 public:
  explicit PeekedSource(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}
  // Up to `size` bytes from the beginning of what is still to be read; fewer only when the source ends
  // before.
  std::string_view peek(size_t size);
  size_t read(char* buffer, size_t size) override;

 private:
  std::unique_ptr<ByteSource> source_;
  std::vector<char> ahead_;  // begin_ to end_: read from the source, not yet handed out
  size_t begin_ = 0, end_ = 0;
};

// Everything that is left of a source. Throws InputError naming `name` when that is more than `most` bytes.
std::string read_all(ByteSource& source, const std::string& name, size_t most);

}  // namespace performer::data
