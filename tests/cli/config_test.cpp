// SPDX-License-Identifier: Apache-2.0
// Help, configuration files and usage errors.
#include <gmock/gmock.h>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

using Config = ProgramTest;

TEST_F(Config, HelpListsCommandsAndLiveDefaults) {
  const Result bare = run({});
  EXPECT_EQ(bare.code, 0);
  for (const char* command : {"train", "evaluate", "score", "generate", "info"})
    EXPECT_THAT(bare.out, HasSubstr(command));
  EXPECT_THAT(run({"--version"}).out, testing::MatchesRegex("performer [0-9]+\\.[0-9]+\\.[0-9]+\n"));
  const Result help = run({"train", "--help"});
  EXPECT_EQ(help.code, 0) << help.err;
  EXPECT_THAT(help.out,
              AllOf(HasSubstr("model.layers = 4\n"), HasSubstr("model.objective = causal  {causal, masked}"),
                    HasSubstr("data.length = 512\n"), HasSubstr("train.checkpoint_every = 500\n"),
                    HasSubstr("attention.features = 256\n"), HasSubstr("trembl-36")));
  const Result preset = run({"train", "--preset", "trembl-36", "--set", "data.length=777", "--help"});
  EXPECT_THAT(preset.out, AllOf(HasSubstr("model.layers = 36\n"), HasSubstr("data.length = 777\n")));
  EXPECT_THAT(run({"generate", "--help"}).out, AllOf(HasSubstr("--max-length"), HasSubstr("=512")));
}

TEST_F(Config, PresetThenFileThenSettings) {
  write("run.toml",
        "[model]\nlayers = 7\nwidth = 48\ndropout = 0\n[train]\nlearning_rate = 2e-4\nsteps = 1_000\n");
  const Result result =
      run({"train", "--preset", "tiny", "--config", "run.toml", "--set", "model.layers=9", "model.heads=3",
           "--set", "attention.kind=favor-softmax", "--steps", "12", "--seed", "5", "--dry-run"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("layers = 9\n"), HasSubstr("width = 48\n"), HasSubstr("heads = 3\n"),
                    HasSubstr("ffn = 256\n"), HasSubstr("kind = \"favor-softmax\"\n"),
                    HasSubstr("steps = 12\n"), HasSubstr("learning_rate = 0.0002\n"),
                    HasSubstr("dropout = 0.0\n"), HasSubstr("seed = 5\n"), Not(HasSubstr("seed = 0\n"))));
  // The printed configuration is one that can be read.
  write("resolved.toml", result.out);
  EXPECT_EQ(run({"train", "--config", "resolved.toml", "--dry-run"}).out, result.out);
}

TEST_F(Config, UnknownNamesSuggestTheNearest) {
  expect_failure(run({"tarin"}), 2, {"'tarin'", "'train'"});
  expect_failure(run({"train", "--stesp", "3"}), 2, {"--stesp", "'--steps'"});
  expect_failure(run({"train", "--preset", "tinny", "--dry-run"}), 2, {"'tinny'", "'tiny'"});
  expect_failure(run({"train", "--dry-run", "--set", "model.layer=3"}), 2,
                 {"'model.layer'", "'model.layers'"});
  expect_failure(run({"train", "--dry-run", "--set", "modle.layers=3"}), 2,
                 {"'modle.layers'", "'model.layers'"});
  expect_failure(run({"train", "--dry-run", "--set", "layers=3"}), 2, {"'layers'", "'model.layers'"});
  write("key.toml", "[model]\nlayers = 3\nheds = 2\n");
  expect_failure(run({"train", "--dry-run", "--config", "key.toml"}), 2,
                 {"key.toml:3", "'model.heds'", "'model.heads'"});
  write("section.toml", "[train]\nsteps = 3\n\n[atention]\nfeatures = 8\n");
  expect_failure(run({"train", "--dry-run", "--config", "section.toml"}), 2,
                 {"section.toml:4", "[atention]", "[attention]"});
  write("bare.toml", "layers = 3\n");
  expect_failure(run({"train", "--dry-run", "--config", "bare.toml"}), 2, {"bare.toml:1", "'model.layers'"});
}

