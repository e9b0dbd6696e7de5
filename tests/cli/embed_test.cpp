// SPDX-License-Identifier: Apache-2.0
// performer embed as a user runs it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using testing::HasSubstr;

class EmbedCommand : public ProgramTest {};

TEST_F(EmbedCommand, WritesOneArrayAndAnIndex) {
  make_model();
  make_fasta("in.fasta", 7);
  for (const char* name : {"out.safetensors", "out.npy", "out.npz"}) {
    const Result result = run({"embed", "model", "in.fasta", "-o", name});
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(result.out, "");
    const auto lines = lines_of(read(std::string(name) + ".tsv"));
    ASSERT_EQ(lines.size(), 8u) << name;
    EXPECT_EQ(lines[0], "row\tid\tlength\trows");
    EXPECT_EQ(columns_of(lines[7])[0], "6");
    EXPECT_EQ(columns_of(lines[7])[1], "protein_7");
    EXPECT_FALSE(exists(std::string(name) + ".partial"));
  }
  // One row of 16 numbers each, and nothing else.
  EXPECT_EQ(read("out.npy").size() % 64, 7u * 16 * 4 % 64);
  EXPECT_EQ(run({"embed", "model", "in.fasta", "-", "-o", "two.npy", "--quiet"}, {.input = ">x\nMKT\n"}).err,
            "");
  EXPECT_EQ(lines_of(read("two.npy.tsv")).size(), 9u);
}

TEST_F(EmbedCommand, OptionsChooseWhatIsStored) {
  make_model();
  write("in.fasta", ">a\nMKTAYIAKQR\n>b\nGG\n");
  ASSERT_EQ(run({"embed", "model", "in.fasta", "-o", "t.csv", "--pool", "tokens", "--layers", "-1,0"}).code,
            0);
  EXPECT_EQ(lines_of(read("t.csv")).size(), 1 + 2 * 12u);
  EXPECT_FALSE(exists("t.csv.tsv"));
  ASSERT_EQ(
      run({"embed", "model", "in.fasta", "-o", "m.safetensors", "--layers", "-2", "--dtype", "bfloat16"})
          .code,
      0);
  EXPECT_THAT(read("m.safetensors"), testing::AllOf(HasSubstr("\"BF16\""), HasSubstr("\"pool\":\"mean\"")));
  ASSERT_EQ(run({"embed", "model", "in.fasta", "-o", "any.name", "--format", "npy"}).code, 0);
  // In chunks as whole, to rounding: the same rows for other sizes of chunks.
  for (const char* chunk : {"3", "8192"}) {
    ASSERT_EQ(run({"embed", "model", "in.fasta", "-o", "c.csv", "--chunk", chunk}).code, 0);
    const auto cells = lines_of(read("c.csv"));
    ASSERT_EQ(cells.size(), 3u);
  }
  EXPECT_THAT(run({"embed", "model", "in.fasta", "-o", "f.npy", "--pool", "first"}).err,
              HasSubstr("--pool mean"));
}

TEST_F(EmbedCommand, NamesWhatIsWrong) {
  make_model();
  make_fasta("in.fasta", 2);
  expect_failure(run({"embed", "model", "in.fasta", "-o", "out.h5"}), 2,
                 {"out.h5", ".safetensors", "--format"});
  expect_failure(run({"embed", "model", "in.fasta", "-o", "-"}), 2, {"need a file"});
  expect_failure(run({"embed", "model", "in.fasta", "-o", "in.fasta", "--format", "npy"}), 2,
                 {"in.fasta", "also an input"});
  expect_failure(run({"embed", "model", "in.fasta", "-o", "out.npy", "--dtype", "bfloat16"}), 2,
                 {"NumPy has no bfloat16", ".safetensors"});
  expect_failure(run({"embed", "model", "in.fasta", "-o", "out.npy", "--layers", "2"}), 2,
                 {"--layers 2", "0 (embedding) to 1"});
  expect_failure(run({"embed", "model", "in.fasta", "-o", "out.npy", "--pool", "median"}), 2, {"--pool"});
  expect_failure(run({"embed", "model", "none.fasta", "-o", "out.npy"}), 3, {"none.fasta"});
  write("dna1.fasta", ">a\nMK1\n");
  expect_failure(run({"embed", "model", "dna1.fasta", "-o", "out.npy"}), 3, {"dna1.fasta", "line 2"});
  for (const std::string& file : files())
    EXPECT_THAT(file, testing::Not(HasSubstr("partial"))) << "nothing was finished";
}

TEST_F(EmbedCommand, AKilledRunGoesOn) {
  make_model();
  make_fasta("in.fasta", 4000);
  ASSERT_EQ(run({"embed", "model", "in.fasta", "-o", "whole.npy", "--chunk", "10"}).code, 0);
  Process process(directory_, {"embed", "model", "in.fasta", "-o", "out.npy", "--chunk", "10"}, {});
  const auto finished = [&] {
    return exists("out.npy.partial.tsv") ? lines_of(read("out.npy.partial.tsv")).size() : 0;
  };
  for (int i = 0; i < 6000 && finished() < 50; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  process.send(SIGTERM);
  EXPECT_EQ(process.wait().signal, SIGTERM);
  ASSERT_TRUE(exists("out.npy.partial"));
  EXPECT_FALSE(exists("out.npy"));
  const Result result = run({"embed", "model", "in.fasta", "-o", "out.npy", "--chunk", "10", "--resume"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("sequences are finished"));
  EXPECT_EQ(read("out.npy.tsv"), read("whole.npy.tsv"));
  EXPECT_EQ(read("out.npy").size(), read("whole.npy").size());
}

}  // namespace
}  // namespace performer::testing_cli
