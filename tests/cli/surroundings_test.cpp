// SPDX-License-Identifier: Apache-2.0
// The program in surroundings that users met: closed descriptors, links, devices, pipes, limits, folders that
// are gone. A kind of situation has a test of its own.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <filesystem>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class Surroundings : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    make_fasta("train.fasta");
    make_model();
  }

  Result shell(const std::string& script) const { return run({}, {.shell = script}); }
  mode_t mode(const std::string& name) const {
    struct stat status {};
    stat(path(name).c_str(), &status);
    return status.st_mode & 07777;
  }
};

TEST_F(Surroundings, ClosedDescriptorsTakeNoFile) {
  const Result whole = shell("$PERFORMER score model train.fasta -t 1 -o whole.tsv");
  ASSERT_EQ(whole.code, 0) << whole.err;
  EXPECT_EQ(shell("$PERFORMER score model train.fasta -t 1 -o closed.tsv <&- >&- 2>&-").code, 0);
  EXPECT_EQ(read("closed.tsv"), read("whole.tsv"));
  expect_failure(shell("$PERFORMER score model train.fasta -t 1 --quiet >&-"), 1,
                 {"standard output", "closed"});
  expect_failure(shell("$PERFORMER score model - -t 1 --quiet <&-"), 3, {"standard input"});
}

TEST_F(Surroundings, OpenDescriptorsAndDevicesAreWrittenThrough) {
  fs::create_symlink("/proc/self/fd/1", path("stdout"));
  const Result result = shell(
      "$PERFORMER score model train.fasta -t 1 --quiet > whole.tsv\n"
      "echo before > there.tsv; $PERFORMER score model train.fasta -t 1 --quiet -o stdout >> there.tsv\n"
      "$PERFORMER score model train.fasta -t 1 --quiet -o /dev/stdout | cat > piped.tsv\n"
      "$PERFORMER score model train.fasta -t 1 --quiet -o /dev/fd/5 5> fifth.tsv\n"
      "$PERFORMER score model train.fasta -t 1 --quiet -o /dev/null");
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(read("there.tsv"), "before\n" + read("whole.tsv"));
  EXPECT_EQ(read("piped.tsv"), read("whole.tsv"));
  EXPECT_EQ(read("fifth.tsv"), read("whole.tsv"));
  EXPECT_TRUE(fs::is_symlink(path("stdout")));
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(Surroundings, LinksModesAndTheUmaskAreKept) {
  write("target.tsv", "older\n");
  fs::create_symlink("target.tsv", path("link.tsv"));
  chmod(path("target.tsv").c_str(), 0640);
  const Result result = shell(
      "umask 027; $PERFORMER score model train.fasta -t 1 --quiet -o link.tsv && "
      "$PERFORMER score model train.fasta -t 1 --quiet -o new.tsv");
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(fs::is_symlink(path("link.tsv")));
  EXPECT_EQ(read("target.tsv"), read("new.tsv"));
  EXPECT_EQ(mode("target.tsv"), 0640u);
  EXPECT_EQ(mode("new.tsv"), 0640u);  // 0666 less 027
}

TEST_F(Surroundings, AnOutputThatIsAnInputIsRefused) {
  const std::string before = read("train.fasta");
  fs::create_hard_link(path("train.fasta"), path("other.fasta"));
  fs::create_directory(path("folder"));
  fs::copy(path("train.fasta"), path("folder/a.fasta"));
  for (const Arguments& command : {Arguments{"score", "model", "train.fasta", "-o", "train.fasta"},
                                   {"score", "model", "train.fasta", "-o", "other.fasta"},
                                   {"evaluate", "model", "folder", "-o", "folder/new.txt"},
                                   {"generate", "model", "-o", "model/model.safetensors"},
                                   {"approx", "--model", "model", "--input", "train.fasta", "-o", "model"}}) {
    expect_failure(run(command), 2, {"-o " + command.back()});
  }
  expect_failure(run(train_arguments("folder", "folder/run", {"--steps", "1"})), 2,
                 {"folder/run", "is read"});
  expect_failure(shell("$PERFORMER score model train.fasta >> train.fasta"), 2, {"standard output", "input"});
  EXPECT_EQ(read("train.fasta"), before);
  EXPECT_FALSE(exists("folder/run") || exists("folder/new.txt"));
}

TEST_F(Surroundings, AllInputsAreCheckedBeforeTheFirstIsWorkedOn) {
  for (const char* command : {"score", "evaluate"}) {
    const Result result = run({command, "model", "train.fasta", "missing.fasta"});
    expect_failure(result, 3, {"missing.fasta"});
    EXPECT_THAT(result.err, Not(HasSubstr("60 sequences"))) << "the first file was read";
  }
}

TEST_F(Surroundings, WhatCanBeReadOnceIsNotReadTwice) {
  const std::string start =
      "$PERFORMER train -t 1 --set model.layers=1 model.width=16 model.heads=2 --steps 1 ";
  for (const std::string input : {"--train <(cat train.fasta)", "--train /dev/stdin < <(cat train.fasta)"}) {
    expect_failure(shell(start + "-o held " + input), 2, {"only once", "data.holdout"});
    fs::remove_all(path("once"));
    const Result once = shell(start + "-o once --set data.holdout=0 " + input);
    EXPECT_EQ(once.code, 0) << once.err;
  }
  expect_failure(shell("$PERFORMER score model - - < train.fasta"), 3, {"standard input", "twice"});
}

TEST_F(Surroundings, TheSameSequencesForTrainingAndValidationAreWarnedOf) {
  fs::create_hard_link(path("train.fasta"), path("other.fasta"));
  Result result = run(train_arguments("train.fasta", "a", {"--steps", "1", "--valid", "other.fasta"}));
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("the validation file other.fasta is a training file too"));
  result = run(train_arguments("train.fasta", "b", {"--steps", "1", "--train", "other.fasta"}));
  EXPECT_THAT(result.err, HasSubstr("the training file other.fasta is given twice"));
  result = run(train_arguments("train.fasta", "c", {"--steps", "1"}));
  EXPECT_THAT(result.err, Not(HasSubstr("twice")));
}

