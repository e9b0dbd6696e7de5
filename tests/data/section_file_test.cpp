// SPDX-License-Identifier: Apache-2.0
#include "performer/data/section_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "tests/data/damaged_file.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using test::bytes_of;
using test::file_of_bytes;
using testing::HasSubstr;

SectionFile small_file() {
  SectionWriter writer(testing::TempDir(), "things", "nothing");
  writer.begin("numbers");
  for (const int64_t number : {int64_t{3}, int64_t{-5}}) writer.append_numbers(std::span(&number, 1));
  writer.begin("none");
  writer.add_text("a name of 24 bytes......", "text");
  return writer.finish();
}

TEST(SectionFile, HoldsWhatWasWritten) {
  const SectionFile file = small_file();
  EXPECT_THAT(
      std::vector<int64_t>(file.numbers<int64_t>("numbers").begin(), file.numbers<int64_t>("numbers").end()),
      testing::ElementsAre(3, -5));
  EXPECT_TRUE(file.numbers<int64_t>("none").empty());
  EXPECT_EQ(file.text("a name of 24 bytes......"), "text");
  EXPECT_TRUE(file.has("none"));
  EXPECT_FALSE(file.has("other"));
  EXPECT_THAT(error_of<InputError>([&] { (void)file.bytes("other"); }),
              HasSubstr("the temporary file of the things in " + testing::TempDir() +
                        ": there is no section 'other'"));
  EXPECT_THAT(error_of<InputError>([&] { (void)file.numbers<int64_t>("a name of 24 bytes......"); }),
              HasSubstr("has 4 bytes, which is no whole number of 8"));
}

TEST(SectionFile, HasNoName) {
  const std::string directory = fmt::format("{}performer-sections-{}", testing::TempDir(), ::getpid());
  std::filesystem::create_directories(directory);
  SectionWriter writer(directory, "things", "nothing");
  EXPECT_TRUE(std::filesystem::is_empty(directory));
  writer.add_text("a", "b");
  const SectionFile file = writer.finish();
  EXPECT_TRUE(std::filesystem::is_empty(directory));
  struct stat status {};
  ASSERT_EQ(::fstat(file.descriptor(), &status), 0);
  EXPECT_EQ(status.st_nlink, 0);
  std::filesystem::remove_all(directory);
}

// Another process that holds it open maps it, also when the first has ended.
TEST(SectionFile, OutlivesItsWriter) {
  int copy = -1;
  {
    const SectionFile file = small_file();
    copy = ::open(fmt::format("/proc/self/fd/{}", file.descriptor()).c_str(), O_RDONLY | O_CLOEXEC);
  }
  ASSERT_GE(copy, 0);
  const SectionFile found(copy, "the copy");
  EXPECT_EQ(found.numbers<int64_t>("numbers")[1], -5);
}

TEST(SectionFile, RefusesWhatIsNone) {
  const std::string whole = bytes_of(small_file());
  const auto refused = [](const std::string& bytes) {
    return error_of<InputError>([&] { SectionFile(file_of_bytes(bytes), "the file"); });
  };
  const auto with = [&](size_t place, auto value) {
    std::string changed = whole;
    std::memcpy(changed.data() + place, &value, sizeof(value));
    return refused(changed);
  };
  EXPECT_THAT(refused(""),
              HasSubstr("the file: expected a file of sections, which has 32 bytes or more, found 0"));
  EXPECT_THAT(refused(std::string(kSectionHeader, '\0')), HasSubstr("that was finished, found other bytes"));
  EXPECT_THAT(with(8, uint32_t{9}), HasSubstr("expected version 1 of the file, found 9"));
  EXPECT_THAT(refused(whole.substr(0, whole.size() - 1)), HasSubstr("expected a file of"));
  EXPECT_THAT(refused(whole + "x"), HasSubstr("expected a file of"));
  EXPECT_THAT(with(12, uint32_t{4}), HasSubstr("its table of 4 sections does not lie within"));
  EXPECT_THAT(with(12, ~uint32_t{0}), HasSubstr("does not lie within"));
  EXPECT_THAT(with(16, ~uint64_t{0}), HasSubstr("does not lie within"));
  const size_t table = whole.size() - 3 * kSectionRow;
  EXPECT_THAT(with(table + kSectionName, uint64_t{63}),
              HasSubstr("section 1 ('numbers') does not lie within"));
  EXPECT_THAT(with(table + kSectionName, ~uint64_t{63}),
              HasSubstr("section 1 ('numbers') does not lie within"));
  EXPECT_THAT(with(table + kSectionName + 8, ~uint64_t{0}),
              HasSubstr("section 1 ('numbers') does not lie within"));
  std::string twice = whole;
  twice.replace(table + kSectionRow, kSectionName, twice.substr(table, kSectionName));
  EXPECT_THAT(refused(twice), HasSubstr("there are two sections 'numbers'"));
  EXPECT_THAT(error_of<InputError>([] { SectionFile(-1, "the file"); }),
              HasSubstr("found none that is open"));
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_THAT(error_of<InputError>([&] { SectionFile(ends[0], "the file"); }),
              HasSubstr("found none that is open"));
  EXPECT_EQ(::fcntl(ends[0], F_GETFD), -1) << "it is closed, too";
  ::close(ends[1]);
}

// Whatever bytes are changed, the file is refused or what is read lies within it.
TEST(SectionFile, AnyDamageIsRefusedOrHarmless) {
  const std::string whole = bytes_of(small_file());
  PhiloxStream random(5);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string changed = whole;
    const bool in_header = round % 2 == 0;
    const size_t begin = in_header ? 0 : whole.size() - 3 * kSectionRow;
    changed[begin + random.below((in_header ? kSectionHeader : 3 * kSectionRow))] =
        static_cast<char>(random.below(256));
    try {
      const SectionFile file(file_of_bytes(changed), "the file");
      if (!file.has("numbers")) continue;
      size_t sum = 0;
      for (const std::byte byte : file.bytes("numbers")) sum += static_cast<size_t>(byte);
      EXPECT_LE(sum, 255 * whole.size());
    } catch (const InputError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace performer::data
