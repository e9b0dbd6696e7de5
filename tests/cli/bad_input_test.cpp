// SPDX-License-Identifier: Apache-2.0
// Every bad input ends with its exit code, one message that names it, and nothing half-written.
#include <gmock/gmock.h>
#include <zlib.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

namespace fs = std::filesystem;

class BadInput : public ProgramTest {
 protected:
  // Training, and so any reading of FASTA, refuses `fasta` and leaves no model.
  void expect_refused(const std::string& fasta, const std::vector<std::string>& words) {
    expect_failure(run(train_arguments(fasta, "refused", {"--steps", "2", "--set", "data.format=fasta"})), 3,
                   words);
    EXPECT_FALSE(exists("refused/config.json") || exists("refused/model.safetensors") ||
                 exists("refused/training.safetensors"));
    for (const auto& file : files()) EXPECT_THAT(file, testing::Not(testing::HasSubstr(".tmp-"))) << fasta;
    fs::remove_all(path("refused"));
  }

  std::string gzip(const std::string& text) const {
    gzFile file = gzopen(path("packed.gz").c_str(), "wb");
    gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
    gzclose(file);
    return read("packed.gz");
  }

  void copy_model(const std::string& to) const {
    fs::copy(path("model"), path(to), fs::copy_options::recursive);
  }
};

TEST_F(BadInput, SequenceFiles) {
  expect_refused("missing.fasta", {"missing.fasta", "No such file"});
  fs::create_directory(path("folder"));
  expect_refused("folder", {"folder", "no files"});
  write("empty.fasta", "");
  expect_refused("empty.fasta", {"empty.fasta", "empty"});
  write("blank.fasta", "\n\n \n");
  expect_refused("blank.fasta", {"blank.fasta"});
  write("table.csv", "id,sequence\na,MKT\n");
  expect_refused("table.csv", {"table.csv", "not FASTA", "line 1", "'>'"});
  write("hollow.fasta", ">a\nMKT\n>b\n>c\nMKT\n");
  expect_refused("hollow.fasta", {"hollow.fasta", "record 2", "line 3", "no sequence"});
  write("hollow_end.fasta", ">a\nMKT\n>last\n");
  expect_refused("hollow_end.fasta", {"hollow_end.fasta", "record 2", "last", "no sequence"});
  write("letter.fasta", ">a\nMKT\n>b\nMKTAY\nMK1AY\n");
  expect_refused("letter.fasta", {"letter.fasta", "record 2", "(b)", "line 5", "column 3", "'1'"});
}

TEST_F(BadInput, CompressedFiles) {
  make_fasta("whole.fasta", 200);
  const std::string packed = gzip(read("whole.fasta"));
  write("truncated.fasta.gz", packed.substr(0, packed.size() / 2));
  expect_refused("truncated.fasta.gz", {"truncated.fasta.gz", "truncated"});
  write("tail.fasta.gz", packed.substr(0, packed.size() - 4));  // only the check sum is cut
  expect_refused("tail.fasta.gz", {"tail.fasta.gz", "truncated"});
  std::string damaged = packed;
  damaged[packed.size() / 2] = static_cast<char>(damaged[packed.size() / 2] ^ 0x55);
  write("damaged.fasta.gz", damaged);
  expect_refused("damaged.fasta.gz", {"damaged.fasta.gz"});
}

TEST_F(BadInput, BadSequencesLeaveNoScores) {
  make_model();
  write("letter.fasta", ">a\nMKT\n>b\nMK?\n");
  const auto before = files();
  expect_failure(run({"score", "model", "letter.fasta", "-o", "scores.tsv"}), 3,
                 {"letter.fasta", "record 2", "column 3", "'?'"});
  expect_failure(run({"evaluate", "model", "letter.fasta", "-o", "report.txt"}), 3,
                 {"letter.fasta", "record 2"});
  expect_failure(run({"generate", "model", "--prompt", "MK?", "-o", "samples.fasta"}), 3,
                 {"position 3", "'?'"});
  EXPECT_EQ(files(), before);
  // An older result stays.
  write("scores.tsv", "older\n");
  EXPECT_EQ(run({"score", "model", "letter.fasta", "-o", "scores.tsv"}).code, 3);
  EXPECT_EQ(read("scores.tsv"), "older\n");
}

TEST_F(BadInput, Checkpoints) {
  make_model();
  const auto refused = [&](const std::string& model, const std::vector<std::string>& words) {
    expect_failure(run({"evaluate", model, "train.fasta"}), 3, words);
    expect_failure(run({"info", model}), 3, words);
  };
  refused("nowhere", {"nowhere"});
  fs::create_directory(path("hollow"));
  refused("hollow", {"hollow"});

  copy_model("truncated");
  const std::string weights = read("model/model.safetensors");
  write("truncated/model.safetensors", weights.substr(0, weights.size() - 100));
  refused("truncated", {"truncated/model.safetensors", "truncated"});
  write("truncated/model.safetensors", weights.substr(0, 5));
  refused("truncated", {"truncated/model.safetensors"});

  copy_model("cut_config");
  const std::string text = read("model/config.json");
  write("cut_config/config.json", text.substr(0, text.size() / 2));
  refused("cut_config", {"cut_config/config.json"});

  make_model("wide", {"--set", "model.width=32"});
  copy_model("foreign");
  write("foreign/model.safetensors", read("wide/model.safetensors"));
  refused("foreign", {"foreign", "16", "32"});
  make_model("deep", {"--set", "model.layers=2"});
  write("foreign/model.safetensors", read("deep/model.safetensors"));
  refused("foreign", {"foreign"});

  copy_model("newer");
  nlohmann::json config = nlohmann::json::parse(text);
  config["format"] = 99;
  write("newer/config.json", config.dump());
  refused("newer", {"newer/config.json", "format 99"});
}

