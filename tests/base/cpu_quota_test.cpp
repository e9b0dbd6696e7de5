// SPDX-License-Identifier: Apache-2.0
#include "performer/base/cpu_quota.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace performer {
namespace {

// A folder in the place of the root of the file system.
class CpuQuota : public testing::Test {
 protected:
  void SetUp() override {
    root_ =
        (std::filesystem::temp_directory_path() / ("performer-quota-" + std::to_string(::getpid()))).string();
    std::filesystem::remove_all(root_);
    write("/sys/fs/cgroup/cgroup.procs", "1\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void version_1(const std::string& folder, const std::string& quota, const std::string& period) const {
    write(folder + "/cpu.cfs_quota_us", quota + "\n");
    write(folder + "/cpu.cfs_period_us", period + "\n");
  }
  double quota() const { return cpu_quota(root_); }

  std::string root_;
};

TEST_F(CpuQuota, NoneWithoutFilesOrWithMax) {
  EXPECT_EQ(cpu_quota(root_ + "/missing"), 0);
  EXPECT_EQ(quota(), 0);
  write("/proc/self/cgroup", "0::/\n");
  write("/sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(quota(), 0);
}

TEST_F(CpuQuota, OfTheRootOfAContainer) {
  write("/proc/self/cgroup", "0::/\n");
  write("/sys/fs/cgroup/cpu.max", "400000 100000\n");
  EXPECT_EQ(quota(), 4);
}

TEST_F(CpuQuota, FractionsArePartsOfAProcessor) {
  write("/proc/self/cgroup", "0::/job\n");
  write("/sys/fs/cgroup/job/cpu.max", "150000 100000\n");
  EXPECT_EQ(quota(), 1.5);
  write("/sys/fs/cgroup/job/cpu.max", "25000 50000\n");
  EXPECT_EQ(quota(), 0.5);
}

TEST_F(CpuQuota, TheSmallestOfNestedGroupsHolds) {
  write("/proc/self/cgroup", "0::/batch/job/step\n");
  write("/sys/fs/cgroup/batch/job/step/cpu.max", "max 100000\n");
  write("/sys/fs/cgroup/batch/job/cpu.max", "300000 100000\n");
  EXPECT_EQ(quota(), 3) << "the group around it";
  write("/sys/fs/cgroup/batch/cpu.max", "200000 100000\n");
  EXPECT_EQ(quota(), 2) << "and the one around that";
  write("/sys/fs/cgroup/batch/job/step/cpu.max", "100000 100000\n");
  EXPECT_EQ(quota(), 1) << "its own";
  write("/sys/fs/cgroup/other/cpu.max", "10000 100000\n");
  EXPECT_EQ(quota(), 1) << "a group that the process is not in";
}

TEST_F(CpuQuota, OfVersion1) {
  write("/proc/self/cgroup", "5:memory:/m\n4:cpu,cpuacct:/job/step\n3:cpuset:/s\n");
  version_1("/sys/fs/cgroup/memory/m", "100", "100000");
  EXPECT_EQ(quota(), 0) << "a controller without processors";
  version_1("/sys/fs/cgroup/cpu,cpuacct/job/step", "-1", "100000");
  EXPECT_EQ(quota(), 0) << "-1 is none";
  version_1("/sys/fs/cgroup/cpu,cpuacct/job", "250000", "100000");
  EXPECT_EQ(quota(), 2.5) << "nested";
  version_1("/sys/fs/cgroup/cpu", "50000", "100000");
  EXPECT_EQ(quota(), 0.5) << "of the root that a container sees";
}

// Some systems write the controllers in another order than their folder has them; "cpu" is a link to it.
TEST_F(CpuQuota, ControllersInAnyOrder) {
  write("/proc/self/cgroup", "4:cpuacct,cpu:/job\n");
  version_1("/sys/fs/cgroup/cpu/job", "200000", "100000");
  EXPECT_EQ(quota(), 2);
}

TEST_F(CpuQuota, LinesThatAreNoneAreIgnored) {
  write("/proc/self/cgroup", "\nnonsense\n4:cpu\n0::relative\n0::\n0::/job\n");
  write("/sys/fs/cgroup/job/cpu.max", "100000\n");
  EXPECT_EQ(quota(), 0) << "a quota without its period";
  write("/sys/fs/cgroup/job/cpu.max", "100000 0\n");
  EXPECT_EQ(quota(), 0);
  write("/sys/fs/cgroup/job/cpu.max", "700000 100000\n");
  EXPECT_EQ(quota(), 7);
}

TEST(ThreadsWithin, RoundUpAndStayWithinTheProcessors) {
  EXPECT_EQ(threads_within(0, 8), 8) << "no quota";
  EXPECT_EQ(threads_within(1.5, 8), 2);
  EXPECT_EQ(threads_within(0.25, 8), 1);
  EXPECT_EQ(threads_within(8, 8), 8);
  EXPECT_EQ(threads_within(1e12, 8), 8);
  EXPECT_EQ(threads_within(0, 0), 1);
}

}  // namespace
}  // namespace performer
