// SPDX-License-Identifier: Apache-2.0
// Commands that run as several processes (ranks): those of a launcher (docs/distributed.md), or of --nproc.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/options.h"
#include "performer/distributed/communicator.h"
#include "performer/infer/reading_ranks.h"

namespace performer::cli {

struct RankOptions {
  int64_t processes = 1;
  double timeout = distributed::ConnectOptions().silence_seconds;

  // --nproc, `purpose` being what its processes do together, and --rank-timeout.
  void add_to(CLI::App& app, const std::string& purpose);
};

// The ranks of this command: those of a launcher, or the ones that --nproc will start. Throws UsageError
// when they contradict each other.
distributed::Environment environment_of(const RankOptions& options);

// common.apply(), where the ranks of a machine divide its processors, unless the user decided, or the
// launcher by binding each. From here on rank 0 alone speaks, except of errors.
void apply_common(CommonOptions common, const distributed::Environment& environment);

// Whether this process is to start the ranks, and not one of them. start_ranks() then does so and waits for
// their end; it throws SilentEnd when one of them failed.
bool starts_ranks(const RankOptions& options, const distributed::Environment& environment);
void start_ranks(const RankOptions& options);

// Of commands that read with a model. Their other options are checked before any rank is started.
struct ReadingOptions {
  RankOptions ranks;
  int64_t slices = 1;  // --sequence-parallel

  void add_to(CLI::App& app);
};

// Runs `work` as the ranks of the command, after apply_common(). An error of one rank ends all of them, and
// what rank 0 says, no other rank says again. `inputs` are files that every rank reads: throws UsageError for
// one that can be read only once.
void run_as_ranks(const ReadingOptions& options, const CommonOptions& common,
                  const std::vector<std::string>& inputs,
                  const std::function<void(const ReadingRanks& ranks)>& work);

}  // namespace performer::cli
