// SPDX-License-Identifier: Apache-2.0
#include "cli/ranks.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>

#include "cli/launch.h"
#include "cli/process.h"
#include "cli/program.h"
#include "performer/base/error.h"
#include "performer/data/byte_source.h"
#include "performer/data/inputs.h"

namespace performer::cli {

void RankOptions::add_to(CLI::App& app, const std::string& purpose) {
  whole_option(app, "--nproc", processes,
               fmt::format("processes (ranks) on this machine {}; torchrun, mpirun and srun start ranks on "
                           "several machines",
                           purpose),
               {1, 1024});
  real_option(app, "--rank-timeout", timeout,
              "seconds without a sign of life after which a rank counts as lost and the others end",
              {.least = 1});
}

distributed::Environment environment_of(const RankOptions& options) {
  const distributed::Environment environment = distributed::read_environment();
  check<UsageError>(
      environment.launcher.empty() || options.processes == 1 || options.processes == environment.size,
      "--nproc is {}, but {} started {} ranks already: leave --nproc out", options.processes,
      environment.launcher, environment.size);
  return environment;
}

void apply_common(CommonOptions common, const distributed::Environment& environment) {
  const bool binds = environment.launcher != "torchrun" && available_cpus() < ::sysconf(_SC_NPROCESSORS_ONLN);
  if (common.threads_from != "-t" && common.threads_from != "OMP_NUM_THREADS" && !binds) {
    common.threads = std::max<int64_t>(1, common.threads / environment.local_size);
  }
  common.apply();
  if (environment.rank == 0) return;
  spdlog::set_level(spdlog::level::off);
  begin_messages_with(fmt::format("rank {}: ", environment.rank));
}

bool starts_ranks(const RankOptions& options, const distributed::Environment& environment) {
  return environment.launcher.empty() && options.processes > 1;
}

void start_ranks(const RankOptions& options) {
  constexpr double kToWrite = 30;  // seconds, beside those in which the others notice a loss
  const int code = launch_ranks(static_cast<int>(options.processes), options.timeout + kToWrite);
  if (code != 0) throw SilentEnd{code};
}

void ReadingOptions::add_to(CLI::App& app) {
  ranks.add_to(app, "that divide the sequences");
  whole_option(
      app, "--sequence-parallel", slices,
      "the number of ranks, to have each long sequence lie in slices on all of them; 1: each is read "
      "by one",
      {1, 65536});
}

void run_as_ranks(const ReadingOptions& options, const CommonOptions& common,
                  const std::vector<std::string>& inputs,
                  const std::function<void(const ReadingRanks& ranks)>& work) {
  const distributed::Environment environment = environment_of(options.ranks);
  const int64_t count = std::max<int64_t>(environment.size, options.ranks.processes);
  for (const std::string& input : inputs) {
    check<UsageError>(count == 1 || data::can_be_read_twice(input),
                      "{} can be read only once, and each of {} ranks reads it: store it in a file first",
                      data::source_name(input), count);
  }
  check_slice_count(options.slices, count);
  if (starts_ranks(options.ranks, environment)) return start_ranks(options.ranks);
  apply_common(common, environment);
  const auto all = distributed::connect(environment, {.silence_seconds = options.ranks.timeout});
  try {
    work(ReadingRanks(*all, options.slices));
  } catch (const Error& error) {
    // All ranks read the inputs, and each finds what is bad in them: rank 0 alone says it.
    constexpr double kToFind = 3;  // seconds that it may take longer to
    const bool is_of_input = error.exit_code() == InputError("").exit_code();
    const bool said = all->first_fails_with(error.what(), is_of_input ? kToFind : 0);
    all->fail(error.what());
    if (said) throw SilentEnd{error.exit_code()};
    throw;
  } catch (const std::exception& error) {
    all->fail(error.what());
    throw;
  }
}

}  // namespace performer::cli