TEST_F(BadInput, TruncatedTrainingStateIsNotResumed) {
  make_model();
  const std::string state = read("model/training.safetensors"), weights = read("model/model.safetensors");
  write("model/training.safetensors", state.substr(0, state.size() / 2));
  expect_failure(run({"train", "--train", "train.fasta", "-o", "model", "--resume", "--steps", "9"}), 3,
                 {"training.safetensors", "truncated"});
  EXPECT_EQ(read("model/model.safetensors"), weights);
}

// The model does not exist either: that the message is about the output shows that it is looked at first.
TEST_F(BadInput, UnwritableOutputIsFoundBeforeTheWorkStarts) {
  make_fasta("train.fasta", 10);
  for (const Arguments& command : {Arguments{"score", "nowhere", "train.fasta", "-o"},
                                   {"generate", "nowhere", "-o"},
                                   {"evaluate", "nowhere", "train.fasta", "-o"}}) {
    for (const std::string place : {"no/such/folder/out", "train.fasta/out"}) {
      Arguments arguments = command;
      arguments.push_back(place);
      expect_failure(run(arguments), 1, {place});
    }
  }
  expect_failure(run({"score", "nowhere", "train.fasta", "-o", "."}), 1, {"directory"});
  expect_failure(run(train_arguments("missing.fasta", "train.fasta/model")), 1, {"train.fasta/model"});
  EXPECT_EQ(files().size(), 1u);
}

TEST_F(BadInput, FullDisk) {
  make_model();
  const auto before = files();
  expect_failure(run({"score", "model", "train.fasta", "-o", "/dev/full"}), 1,
                 {"/dev/full", "No space left"});
  expect_failure(run({"score", "model", "train.fasta"}, {.standard_output = "/dev/full"}), 1,
                 {"standard output", "No space left"});
  expect_failure(run({"train", "--dry-run"}, {.standard_output = "/dev/full"}), 1,
                 {"standard output", "No space left"});
  // A disk that fills while a file is being written.
  write("scores.tsv", "older\n");
  expect_failure(
      run({"score", "model", "train.fasta", "--per-residue", "-o", "scores.tsv"}, {.file_limit = 4096}), 1,
      {"scores.tsv", "File too large"});
  EXPECT_EQ(read("scores.tsv"), "older\n");
  fs::remove(path("scores.tsv"));
  expect_failure(run({"evaluate", "model", "train.fasta"}, {.file_limit = 512}), 1, {"File too large"});
  EXPECT_EQ(files(), before);
}

TEST_F(BadInput, FullDiskWhileTrainingKeepsTheLastCheckpoint) {
  make_fasta("few.fasta", 20);
  expect_failure(run(train_arguments("few.fasta", "model", {"--steps", "3"}), {.file_limit = 8192}), 1,
                 {"model/", "File too large"});
  for (const auto& file : files()) {
    EXPECT_THAT(file, testing::Not(testing::HasSubstr(".tmp-")));
    EXPECT_THAT(file, testing::Not(testing::HasSubstr(".safetensors")));
  }
  fs::remove_all(path("model"));
  make_model();
  const std::string state = read("model/training.safetensors");
  expect_failure(
      run({"train", "--train", "train.fasta", "-o", "model", "--resume", "--steps", "9", "-t", "1"},
          {.file_limit = 16384}),
      1, {"model/", "File too large"});
  EXPECT_EQ(read("model/training.safetensors"), state);
}

TEST_F(BadInput, OutOfMemoryLengths) {
  make_fasta("train.fasta", 10);
  // Rows of a size that no machine has.
  expect_failure(run(train_arguments("train.fasta", "rows",
                                     {"--set", "data.layout=padded", "data.length=1000000000000",
                                      "data.batch_tokens=1000000000000"})),
                 1, {"out of memory", "data."});
  expect_failure(run(train_arguments("train.fasta", "wide", {"--set", "model.width=10000000"})), 1,
                 {"out of memory", "model"});
  // A long sequence on a small machine.
  std::string residues;
  for (int i = 0; i < 75000; ++i) residues += "ACDEFGHIKLMNPQRSTVWY";
  write("long.fasta", ">long\n" + residues + "\n");
  make_model();
  EXPECT_EQ(run({"train", "-t", "1", "--preset", "tiny", "--set", "attention.kind=exact", "--train",
                 "train.fasta", "-o", "exact", "--steps", "2"})
                .code,
            0);
  const auto before = files();
  const Setting small{.data_limit = int64_t{250} << 20};
  // With a state of constant size it is read in chunks; exact attention holds all of it.
  EXPECT_EQ(run({"score", "model", "long.fasta", "-t", "1"}, small).code, 0);
  EXPECT_EQ(run({"score", "exact", "train.fasta", "-t", "1"}, small).code, 0);
  expect_failure(run({"score", "exact", "long.fasta", "-o", "scores.tsv", "-t", "1"}, small), 1,
                 {"out of memory"});
  expect_failure(run({"evaluate", "exact", "long.fasta", "-t", "1"}, small), 1, {"out of memory"});
  EXPECT_EQ(files(), before);
  const Arguments whole = {"--set", "data.length=2000000", "data.batch_tokens=2000000", "data.holdout=0"};
  expect_failure(run(train_arguments("long.fasta", "trained", whole), small), 1,
                 {"out of memory", "data.length"});
  // What is left is a complete model, the one before the failed step.
  EXPECT_EQ(run({"evaluate", "trained", "train.fasta", "-t", "1"}).code, 0);
  for (const auto& file : files()) EXPECT_THAT(file, testing::Not(testing::HasSubstr(".tmp-")));
}

}  // namespace
}  // namespace performer::testing_cli
