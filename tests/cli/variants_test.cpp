// SPDX-License-Identifier: Apache-2.0
// performer variants as a user runs it.
#include <gmock/gmock.h>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::MatchesRegex;

class VariantsCommand : public ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    make_model();
    write("wild.fasta", ">wild\nMKTAYIAKQRQISFVKSHFSRQLEERLGLI\n");
  }
};

TEST_F(VariantsCommand, ScoresATableAndComparesIt) {
  write("dms.csv", "mutant,DMS_score,other\nA4P,0.5,3\nK2W:Y5D,-1,2\nG28A,0.1,1\nA4del,NA,\n");
  const Result result = run({"variants", "model", "wild.fasta", "--table", "dms.csv"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto lines = lines_of(result.out);
  ASSERT_EQ(lines.size(), 5u) << result.out;
  EXPECT_EQ(lines[0], "variant\tscore\tscore_kind\tlength\tchanges\tunnormalized\tDMS_score");
  EXPECT_EQ(columns_of(lines[2])[0], "K2W:Y5D");
  EXPECT_EQ(columns_of(lines[2])[2], "log-ratio");
  EXPECT_EQ(columns_of(lines[4])[3], "29");
  bool found = false;
  for (const std::string& line : lines_of(result.err)) found = found || line.starts_with("Spearman ");
  EXPECT_TRUE(found) << "a line of its own on standard error: " << result.err;

  const Result to_file =
      run({"variants", "model", "wild.fasta", "--table", "dms.csv", "-o", "out.csv", "--column", "other"});
  EXPECT_THAT(to_file.out, MatchesRegex("Spearman -?[01]\\.[0-9][0-9][0-9]\n"));
  EXPECT_THAT(read("out.csv"),
              testing::StartsWith("variant,score,score_kind,length,changes,unnormalized,other\nA4P,"));
}

TEST_F(VariantsCommand, AllSinglesMakeAHeatMap) {
  const Result result = run({"variants", "model", "wild.fasta", "--all-single", "-o", "all.tsv", "--heatmap",
                             "map.svg", "--offset", "24"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  const auto lines = lines_of(read("all.tsv"));
  EXPECT_EQ(lines.size(), 1 + 30u * 19);
  EXPECT_EQ(columns_of(lines[1])[0], "M25A");
  EXPECT_THAT(read("map.svg"), AllOf(HasSubstr("<svg"), HasSubstr("M25A "), HasSubstr("log-ratio")));
}

TEST_F(VariantsCommand, MaskedModelsHaveThreeScores) {
  make_model("masked", {"--set", "model.objective=masked"});
  write("list", "A4P\nA4del\n");
  for (const char* score : {"masked-marginal", "wild-type-marginal", "pseudo-likelihood"}) {
    const Result result = run({"variants", "masked", "wild.fasta", "--table", "list", "--score", score});
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(columns_of(lines_of(result.out)[1])[2], score);
    const bool marginal = std::string(score) != "pseudo-likelihood";
    EXPECT_EQ(columns_of(lines_of(result.out)[2])[2], marginal ? "one-pass-pseudo-likelihood" : score);
    if (marginal) {
      EXPECT_THAT(result.err, HasSubstr("1 of 2 variants insert or delete residues"));
    }
  }
  EXPECT_EQ(run({"variants", "masked", "wild.fasta", "--table", "list"}).code, 0);
}

TEST_F(VariantsCommand, NamesWhatIsWrong) {
  write("bad.csv", "mutant,DMS_score\nA4P,1\nG5P,1\n");
  expect_failure(run({"variants", "model", "wild.fasta", "--table", "bad.csv"}), 3,
                 {"bad.csv, line 3 ('G5P')", "expected G at position 5", "found Y", "--offset"});
  expect_failure(run({"variants", "model", "wild.fasta", "--table", "bad.csv", "--all-single"}), 2,
                 {"--all-single"});
  expect_failure(run({"variants", "model", "wild.fasta", "--column", "x"}), 2, {"--table"});
  expect_failure(run({"variants", "model", "wild.fasta", "--score", "masked-marginal"}), 2,
                 {"masked models", "log-ratio"});
  expect_failure(run({"variants", "model", "wild.fasta", "--table", "bad.csv", "-o", "bad.csv"}), 2,
                 {"also an input"});
  expect_failure(run({"variants", "model", "wild.fasta", "--heatmap", "-"}), 2, {"--heatmap"});
  make_fasta("many.fasta", 2);
  expect_failure(run({"variants", "model", "many.fasta"}), 3, {"several sequences"});
}

}  // namespace
}  // namespace performer::testing_cli