TEST_F(Surroundings, NumbersAreDecimalAndTheirErrorsNameOptionRangeAndValue) {
  const auto sample = [&](const std::string& seed) {
    return run({"generate", "model", "--max-length", "20", "--quiet", "--seed", seed}).out;
  };
  EXPECT_EQ(sample("010"), sample("10"));
  EXPECT_EQ(sample("08"), sample("8"));
  EXPECT_NE(sample("18446744073709551615"), sample("0"));
  EXPECT_THAT(run({"train", "--dry-run", "--steps", "1e3"}).out, HasSubstr("\nsteps = 1000\n"));
  expect_failure(run({"generate", "model", "--seed", "18446744073709551616"}), 2,
                 {"--seed", "18446744073709551616"});
  expect_failure(run({"generate", "model", "-n", "0x10"}), 2, {"--count", "whole number", "'0x10'"});
  expect_failure(run({"generate", "model", "-n", "-1"}), 2, {"--count", "at least 0", "'-1'"});
  expect_failure(run({"generate", "model", "--temperature", "0,5"}), 2, {"--temperature", "'0,5'"});
  expect_failure(run({"info", "-t", "99999999999"}), 2, {"--threads", "between 1 and 1024"});
  expect_failure(run({"approx", "--features", "16,0"}), 2, {"--features", "'0'"});
  for (const char* time : {"1h30m", "00:30:00", "1d"}) {
    const Result result = run(train_arguments("train.fasta", time, {"--steps", "1", "--time-limit", time}));
    EXPECT_EQ(result.code, 0) << result.err;
  }
  expect_failure(run(train_arguments("train.fasta", "never", {"--time-limit", "5M"})), 2,
                 {"--time-limit", "'5M'", "1h30m", "00:30:00"});
}

TEST_F(Surroundings, ThreadsFollowTheEnvironmentThenTheMask) {
  EXPECT_THAT(shell("OMP_NUM_THREADS=3,2 $PERFORMER info").out, HasSubstr("threads         3 of"));
  EXPECT_THAT(shell("OMP_NUM_THREADS=3 $PERFORMER info").out, HasSubstr("(set by OMP_NUM_THREADS)"));
  EXPECT_THAT(shell("OMP_NUM_THREADS=3 $PERFORMER info -t 2").out, HasSubstr("threads         2 of"));
  EXPECT_THAT(shell("OMP_NUM_THREADS=3 $PERFORMER info -t 2").out, HasSubstr("(set by -t)"));
  EXPECT_THAT(shell("unset OMP_NUM_THREADS; taskset -c 0 $PERFORMER info").out,
              HasSubstr("threads         1 of 1 CPUs (set by the CPUs"));
}

