// SPDX-License-Identifier: Apache-2.0
// Packed inputs for the tests of the readers, and files that hold them.
#pragma once

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <fstream>
#include <string>
#include <string_view>

namespace performer::data::test {

// One gzip member; `extra` is the content of its extra field, if any.
inline std::string gzip(std::string_view text, std::string_view extra = {}) {
  z_stream stream{};
  constexpr int kGzip = 16;
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + kGzip, 8, Z_DEFAULT_STRATEGY), Z_OK);
  gz_header header{};
  header.extra = reinterpret_cast<Bytef*>(const_cast<char*>(extra.data()));
  header.extra_len = static_cast<uInt>(extra.size());
  if (!extra.empty()) {
    EXPECT_EQ(deflateSetHeader(&stream, &header), Z_OK);
  }
  std::string packed(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

// One bgzip member: its extra field holds the member's size, which readers of whole files ignore.
inline std::string bgzip(std::string_view text) {
  return gzip(text, std::string_view("BC\x02\x00\x1b\x00", 6));
}

inline std::string zstd(std::string_view text) {
  std::string packed(ZSTD_compressBound(text.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 3));
  return packed;
}

// A zstd frame of one raw block (RFC 8878) that asks for a window of 2^window_log bytes.
inline std::string zstd_with_window(std::string_view text, int window_log) {
  std::string frame("\x28\xb5\x2f\xfd\x00", 5);
  frame += static_cast<char>((window_log - 10) << 3);
  const size_t block = text.size() << 3 | 1;  // last block, raw
  for (int byte = 0; byte < 3; ++byte) frame += static_cast<char>(block >> (8 * byte));
  return frame.append(text);
}

// A file in the tests' own folder, named after the running test and `suffix`.
inline std::string file_with(std::string_view bytes, const std::string& suffix = ".fasta") {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  const std::string path = testing::TempDir() + test->test_suite_name() + "_" + test->name() + suffix;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

}  // namespace performer::data::test
