// SPDX-License-Identifier: Apache-2.0
// The configuration of a training run: presets, TOML files and settings of the command line.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "performer/data/config.h"
#include "performer/nn/config.h"
#include "performer/train/config.h"
#include "performer/train/task_config.h"

namespace performer::cli {

// All sections of a training run's configuration.
struct RunConfig {
  ModelConfig model;
  AttentionConfig attention;
  DataConfig data;
  TrainConfig train;
  TaskConfig task;

  template <class Self, class Visit>
  static void sections(Self& self, Visit&& visit) {
    visit("model", self.model);
    visit("attention", self.attention);
    visit("data", self.data);
    visit("train", self.train);
    visit("task", self.task);
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
// Sets what a TOML text says, as resolve() does for a file; `source` names it in messages.
void apply_toml(RunConfig& config, const std::string& text, const std::string& source);
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