TEST_F(Config, WrongValuesNameFileLineAndKey) {
  write("type.toml", "[model]\nlayers = 3\n\nwidth = \"wide\"\n");
  expect_failure(run({"train", "--dry-run", "--config", "type.toml"}), 2,
                 {"type.toml:4", "model.width must be a whole number", "the text 'wide'"});
  write("quoted.toml", "[model]\nlayers = \"3\"\n");  // a number in quotes is text
  expect_failure(run({"train", "--dry-run", "--config", "quoted.toml"}), 2,
                 {"quoted.toml:2", "model.layers"});
  write("real.toml", "[model]\nlayers = 1.5\n");
  expect_failure(run({"train", "--dry-run", "--config", "real.toml"}), 2,
                 {"real.toml:2", "model.layers", "1.5"});
  write("choice.toml", "[attention]\nkind = \"favour-relu\"\n");
  expect_failure(run({"train", "--dry-run", "--config", "choice.toml"}), 2,
                 {"choice.toml:2", "attention.kind", "favor-relu", "'favour-relu'"});
  write("table.toml", "model = 3\n");
  expect_failure(run({"train", "--dry-run", "--config", "table.toml"}), 2, {"table.toml:1", "[model]"});
  write("broken.toml", "[model]\nlayers = = 3\n");
  expect_failure(run({"train", "--dry-run", "--config", "broken.toml"}), 2, {"broken.toml:2:", "not TOML"});
  expect_failure(run({"train", "--dry-run", "--config", "missing.toml"}), 3,
                 {"missing.toml", "No such file"});
  expect_failure(run({"train", "--dry-run", "--set", "model.layers=four"}), 2, {"model.layers", "'four'"});
  expect_failure(run({"train", "--dry-run", "--set", "model.layers"}), 2,
                 {"section.key=value", "'model.layers'"});
}

TEST_F(Config, ImpossibleSizesNameTheKey) {
  expect_failure(run({"train", "--dry-run", "--set", "model.width=100", "model.heads=3"}), 2,
                 {"model.width", "100", "3"});
  expect_failure(run({"train", "--dry-run", "--set", "attention.kind=favor-softmax", "attention.features=0"}),
                 2, {"attention.features", "0"});
  expect_failure(run({"train", "--dry-run", "--set", "data.length=0"}), 2, {"data.length", "0"});
  expect_failure(run({"train", "--dry-run", "--set", "train.accumulate=0"}), 2, {"train.accumulate", "0"});
  // The same without --dry-run, before anything is made.
  make_fasta("train.fasta", 4);
  const auto before = files();
  expect_failure(run(train_arguments("train.fasta", "model", {"--set", "model.width=15"})), 2,
                 {"model.width", "15"});
  EXPECT_EQ(files(), before);
}

TEST_F(Config, IncompleteRequestsSayWhatIsMissing) {
  make_fasta("train.fasta", 4);
  expect_failure(run({"train", "-o", "model"}), 2, {"--train FILE"});
  expect_failure(run({"train", "--train", "train.fasta"}), 2, {"-o DIR"});
  expect_failure(run({"train", "--resume", "--train", "train.fasta"}), 2, {"-o DIR"});
  expect_failure(run({"evaluate"}), 2, {"MODEL"});
  expect_failure(run({"score", "model"}), 2, {"FILE"});
  expect_failure(run({"info", "-t", "0"}), 2, {"threads"});
  expect_failure(run(train_arguments("train.fasta", "model", {"--time-limit", "30x"})), 2,
                 {"--time-limit", "30x", "30m"});
  expect_failure(run(train_arguments("train.fasta", "model", {"--resume"})), 2, {"model", "--resume"});
  EXPECT_FALSE(exists("model"));
}

}  // namespace
}  // namespace performer::testing_cli
