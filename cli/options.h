// SPDX-License-Identifier: Apache-2.0
// What commands have in common: threads and verbosity, and numbers.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/configuration.h"
#include "performer/base/numbers.h"

namespace performer::cli {

struct CommonOptions {
  int64_t threads = 0;
  std::string threads_from;  // what decided the number: "-t", or the reason of process.h
  bool quiet = false;

  void add_to(CLI::App& app);  // -t/--threads (default: default_threads()) and --quiet
  void apply() const;          // sets LibTorch's threads and the log level
};

// Options that are numbers, read by base/numbers.h and not by CLI11, for which 010 is 8. Values out of range
// throw UsageError naming the last of the option's names. What `value` holds is shown as the default.
CLI::Option* whole_option(CLI::App& app, const std::string& names, int64_t& value, const std::string& help,
                          const WholeRange& range = {});
CLI::Option* whole_option(CLI::App& app, const std::string& names, std::optional<int64_t>& value,
                          const std::string& help, const WholeRange& range = {});
CLI::Option* seed_option(CLI::App& app, uint64_t& value, const std::string& help);  // --seed, of 64 bits
CLI::Option* real_option(CLI::App& app, const std::string& names, double& value, const std::string& help,
                         const RealRange& range = {});
// Lists, whose elements are separated by commas or blanks.
CLI::Option* whole_list(CLI::App& app, const std::string& names, std::vector<int64_t>& values,
                        const std::string& help, const WholeRange& range = {});
CLI::Option* real_list(CLI::App& app, const std::string& names, std::vector<double>& values,
                       const std::string& help, const RealRange& range = {});

}  // namespace performer::cli
