// SPDX-License-Identifier: Apache-2.0
// Small inputs that unpack to large ones are refused at a stated bound, before they take the memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "performer/base/error.h"
#include "performer/data/fasta/fasta.h"
#include "performer/data/image/picture.h"
#include "performer/data/text/text.h"
#include "performer/data/vocabulary_text.h"
#include "tests/data/packed_bytes.h"
#include "tests/data/pictures.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using testing::AllOf;
using testing::HasSubstr;

int64_t drain(const std::string& packed) {
  const auto source = unpack(memory_bytes(packed), "input");
  std::string buffer(1 << 20, '\0');
  int64_t size = 0;
  while (const size_t count = source->read(buffer.data(), buffer.size())) size += static_cast<int64_t>(count);
  return size;
}

TEST(Bounds, OfWhatUnpacksToMuchMore) {
  const std::string large((int64_t{1} << 26) + (1 << 22), 'A');
  for (const std::string& packed : {test::gzip(large), test::zstd(large)}) {
    EXPECT_THAT(
        error_of<InputError>([&] { drain(packed); }),
        AllOf(HasSubstr("input unpacks to more than 200 times its size"), HasSubstr("unpack it first")));
    EXPECT_THAT(error_of<InputError>([&] {
                  open_reader(memory_bytes(packed), "input", {})->next(*std::make_unique<Record>());
                }),
                HasSubstr("200 times"));
  }
  const std::string small((1 << 22), 'A');
  EXPECT_EQ(drain(test::gzip(small)), 1 << 22) << "up to 64 MiB any growth is fine";
  EXPECT_EQ(drain(test::zstd(small)), 1 << 22);
  // What grows less may be of any size.
  std::string noisy = test::noise(1 << 20) + std::string(1 << 26, 'A') + test::noise(1 << 20);
  EXPECT_EQ(drain(test::gzip(noisy)), std::ssize(noisy));
  EXPECT_EQ(drain(test::zstd(noisy)), std::ssize(noisy));
}

TEST(Bounds, OfDataPackedTwice) {
  const std::string text = ">a\nACD\n";
  using test::gzip, test::zstd;
  for (const auto& [packed, words] : {std::pair(gzip(gzip(text)), "gzip within gzip"),
                                      {zstd(gzip(text)), "gzip within zstd"},
                                      {gzip(zstd(text)), "zstd within gzip"},
                                      {zstd(gzip("")), "gzip within zstd"}}) {
    EXPECT_THAT(error_of<InputError>([&] { open_reader(memory_bytes(packed), "input", {}); }),
                AllOf(HasSubstr("input is packed twice, "), HasSubstr(words), HasSubstr("unpack it once")));
    EXPECT_THAT(error_of<InputError>([&] { FastaReader(memory_bytes(packed), "input"); }),
                HasSubstr("packed twice"));
    EXPECT_THAT(error_of<InputError>([&] { TextReader(memory_bytes(packed), "input", Documents::file); }),
                HasSubstr("packed twice"));
  }
}

TEST(Bounds, OfDocuments) {
  for (const Documents documents : {Documents::file, Documents::blank_line}) {
    TextReader reader(memory_bytes("to be or\nnot\n"), "input", documents, Vocabulary::bytes(), 10);
    Record record;
    EXPECT_THAT(error_of<InputError>([&] { reader.next(record); }),
                HasSubstr("input: document 1 has more than 10 bytes"));
  }
  TextReader reader(memory_bytes("to be\n\nor not\n"), "input", Documents::blank_line, Vocabulary::bytes(),
                    8);
  Record record;
  EXPECT_TRUE(reader.next(record));
  EXPECT_TRUE(reader.next(record));
}

