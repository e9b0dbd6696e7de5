// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of the configuration of a training run: any bytes as a TOML file (--config) and as one setting
// (--set). libFuzzer: clang++ -fsanitize=fuzzer,address,undefined.
#include "cli/configuration.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "performer/base/error.h"

namespace performer::configuration_fuzz {

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "configuration: %s\n", what);
  std::abort();
}

// What a configuration prints is read again as the same, the impossible ones included, and checking it
// answers with UsageError or nothing.
inline void check_configuration(const cli::RunConfig& config) {
  const std::string printed = cli::to_toml(config);
  cli::RunConfig again;
  cli::apply_toml(again, printed, "printed");
  require(cli::to_toml(again) == printed, "it changes when printed and read");
  try {
    cli::validate(config);
  } catch (const UsageError&) {
    // The expected answer to impossible sizes.
  }
}

}  // namespace performer::configuration_fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace performer;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    cli::RunConfig config;
    cli::apply_toml(config, text, "input");
    configuration_fuzz::check_configuration(config);
  } catch (const UsageError&) {
    // The expected answer to what is no configuration.
  }
  try {
    cli::ConfigSources sources;
    sources.settings = {text};
    configuration_fuzz::check_configuration(cli::resolve(sources));
  } catch (const UsageError&) {
    // The same.
  }
  return 0;
}
