// SPDX-License-Identifier: Apache-2.0
// Inputs before they are read: which can be read twice, and that all are checked before the first is worked
// on.
#include "performer/data/inputs.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include "performer/base/error.h"
#include "performer/data/reader.h"
#include "tests/data/packed_bytes.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using test::file_with;
using testing::AllOf;
using testing::HasSubstr;

std::string pipe_path() {
  const std::string path = testing::TempDir() + "Inputs_pipe";
  std::filesystem::remove(path);
  EXPECT_EQ(mkfifo(path.c_str(), 0600), 0);
  return path;
}

DataConfig with_format(const std::string& format) {
  DataConfig config;
  config.format = format;
  return config;
}

TEST(Inputs, CanBeReadTwiceWhereTheyAreFiles) {
  EXPECT_TRUE(can_be_read_twice(file_with(">a\nA\n")));
  EXPECT_TRUE(can_be_read_twice(testing::TempDir()));
  EXPECT_TRUE(can_be_read_twice("no-such-file"));
  EXPECT_FALSE(can_be_read_twice("-"));
  EXPECT_FALSE(can_be_read_twice("/dev/null"));
  EXPECT_FALSE(can_be_read_twice(pipe_path()));
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_FALSE(can_be_read_twice("/dev/fd/" + std::to_string(ends[0]))) << "as a process substitution is";
  close(ends[0]);
  close(ends[1]);
}

TEST(Inputs, ThatAreReadTwiceMustBeFiles) {
  const std::string file = file_with(">a\nA\n");
  EXPECT_NO_THROW(require_two_passes({file, testing::TempDir()}, "holding sequences out"));
  EXPECT_EQ(error_of<InputError>([&] {
              require_two_passes({file, "-"}, "holding sequences out");
            }),
            "standard input can be read only once, and holding sequences out takes two passes: store the "
            "data in a file "
            "first");
  EXPECT_THAT(error_of<InputError>([&] { require_two_passes({pipe_path()}, "x"); }),
              HasSubstr("can be read only once"));
}

// The first file is never opened: it is a pipe without a writer, at which opening would wait without end.
TEST(Inputs, AreAllCheckedBeforeTheFirstIsRead) {
  const std::string waits = pipe_path(), fasta = file_with(">a\nA\n"),
                    text = file_with("words, words\n", ".txt"), empty = file_with("", ".empty"),
                    missing = testing::TempDir() + "no-such-file";
  for (const std::string format : {"auto", "fasta", "text", "image"}) {
    EXPECT_EQ(error_of<InputError>([&] {
                open_reader({waits, missing}, with_format(format));
              }),
              "cannot read " + missing + ": No such file or directory");
  }
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader({waits, fasta, text}, with_format("fasta"));
              }),
              HasSubstr("is not FASTA: line 1 begins with 'w'"));
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader({waits, fasta, empty}, with_format("fasta"));
              }),
              HasSubstr(empty + " is empty: expected FASTA"));
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader({waits, text, empty}, with_format("auto"));
              }),
              HasSubstr(empty + " is empty: expected text"));
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader({waits, text}, with_format("image"));
              }),
              HasSubstr("holds no images"));
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader({waits, fasta, file_with("GIF89a", ".gif")}, with_format("auto"));
              }),
              HasSubstr("a GIF picture"));
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader({waits, fasta, file_with("\x1f\x8b\x08", ".gz")}, with_format("fasta"));
              }),
              HasSubstr("is truncated"));
}

TEST(Inputs, CanBeCheckedWithoutReading) {
  const std::string waits = pipe_path(), fasta = file_with(">a\nA\n"), text = file_with("words\n", ".txt");
  EXPECT_NO_THROW(check_inputs({waits, fasta, "-"}, {}));
  EXPECT_NO_THROW(check_inputs({fasta}, {}, Vocabulary::protein()));
  EXPECT_THAT(error_of<InputError>([&] {
                check_inputs({fasta, text}, {}, Vocabulary::protein());
              }),
              HasSubstr("is not FASTA"));
  EXPECT_THAT(error_of<UsageError>([&] { check_inputs({}, {}); }), HasSubstr("no file is given"));
  // A fault behind the head is met when it is read.
  EXPECT_NO_THROW(check_inputs({file_with(">a\nA1\n", ".late")}, {}));
}

TEST(Inputs, ThatCanBeReadOnceAreGivenOnce) {
  EXPECT_EQ(error_of<InputError>([] {
              list_inputs({"-", "-"});
            }),
            "standard input is given twice, but can be read only once");
  const std::string pipe = pipe_path(), file = file_with(">a\nA\n");
  EXPECT_THAT(error_of<InputError>([&] { list_inputs({pipe, file, pipe}); }), HasSubstr("is given twice"));
  EXPECT_EQ(list_inputs({file, file, "-"}).size(), 3u);
}

TEST(Inputs, SayWhyAFolderGivesNone) {
  const std::filesystem::path folder = testing::TempDir() + "Inputs_folder";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  EXPECT_EQ(error_of<InputError>([&] { list_inputs({folder.string()}); }),
            "the folder " + folder.string() + " has no files");
  std::ofstream(folder / ".hidden") << "x";
  EXPECT_THAT(error_of<InputError>([&] { list_inputs({folder.string()}); }),
              AllOf(HasSubstr("has no files but hidden ones"), HasSubstr("begin with '.'")));
  std::filesystem::create_symlink("nowhere", folder / "broken");
  EXPECT_THAT(error_of<InputError>([&] { list_inputs({folder.string()}); }), HasSubstr("has no files"));
}

TEST(Inputs, WithALineEndInTheirNameStayOnOneLine) {
  EXPECT_EQ(error_of<InputError>([] { list_inputs({"new\nline\x1b"}); }),
            "cannot read new\\nline\\x1b: No such file or directory");
}

TEST(Inputs, TellHowFarTheReadingIs) {
  const std::string text = ">a\n" + std::string(300000, 'A') + "\n", packed = test::gzip(text);
  const std::string plain = file_with(text), gzip = file_with(packed, ".fasta.gz");
  std::vector<std::pair<int64_t, int64_t>> told;
  const auto read = [&](const std::vector<std::string>& paths) {
    told.clear();
    const auto reader = open_reader(paths, {}, std::nullopt,
                                    [&](int64_t done, int64_t total) { told.emplace_back(done, total); });
    for (Record record; reader->next(record);) {
    }
    EXPECT_GE(told.size(), 2u);
    EXPECT_TRUE(std::ranges::is_sorted(told));
    return told.back();
  };
  const auto bytes = static_cast<int64_t>(text.size() + packed.size());
  EXPECT_EQ(read({plain, gzip}), std::pair(bytes, bytes)) << "packed bytes as they are";
  EXPECT_LT(told.front().first, bytes) << "on the way";
  const std::string pipe = pipe_path();
  std::thread writer([&] { std::ofstream(pipe) << text; });
  const auto size = static_cast<int64_t>(text.size());
  EXPECT_EQ(read({plain, pipe}), std::pair(2 * size, int64_t{0})) << "a pipe's size is not known";
  writer.join();
}

}  // namespace
}  // namespace performer::data