// The memory of a row is not taken before the size is checked.
TEST(Bounds, OfPngSizes) {
  std::string wide = test::png({1, 1}, "abc");
  const size_t size_at = wide.find("IHDR") + 4;
  for (const auto& [width, height] : {std::pair(0x7fffffffu, 1u), {1u, 0x7fffffffu}, {0x1000000u, 2u}}) {
    std::string bytes = wide;
    for (int i = 0; i < 4; ++i) {
      bytes[size_at + i] = static_cast<char>(width >> (24 - 8 * i));
      bytes[size_at + 4 + i] = static_cast<char>(height >> (24 - 8 * i));
    }
    const auto sum =
        static_cast<uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(bytes.data() + size_at - 4), 4 + 13));
    for (int i = 0; i < 4; ++i) bytes[size_at + 13 + i] = static_cast<char>(sum >> (24 - 8 * i));
    rusage before{}, after{};
    getrusage(RUSAGE_SELF, &before);
    EXPECT_THAT(error_of<InputError>([&] { decode_png(bytes, "input"); }),
                HasSubstr("at most 16777216 are read"));
    getrusage(RUSAGE_SELF, &after);
    EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 * 1024) << "KiB";
  }
}

// A chunk of text that unpacks to 64 MiB, with the 16777216 pixels that are allowed the most that a file
// takes.
TEST(Bounds, OfPngText) {
  std::string zeros(1 << 26, '\0'), packed(compressBound(zeros.size()), '\0');
  uLongf size = packed.size();
  ASSERT_EQ(compress(reinterpret_cast<Bytef*>(packed.data()), &size,
                     reinterpret_cast<const Bytef*>(zeros.data()), zeros.size()),
            Z_OK);
  packed.resize(size);
  std::string chunk = "zTXtComment" + std::string(2, '\0') + packed;
  const auto big_endian = [](uint32_t value) {
    std::string bytes(4, '\0');
    for (int i = 0; i < 4; ++i) bytes[i] = static_cast<char>(value >> (24 - 8 * i));
    return bytes;
  };
  const auto sum = static_cast<uint32_t>(
      crc32(0, reinterpret_cast<const Bytef*>(chunk.data()), static_cast<uInt>(chunk.size())));
  std::string bytes = test::png({1, 1}, "abc");
  bytes.insert(bytes.find("IDAT") - 4,
               big_endian(static_cast<uint32_t>(chunk.size() - 4)) + chunk + big_endian(sum));
  zeros = {};
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  EXPECT_EQ(decode_png(bytes, "input").values.size(), 3u);
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 32 * 1024) << "KiB";
}

TEST(Bounds, OfJpegPasses) {
  // One pass for each bit of each of up to 63 coefficients.
  const auto passes = [](int coefficients) {
    std::vector<jpeg_scan_info> result = {{1, {0}, 0, 0, 0, 0}};
    for (int at = 1; at <= coefficients; ++at) {
      result.push_back({1, {0}, at, at, 0, 9});
      for (int bit = 9; bit > 0; --bit) result.push_back({1, {0}, at, at, bit, bit - 1});
    }
    return result;
  };
  const std::string values = test::noise(64);
  EXPECT_NO_THROW(decode_jpeg(test::jpeg(8, 8, 1, values, 50, true, passes(49)), "input"));
  EXPECT_THAT(
      error_of<InputError>([&] { decode_jpeg(test::jpeg(8, 8, 1, values, 50, true, passes(63)), "input"); }),
      HasSubstr("input is a damaged JPEG picture (it has more than 500 passes)"));
}

TEST(Bounds, OfFilesOfSymbols) {
  EXPECT_THAT(error_of<InputError>([] { read_symbol_file("/dev/zero"); }),
              HasSubstr("/dev/zero has more than 16777216 bytes"));
  EXPECT_THAT(error_of<InputError>([] { symbols_of_text(std::string_view("A\0\n\0B\0\n\0", 8), "input"); }),
              AllOf(HasSubstr("input is no list of symbols"), HasSubstr("UTF-16LE")));
  EXPECT_THAT(symbols_of_text("\xef\xbb\xbf"
                              "A\nB\n",
                              "input"),
              testing::ElementsAre("A", "B"));
}

}  // namespace
}  // namespace performer::data
