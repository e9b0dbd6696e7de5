// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "performer/base/error.h"

namespace performer::distributed {
namespace {

using Settings = std::map<std::string, std::string>;

Environment environment(const Settings& settings) {
  return read_environment([&](const char* name) -> const char* {
    const auto found = settings.find(name);
    return found == settings.end() ? nullptr : found->second.c_str();
  });
}

std::string refusal(const Settings& settings) {
  try {
    environment(settings);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

Settings with(Settings settings, const Settings& changes) {
  for (const auto& [name, value] : changes) settings[name] = value;
  return settings;
}

const Settings kTorchrun = {{"RANK", "3"},
                            {"WORLD_SIZE", "8"},
                            {"LOCAL_RANK", "1"},
                            {"LOCAL_WORLD_SIZE", "2"},
                            {"MASTER_ADDR", "a"},
                            {"MASTER_PORT", "1234"},
                            {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                            {"TORCHELASTIC_RESTART_COUNT", "2"}};

TEST(Environment, WithoutALauncherThereIsOneRank) {
  const Environment found = environment({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"MASTER_ADDR", "a"}});
  EXPECT_EQ(found.size, 1);
  EXPECT_EQ(found.launcher, "");
}

TEST(Environment, ReadsTorchrun) {
  const Environment found = environment(kTorchrun);
  EXPECT_EQ(found.rank, 3);
  EXPECT_EQ(found.size, 8);
  EXPECT_EQ(found.local_rank, 1);
  EXPECT_EQ(found.local_size, 2);
  EXPECT_EQ(found.address, "a");
  EXPECT_EQ(found.port, 1234);
  EXPECT_TRUE(found.agent_store);
  EXPECT_EQ(found.attempt, 2);
}

TEST(Environment, ReadsOpenMpi) {
  const Settings settings = {{"OMPI_COMM_WORLD_RANK", "1"},
                             {"OMPI_COMM_WORLD_SIZE", "2"},
                             {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                             {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                             {"PMIX_NAMESPACE", "job 1"}};
  const Environment found = environment(settings);
  EXPECT_EQ(found.launcher, "mpirun");
  EXPECT_EQ(found.rank, 1);
  EXPECT_EQ(found.local_rank, 1);
  EXPECT_EQ(found.address, "127.0.0.1");
  EXPECT_EQ(found.port, environment(with(settings, {{"OMPI_COMM_WORLD_RANK", "0"}})).port);
  EXPECT_NE(found.port, environment(with(settings, {{"PMIX_NAMESPACE", "job 2"}})).port);
  EXPECT_THAT(refusal(with(settings, {{"OMPI_COMM_WORLD_SIZE", "4"}})),
              ::testing::HasSubstr("MASTER_ADDR is missing"));
}

TEST(Environment, ReadsPmi) {
  const Environment found =
      environment({{"PMI_RANK", "2"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "0"}, {"MASTER_ADDR", "b"}});
  EXPECT_EQ(found.rank, 2);
  EXPECT_EQ(found.size, 4);
  EXPECT_EQ(found.address, "b");
}

TEST(Environment, ReadsSlurm) {
  const Settings settings = {{"SLURM_PROCID", "5"},
                             {"SLURM_STEP_NUM_TASKS", "7"},
                             {"SLURM_LOCALID", "1"},
                             {"SLURM_NODEID", "2"},
                             {"SLURM_STEP_NODELIST", "node[08-10],b"},
                             {"SLURM_STEP_TASKS_PER_NODE", "2(x3),1"},
                             {"SLURM_JOB_ID", "77"},
                             {"SLURM_STEP_ID", "0"},
                             {"SLURM_RESTART_COUNT", "1"}};
  const Environment found = environment(settings);
  EXPECT_EQ(found.launcher, "srun");
  EXPECT_EQ(found.rank, 5);
  EXPECT_EQ(found.size, 7);
  EXPECT_EQ(found.local_rank, 1);
  EXPECT_EQ(found.local_size, 2);
  EXPECT_EQ(found.address, "node08");
  EXPECT_EQ(found.attempt, 1);
  EXPECT_EQ(environment(with(settings, {{"SLURM_NODEID", "3"}, {"SLURM_LOCALID", "0"}})).local_size, 1);
}

TEST(Environment, FirstHosts) {
  EXPECT_EQ(first_host("a"), "a");
  EXPECT_EQ(first_host("a,b"), "a");
  EXPECT_EQ(first_host("node[03-05,9],x"), "node03");
  EXPECT_EQ(first_host("node[7]-ib,x"), "node7-ib");
}

TEST(Environment, RefusalsNameTheVariable) {
  const auto lacks = [](Settings settings, const char* name) {
    settings.erase(name);
    return refusal(settings);
  };
  EXPECT_THAT(lacks(kTorchrun, "WORLD_SIZE"),
              ::testing::HasSubstr("WORLD_SIZE is missing, although RANK is set"));
  EXPECT_THAT(lacks(kTorchrun, "RANK"), ::testing::HasSubstr("RANK is missing, although WORLD_SIZE is set"));
  EXPECT_THAT(lacks(kTorchrun, "MASTER_ADDR"), ::testing::HasSubstr("MASTER_ADDR is missing"));
  EXPECT_THAT(lacks(kTorchrun, "MASTER_PORT"), ::testing::HasSubstr("MASTER_PORT is missing"));
  EXPECT_THAT(refusal(with(kTorchrun, {{"RANK", "two"}})),
              ::testing::HasSubstr("RANK must be a whole number"));
  EXPECT_THAT(refusal(with(kTorchrun, {{"RANK", "8"}})),
              ::testing::HasSubstr("RANK is 8, but WORLD_SIZE is 8"));
  EXPECT_THAT(refusal(with(kTorchrun, {{"LOCAL_RANK", "2"}})),
              ::testing::HasSubstr("LOCAL_RANK is 2, but LOCAL_WORLD_SIZE is 2"));
  EXPECT_THAT(refusal(with(kTorchrun, {{"MASTER_PORT", "70000"}})),
              ::testing::HasSubstr("MASTER_PORT must be"));
  EXPECT_THAT(refusal({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"WORLD_SIZE", "4"}}),
              ::testing::HasSubstr("WORLD_SIZE is 4, but srun started 2 ranks"));
}

}  // namespace
}  // namespace performer::distributed
