// SPDX-License-Identifier: Apache-2.0
// The fuzz entry of configurations on damaged inputs, the same ones in every run, and on those with which
// libFuzzer reached most of its code.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/fuzz/damage.h"

#define LLVMFuzzerTestOneInput fuzz_configuration
#include "tests/fuzz/configuration_fuzz.cpp"
#undef LLVMFuzzerTestOneInput

namespace performer {
namespace {

TEST(ConfigurationFuzz, SurvivesDamagedTexts) {
  const std::string all =
      cli::to_toml(cli::resolve({.base = {}, .preset = "tiny", .file = "", .settings = {}}));
  fuzz::run_damaged(
      fuzz_configuration,
      {all, "[attention]\nfeatures = 8\nkind = \"favor-windowed\"\ndecay = 0.5\n[model]\nwidth=0x10\n",
       "model = {layers = 1_0, norm = 'post'}\ntrain.learning_rate = 1e-3\n", "model.layers=3",
       "data.vocabulary=\xc3\xa4\n\"b\""},
      150, "0123456789-.eE\"'=[]{}#\n");
}

TEST(ConfigurationFuzz, SurvivesItsCorpus) {
  fuzz::run_corpus(fuzz_configuration, "configuration");
}

// A path may be of any bytes; what is printed of it is TOML all the same.
TEST(ConfigurationFuzz, PrintsTomlOfAnyText) {
  for (const std::string path : {"\x7f", "a\xff", "\b\x1f\"\\", "\xc3\xa4"}) {
    cli::RunConfig config, again;
    config.data.vocabulary = path;
    cli::apply_toml(again, cli::to_toml(config), "printed");
    EXPECT_EQ(again.data.vocabulary, path == "a\xff" ? "a\xef\xbf\xbd" : path);
  }
}

}  // namespace
}  // namespace performer
