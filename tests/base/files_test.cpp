// SPDX-License-Identifier: Apache-2.0
#include "performer/base/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "performer/base/error.h"
#include "performer/base/executor.h"

namespace performer {
namespace {
namespace fs = std::filesystem;

class Files : public ::testing::Test {
 protected:
  Files() : folder_(fs::temp_directory_path() / ("performer-files-" + std::to_string(getpid()))) {
    fs::create_directories(folder_);
  }
  ~Files() override { fs::remove_all(folder_); }
  std::string path(const char* name) const { return (folder_ / name).string(); }
  size_t entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  fs::path folder_;
};

TEST_F(Files, AtomicFileAppearsOnlyWhenCommitted) {
  {
    AtomicFile file(path("a"));
    file.write("half");
    EXPECT_FALSE(fs::exists(path("a")));
  }
  EXPECT_EQ(entries(), 0u);  // nothing is left of the abandoned one
  write_file(path("a"), "old");
  {
    AtomicFile file(path("a"));
    file.write("new");
    EXPECT_EQ(read_file(path("a")), "old");
    file.commit();
  }
  EXPECT_EQ(read_file(path("a")), "new");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(Files, UnfinishedFilesAreRemovedAndFinishedOnesStay) {
  write_file(path("done"), "whole");
  AtomicFile file(path("a"));
  file.write("half");
  EXPECT_EQ(entries(), 2u);
  remove_unfinished_files();
  EXPECT_EQ(entries(), 1u);
  EXPECT_EQ(read_file(path("done")), "whole");
}

TEST_F(Files, LinksStayAndTheirTargetsAreWritten) {
  fs::create_symlink("target", path("link"));  // to a file that is not there yet
  write_file(path("link"), "new");
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(read_file(path("target")), "new");
  fs::permissions(path("target"), fs::perms(0604));
  write_file(path("link"), "newer");
  EXPECT_EQ(fs::status(path("target")).permissions(), fs::perms(0604));
  EXPECT_TRUE(same_file(path("link"), path("target")));
  write_file(path("other"), "newer");
  EXPECT_FALSE(same_file(path("other"), path("target")));
}

TEST_F(Files, PathsOfOpenDescriptorsAreKnown) {
  EXPECT_EQ(descriptor_of("/dev/stdout"), 1);
  EXPECT_EQ(descriptor_of("/proc/self/fd/7"), 7);
  EXPECT_EQ(descriptor_of("/dev/null"), std::nullopt);
  write_file(path("1"), "");
  EXPECT_EQ(descriptor_of(path("1")), std::nullopt);
}

TEST_F(Files, ErrorsNameThePathAndTheReason) {
  const auto message = [](auto&& call) {
    try {
      call();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(message([&] { write_file(path("none/x"), ""); }),
              ::testing::AllOf(::testing::HasSubstr("none/x"), ::testing::HasSubstr("No such file")));
  EXPECT_THAT(message([&] { read_file(path("gone")); }), ::testing::HasSubstr("gone"));
  EXPECT_THAT(message([&] { read_file(folder_.string()); }), ::testing::HasSubstr("directory"));
  EXPECT_THAT(message([&] { MappedFile(path("gone")); }), ::testing::HasSubstr("gone"));
  write_file(path("file"), "");
  EXPECT_THAT(message([&] { make_directories(path("file")); }), ::testing::HasSubstr("file"));
}

TEST_F(Files, MapsWholeFilesAndEmptyOnes) {
  write_file(path("a"), "abc");
  write_file(path("b"), "");
  MappedFile map(path("a"));
  ASSERT_EQ(map.size(), 3u);
  EXPECT_EQ(static_cast<char>(map.data()[2]), 'c');
  EXPECT_EQ(MappedFile(path("b")).size(), 0u);
}

TEST_F(Files, StaleFilesOfDeadProcessesAreRemoved) {
  write_file(path("model.tmp-999999999"), "");  // beyond the largest process id
  write_file(path(("live.tmp-" + std::to_string(getpid())).c_str()), "");
  write_file(path("notes.tmp-x"), "");
  remove_stale_files(folder_.string());
  EXPECT_FALSE(fs::exists(path("model.tmp-999999999")));
  EXPECT_EQ(entries(), 2u);
}

TEST(StableHash, IsTheSameEverywhere) {
  EXPECT_EQ(stable_hash(""), stable_hash(std::string_view()));
  EXPECT_NE(stable_hash("ACD"), stable_hash("ACE"));
  EXPECT_EQ(stable_hash("MKTAYIAK"), 0x6edd43fd1ba714c5ULL);
}

TEST(ThreadExecutor, CoversEveryIndexOnce) {
  ThreadExecutor executor(4);
  for (const int64_t count : {0, 1, 3, 4, 5, 1000}) {
    std::vector<int> seen(static_cast<size_t>(count));
    executor.parallel_for(count, [&](int64_t begin, int64_t end, int worker) {
      EXPECT_LT(worker, executor.workers());
      for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
    });
    for (int times : seen) EXPECT_EQ(times, 1);
  }
}

}  // namespace
}  // namespace performer
