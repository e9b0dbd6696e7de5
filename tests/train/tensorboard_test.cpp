// SPDX-License-Identifier: Apache-2.0
#include "performer/train/tensorboard.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "tests/train/runs.h"

namespace performer::train {
namespace {

std::string bytes(std::initializer_list<int> values) {
  std::string text;
  for (const int value : values) text.push_back(static_cast<char>(value));
  return text;
}

TEST(Crc32c, KnownValues) {  // RFC 3720, appendix B.4
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c(""), 0u);
}

TEST(TensorBoard, EventBytes) {
  // 1.5 as a double is 3ff8000000000000; step 300 as a varint is ac 02; 0.5 as a float is 3f000000.
  const std::string header = bytes({0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0x10, 0xac, 0x02});
  EXPECT_EQ(event_scalars(1.5, 300, {{"ab", 0.5}}),
            header + bytes({0x2a, 0x0b, 0x0a, 0x09, 0x0a, 0x02, 'a', 'b', 0x15, 0, 0, 0, 0x3f}));
  EXPECT_EQ(event_start(1.5, 300), header + bytes({0x3a, 0x02, 0x08, 0x01}));
  EXPECT_EQ(event_file_version(1.5),
            bytes({0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0x10, 0x00, 0x1a, 0x0d}) + "brain.Event:2");
}

uint32_t unmask(uint32_t masked) {
  const uint32_t rotated = masked - 0xa282ead8u;
  return rotated >> 17 | rotated << 15;
}

template <class T>
T read_number(const std::string& data, size_t at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i)
    value |= static_cast<T>(static_cast<unsigned char>(data[at + i])) << (8 * i);
  return value;
}

// Checks every frame of a file and returns how many there are.
int count_frames(const std::string& data) {
  int frames = 0;
  for (size_t at = 0; at < data.size(); ++frames) {
    const auto length = static_cast<size_t>(read_number<uint64_t>(data, at));
    EXPECT_EQ(unmask(read_number<uint32_t>(data, at + 8)), crc32c(data.substr(at, 8)));
    EXPECT_LE(at + length + 16, data.size());
    EXPECT_EQ(unmask(read_number<uint32_t>(data, at + 12 + length)), crc32c(data.substr(at + 12, length)));
    at += length + 16;
  }
  return frames;
}

TEST(TensorBoard, FilesAreWholeFrames) {
  const testing::TemporaryFolder folder;
  {
    TensorBoardWriter writer(folder / "", 1);
    for (int step = 1; step <= 3; ++step) writer.add(step, {{"train/loss", 1.0 / step}});
  }
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "")) {
    EXPECT_EQ(count_frames(read_file(entry.path().string())), 5) << "version, start, three steps";
    EXPECT_NE(entry.path().filename().string().find("tfevents"), std::string::npos)
        << "TensorBoard finds files by this";
    ++files;
  }
  EXPECT_EQ(files, 1);
}

TEST(TensorBoard, TheRealReaderReadsIt) {
  if (std::system("python3 -c 'import tensorboard' 2>/dev/null") != 0)
    GTEST_SKIP() << "no python package tensorboard";
  const testing::TemporaryFolder folder;
  TensorBoardWriter(folder / "", 1).add(7, {{"train/loss", 0.25}});
  const std::string command = fmt::format(
      "python3 -c \"from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as "
      "E\n"
      "e = E('{}'); e.Reload(); s = e.Scalars('train/loss')\n"
      "assert [(x.step, x.value) for x in s] == [(7, 0.25)], s\"",
      folder / "");
  EXPECT_EQ(std::system(command.c_str()), 0);
}

}  // namespace
}  // namespace performer::train
