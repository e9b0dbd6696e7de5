// SPDX-License-Identifier: Apache-2.0
// The program's settings of its allocator, in a process that has them, too.
#include "cli/pages.h"

#include <gtest/gtest.h>
#include <jemalloc/jemalloc.h>

#include <cstdint>
#include <vector>

extern "C" {
extern const char* malloc_conf;
const char* malloc_conf = performer::cli::kPages;
}

namespace performer::cli {
namespace {

constexpr size_t kMebibyte = size_t{1} << 20;

// What jemalloc has of the system and has not given back.
size_t mapped_bytes() {
  uint64_t epoch = 1;  // writing it makes the statistics new
  size_t size = sizeof(epoch), mapped = 0;
  EXPECT_EQ(mallctl("epoch", &epoch, &size, &epoch, size), 0);
  size = sizeof(mapped);
  EXPECT_EQ(mallctl("stats.mapped", &mapped, &size, nullptr, 0), 0);
  return mapped;
}

// As a step allocates tensors and frees them at its end.
void allocate(size_t count, size_t bytes) {
  std::vector<void*> blocks(count);
  for (void*& block : blocks) block = mallocx(bytes, 0);
  for (void* block : blocks) dallocx(block, 0);
}

TEST(Pages, AreKeptForTensorsOfAnySize) {
  allocate(64, 16 * kMebibyte);
  const size_t mapped = mapped_bytes();
  EXPECT_GE(mapped, 1024 * kMebibyte) << "nothing is given back";
  for (const size_t bytes : {kMebibyte, 3 * kMebibyte, 5 * kMebibyte, 12 * kMebibyte}) {
    allocate(900 * kMebibyte / bytes, bytes);
    EXPECT_LE(mapped_bytes(), mapped + 64 * kMebibyte) << "after blocks of " << bytes / kMebibyte << " MiB";
  }
}

// Whether the system grants them is its affair.
TEST(Pages, MayBeHuge) {
  const char* mode = nullptr;
  size_t size = sizeof(mode);
  ASSERT_EQ(mallctl("opt.thp", &mode, &size, nullptr, 0), 0);
  EXPECT_STREQ(mode, "always");
}

}  // namespace
}  // namespace performer::cli
