// SPDX-License-Identifier: Apache-2.0
#include "performer/base/numpy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

namespace performer {
namespace {

TEST(Numpy, HeaderIsThatOfTheFormat) {
  const std::string header = npy_header("<f4", {3, 5});
  EXPECT_EQ(header.size() % 64, 0u);
  EXPECT_EQ(header.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  EXPECT_EQ(static_cast<size_t>(static_cast<uint8_t>(header[8])) + 256 * static_cast<uint8_t>(header[9]) + 10,
            header.size());
  EXPECT_THAT(header, testing::HasSubstr("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 5), }"));
  EXPECT_EQ(header.back(), '\n');
  EXPECT_THAT(npy_header("<i8", {7}), testing::HasSubstr("'shape': (7,)"));
}

TEST(Numpy, TextsAreFourBytesACharacter) {
  const NumpyTexts texts = numpy_texts({"ab", "\xC3\xA9", "\xFFx"});
  EXPECT_EQ(texts.type, "<U2");
  ASSERT_EQ(texts.values.size(), 3u * 2 * 4);
  std::vector<uint32_t> characters(6);
  std::memcpy(characters.data(), texts.values.data(), texts.values.size());
  EXPECT_THAT(characters, testing::ElementsAre('a', 'b', 0xE9, 0, 0xFFFD, 'x'));
  EXPECT_EQ(numpy_texts({""}).type, "<U1");
}

TEST(Numpy, ZipHasChecksumsSizesAndADirectory) {
  const std::string path = testing::TempDir() + "/members.npz";
  AtomicFile out(path);
  ZipWriter zip(out);
  zip.add("one", [](const ZipWriter::Bytes& bytes) {
    bytes("1234");
    bytes("56789");
  });
  zip.add("two", [](const ZipWriter::Bytes&) {});
  zip.finish();
  out.commit();
  const std::string file = read_file(path);
  const auto number = [&](size_t place, size_t size) {
    uint64_t value = 0;
    std::memcpy(&value, file.data() + place, size);
    return value;
  };
  EXPECT_EQ(number(0, 4), 0x04034b50u);
  EXPECT_EQ(number(14, 4), 0xCBF43926u) << "the check value of CRC-32 for 123456789";
  const size_t name = 30, extra = name + 3;
  EXPECT_EQ(file.substr(name, 3), "one");
  EXPECT_EQ(number(extra, 2), 1u);
  EXPECT_EQ(number(extra + 4, 8), 9u);
  EXPECT_EQ(file.substr(extra + 20, 9), "123456789");
  // The last record says that all is in its ZIP64 form, which lies 20 bytes before it behind 56 bytes of its
  // own.
  const size_t end = file.size() - 22, end64 = end - 20 - 56;
  EXPECT_EQ(number(end, 4), 0x06054b50u);
  EXPECT_EQ(number(end64, 4), 0x06064b50u);
  EXPECT_EQ(number(end64 + 24, 8), 2u) << "members";
  EXPECT_EQ(number(number(end64 + 48, 8), 4), 0x02014b50u) << "the directory";
}

}  // namespace
}  // namespace performer
