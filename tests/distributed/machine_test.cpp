// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/machine.h"

#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>

#include "performer/base/error.h"
#include "tests/distributed/ranks.h"

namespace performer::distributed {
namespace {

using testing::expect_no_errors;
using testing::run_ranks;

int memory_file(const std::string& text) {
  const int descriptor = ::memfd_create("machine-test", MFD_CLOEXEC);
  EXPECT_EQ(::write(descriptor, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  return descriptor;
}

std::string text_of(int descriptor) {
  std::array<char, 64> text{};
  const ssize_t size = ::pread(descriptor, text.data(), text.size(), 0);
  return {text.data(), static_cast<size_t>(std::max<ssize_t>(size, 0))};
}

TEST(Machine, OneRankIsItsOwn) {
  const auto alone = single_rank();
  Machine machine(*alone);
  EXPECT_TRUE(machine.is_first());
  EXPECT_EQ(machine.share(-1), std::nullopt);
}

TEST(Machine, ThreadsOfAProcessAreOnOne) {
  EXPECT_NE(own_place().machine, 0U);
  EXPECT_EQ(own_place().process, ::getpid());
  expect_no_errors(run_ranks(3, [](Communicator& ranks) {
    Machine machine(ranks);
    EXPECT_EQ(machine.first(), 0);
    EXPECT_EQ(machine.is_first(), ranks.rank() == 0);
    for (const std::string& text : {"first", "second"}) {
      const int own = machine.is_first() ? memory_file(text) : -1;
      const std::optional<int> found = machine.share(own);
      ASSERT_EQ(found.has_value(), ranks.rank() != 0);
      EXPECT_EQ(text_of(found.value_or(own)), text);
      if (found) {
        EXPECT_LT(::write(*found, "x", 1), 0) << "it is open for reading alone";
      }
      ::close(found.value_or(own));
    }
    EXPECT_EQ(machine.share(-1), std::nullopt);
  }));
}

// Each machine has a first rank, and gets the file of that one.
TEST(Machine, SeveralMachines) {
  expect_no_errors(run_ranks(5, [](Communicator& ranks) {
    Place place = own_place();
    place.machine += static_cast<uint64_t>(ranks.rank() % 2);
    Machine machine(ranks, place);
    EXPECT_EQ(machine.first(), ranks.rank() % 2);
    const int own = machine.is_first() ? memory_file("of " + std::to_string(ranks.rank())) : -1;
    const std::optional<int> found = machine.share(own);
    EXPECT_EQ(text_of(found.value_or(own)), "of " + std::to_string(ranks.rank() % 2));
    ::close(found.value_or(own));
  }));
}

// A rank that cannot reach the files of the others, or does not know where it is, is alone.
TEST(Machine, WhoCannotOpenFilesIsAlone) {
  expect_no_errors(run_ranks(4, [](Communicator& ranks) {
    Place place = own_place();
    if (ranks.rank() == 0) place.process = 1 << 30;  // no process, as when a container hides the others
    if (ranks.rank() == 3) place.machine = 0;
    Machine machine(ranks, place);
    EXPECT_TRUE(machine.is_first());
    const int own = memory_file("x");
    EXPECT_EQ(machine.share(own), std::nullopt);
    ::close(own);
  }));
}

// The first rank is gone before the others have opened its file: they say so.
TEST(Machine, ALostFirstRankIsNamed) {
  const auto errors = run_ranks(3,
                                [](Communicator& ranks) {
                                  Machine machine(ranks);
                                  if (machine.is_first()) ranks.fail("its disk is full");
                                  if (!machine.is_first()) machine.share(-1);
                                },
                                {20, 5});
  EXPECT_EQ(errors[0], "");
  for (int rank : {1, 2}) EXPECT_EQ(errors[rank], "rank 0 failed: its disk is full");
}

}  // namespace
}  // namespace performer::distributed
