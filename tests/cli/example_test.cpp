// SPDX-License-Identifier: Apache-2.0
// examples/proteins/run on a tiny model.
#include <gmock/gmock.h>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST_F(ProgramTest, TheExampleForProteinsMakesOnePage) {
  if (run({}, {.shell = "python3 --version"}).code != 0) GTEST_SKIP() << "needs python3";
  make_model("model", {"--set", "model.objective=masked"});
  std::string longer = ">long\n";
  for (int i = 0; i < 900; ++i) longer += "MKTAYIAKQR";
  ASSERT_EQ(run({}, {.shell = "mkdir folder"}).code, 0);
  write("folder/a.fasta", ">one\nMKTAYIAKQRQISFVKSH\n>same\nMKTAYIAKQRQISFVKSH\n>other\nGGGGGGGPPPPP\n");
  write("folder/b.fa", longer + "\n");
  write("wild.fasta", ">wild\nMKTAYIAKQR\n");
  const Result result =
      run({}, {.shell = "python3 " PERFORMER_SOURCE_DIR
                        "/examples/proteins/run model folder wild.fasta -o out --performer \"$PERFORMER\""});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("out/report.html"));
  EXPECT_THAT(read("out/neighbours.tsv"), HasSubstr("one\tsame\t1.0000"));
  EXPECT_EQ(lines_of(read("out/variants.tsv")).size(), 1 + 10u * 19);
  EXPECT_EQ(lines_of(read("out/embeddings.csv")).size(), 5u);
  EXPECT_THAT(read("out/report.html"), AllOf(HasSubstr("variants.svg"), HasSubstr("<h2")));
}

}  // namespace
}  // namespace performer::testing_cli
