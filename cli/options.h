// SPDX-License-Identifier: Apache-2.0
// What commands have in common: threads and verbosity, numbers, and the configuration of a training run.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "performer/base/numbers.h"
#include "performer/data/batches.h"
#include "performer/nn/config.h"
#include "performer/train/trainer.h"

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

// All sections of a training run's configuration.
struct RunConfig {
  ModelConfig model;
  AttentionConfig attention;
  DataConfig data;
  TrainConfig train;

  template <class Self, class Visit>
  static void sections(Self& self, Visit&& visit) {
    visit("model", self.model);
    visit("attention", self.attention);
    visit("data", self.data);
    visit("train", self.train);
  }
};

// Where a configuration comes from, in the order in which it is applied.
struct ConfigSources {
  std::map<std::string, std::string>
      base;            // values by "section.key" to start from instead of the built-in defaults
  std::string preset;  // name; empty: the built-in defaults
  std::string file;    // TOML with the sections above; empty: none
  std::vector<std::string> settings;  // "section.key=value"
};

// Throws UsageError for an unknown preset, section or key (with the nearest known name), for a value of the
// wrong type (with file, line and key) and for a file that is not TOML; InputError for a file that cannot be
// read. Sizes are not checked here: see validate().
RunConfig resolve(const ConfigSources& sources);
void validate(const RunConfig& config);

// The configuration as TOML that --config reads back.
std::string to_toml(const RunConfig& config);
// One section only, for example of a stored model.
template <class Section>
std::string section_to_toml(const std::string& name, const Section& section);
std::string fields_to_toml(const std::string& name, const std::vector<FieldInfo>& fields);

// Every key with its present value, choices and meaning, for --help.
std::string describe_keys(const RunConfig& config);
std::string describe_fields(const std::vector<FieldInfo>& fields);

template <class Section>
std::string section_to_toml(const std::string& name, const Section& section) {
  return fields_to_toml(name, list_fields(name, section));
}

}  // namespace performer::cli
