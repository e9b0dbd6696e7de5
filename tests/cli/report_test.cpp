// SPDX-License-Identifier: Apache-2.0
// performer report, as a user runs it; tests/browser/report_test.py looks at the page in a browser.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class ReportCommand : public ProgramTest {};

TEST_F(ReportCommand, ShowsWhatTheOtherCommandsWrote) {
  make_model("one");
  make_model("two", {"--set", "attention.kind=favor-hyperbolic"});
  for (int again = 0; again < 2; ++again) {  // results may be replaced
    const Result result =
        run({"evaluate", "one", "train.fasta", "--json", "-o", "one/evaluation-train.json"});
    ASSERT_EQ(result.code, 0) << result.err;
  }
  ASSERT_EQ(run({"attention", "one", "train.fasta", "-o", "one/attention", "--sequences", "3"}).code, 0);
  ASSERT_EQ(run({"generate", "one", "-n", "2", "--max-length", "20", "-o", "one/generated.fasta"}).code, 0);
  const Result result = run({"report", "one", "two", "-o", "report.html", "--results", "results.json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const json numbers = json::parse(read("results.json")),
             evaluation = json::parse(read("one/evaluation-train.json"));
  EXPECT_EQ(numbers["runs"][0]["evaluations"]["train"], evaluation);
  EXPECT_TRUE(evaluation.contains("by_length"));
  EXPECT_TRUE(evaluation.contains("by_symbol"));
  EXPECT_TRUE(evaluation.contains("calibration"));
  for (const auto& [key, part] : evaluation.items())  // whoever prints all parts may rely on it
    EXPECT_TRUE(!part.is_object() || part.contains("perplexity")) << key;
  const std::string page = read("report.html");
  for (const char* text : {"attention.kind", "Similarity of amino acids", "generated.fasta", "Calibration"})
    EXPECT_THAT(page, HasSubstr(text));
  const std::string perplexity = evaluation["model"]["perplexity"].dump();
  EXPECT_THAT(page, HasSubstr("<data value=\"" + perplexity +
                              "\" data-key=\"/runs/0/evaluations/train/model/perplexity\">"));
  EXPECT_EQ(run({"report", "one", "-o", "one/report.html"}).code, 0);
  EXPECT_EQ(run({"report", "one", "-o", "one/report.html"}).code, 0) << "a report may be replaced";
}

TEST_F(ReportCommand, NamesBadRequests) {
  make_model("one");
  expect_failure(run({"report", "nowhere"}), 3, {"nowhere", "does not exist"});
  expect_failure(run({"report", "train.fasta"}), 3, {"train.fasta", "is a file"});
  expect_failure(run({"report", "one", "one/."}), 2, {"same folder"});
  expect_failure(run({"report", "one", "-o", "one/config.json"}), 2, {"one/config.json"});
  write("one/metrics.jsonl", "{\"step\":1,\"loss\":3.0}\n");
  expect_failure(run({"report", "one"}), 3, {"not finished", "--unfinished"});
  EXPECT_FALSE(exists("report.html"));
  const Result result = run({"report", "one", "--unfinished", "-o", "-"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("is not finished"));
}

}  // namespace
}  // namespace performer::testing_cli