TEST_F(Surroundings, ScoringAndGeneratingNeedConfigurationAndWeightsAlone) {
  const std::string expected = run({"score", "model", "train.fasta", "--quiet"}).out;
  for (const char* part : {"tokenizer.json", "baselines.json", "training.safetensors", "metrics.jsonl"}) {
    fs::remove(path("model") + "/" + part);
  }
  EXPECT_EQ(run({"score", "model", "train.fasta", "--quiet"}).out, expected);
  EXPECT_EQ(run({"generate", "model", "--quiet"}).code, 0);
  expect_failure(run({"evaluate", "model", "train.fasta"}), 3, {"baselines.json"});
  fs::remove(path("model/config.json"));
  expect_failure(run({"score", "model", "train.fasta"}), 3, {"config.json"});
}

TEST_F(Surroundings, PositionsLimitAllCommandsBeforeAnyWork) {
  make_model("learned", {"--set", "model.positions=learned", "model.max_length=100"});
  write("mixed.fasta", ">short\nMKT\n>long\n" + std::string(120, 'A') + "\n");
  expect_failure(run({"score", "learned", "mixed.fasta", "--quiet"}), 3,
                 {"record 2", "long", "120", "cover 100"});
  expect_failure(run({"evaluate", "learned", "mixed.fasta", "--quiet"}), 3,
                 {"sequence 2", "120", "cover 99"});
  expect_failure(run({"generate", "learned", "--max-length", "101"}), 2, {"100", "101"});
  EXPECT_EQ(run({"generate", "learned", "--quiet"}).code, 0);
}

TEST_F(Surroundings, FoldersThatAreGoneAreNamed) {
  const Result missing =
      run({"evaluate", "model", "train.fasta"}, {.environment = {{"TMPDIR", "/nonexistent"}}});
  expect_failure(missing, 1, {"/nonexistent", "TMPDIR"});
  expect_failure(run({"evaluate", "model", "train.fasta"}, {.environment = {{"TMPDIR", "/dev/null"}}}), 1,
                 {"/dev/null", "TMPDIR"});
  expect_failure(shell("mkdir gone; cd gone; rmdir ../gone; $PERFORMER score ../model train.fasta"), 1,
                 {"no longer exists"});
}

TEST_F(Surroundings, HelpVersionAndSwappedArgumentsAreAnswered) {
  EXPECT_THAT(run({"help"}).out, HasSubstr("score"));
  EXPECT_EQ(run({"help", "score"}).out, run({"score", "--help"}).out);
  EXPECT_EQ(run({"version"}).out, run({"--version"}).out);
  expect_failure(run({"help", "scor"}), 2, {"did you mean 'score'"});
  expect_failure(run({"score", "train.fasta", "model"}), 2, {"train.fasta is a file", "write model first"});
  expect_failure(run({"score", "model/model.safetensors", "train.fasta"}), 2, {"give the folder, model"});
  expect_failure(run({"score", "model", "model"}), 3, {"model is a model folder"});
}

TEST_F(Surroundings, TerminalsThatCannotRedrawGetPlainLines) {
  const std::string train =
      "script -qec \"$PERFORMER train --train train.fasta -t 1 --set model.layers=1 model.width=16 "
      "model.heads=2 "
      "--steps 12 -o ";
  const Result dumb = shell("export TERM=dumb; " + train + "dumb\" /dev/null");
  EXPECT_THAT(dumb.out, HasSubstr("10/12"));
  EXPECT_THAT(dumb.out, Not(HasSubstr("\x1b[")));
  const Result wide = shell("export TERM=xterm; " + train + "wide\" /dev/null");
  EXPECT_THAT(wide.out, HasSubstr("\x1b["));
}

TEST_F(Surroundings, LongReadingIsSaid) {
  const std::string slow =
      "(cat train.fasta; sleep 5; cat train.fasta; sleep 5; cat train.fasta) | $PERFORMER ";
  const Result both =
      shell(slow + "evaluate model - -t 1 -o slow.txt 2> evaluate.txt & " + slow +
            "train --train - -t 1 --set model.layers=1 model.width=16 model.heads=2 data.holdout=0 "
            "--steps 1 -o slow 2> train.txt & wait");
  EXPECT_EQ(both.code, 0) << both.err;
  for (const char* messages : {"evaluate.txt", "train.txt"}) {
    EXPECT_THAT(read(messages), HasSubstr("read ")) << messages;
    EXPECT_THAT(read(messages), HasSubstr(" kB\n")) << messages;
  }
  EXPECT_THAT(shell("$PERFORMER evaluate model train.fasta -t 1").err, Not(HasSubstr(" kB")))
      << "quickly read";
}

}  // namespace
}  // namespace performer::testing_cli
