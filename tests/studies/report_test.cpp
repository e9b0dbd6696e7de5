// SPDX-License-Identifier: Apache-2.0
// The page of a report: it is well-formed, nothing from a folder can break out of it, and its numbers are
// those of the files.
#include "performer/studies/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "tests/errors.h"

namespace performer::studies {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::ordered_json;

const char* const kEvil = "<script>alert(\"x\")</script>&'";

class Report : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::path(::testing::TempDir()) /
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string write(const std::string& name, const std::string& text) const {
    const auto path = root_ / name;
    std::filesystem::create_directories(path.parent_path());
    write_file(path.string(), text);
    return path.string();
  }

  // A finished run of a few steps.
  std::string make_run(const std::string& name, double loss = 2.75) const {
    write(
        name + "/config.json",
        R"({"format": 2, "model": {"layers": 2, "objective": "causal"}, "attention": {"kind": "favor-relu", "seed": )" +
            std::to_string(static_cast<int>(loss * 100)) + R"(}, "provenance": {"parameters": 798749}})");
    std::string metrics;
    for (int step = 1; step <= 5; ++step) {
      metrics += Json{{"step", step},
                      {"loss", loss + 1.0 / step},
                      {"accuracy", 0.1 * step},
                      {"tokens", 1000 * step},
                      {"seconds", 2.5 * step}}
                     .dump() +
                 "\n";
    }
    metrics +=
        R"({"step":5,"valid":{"model":{"accuracy":0.1062,"perplexity":17.328841,"tokens":205161},"unigram":)"
        R"({"accuracy":0.0963,"perplexity":17.98,"tokens":205161},"bigram":{"accuracy":0.0989,"perplexity":17.71,)"
        R"("tokens":205161},"sequences":600,"seconds":3.5}})"
        "\n"
        R"({"step":5,"final":{"tokens":5000,"seconds":3725.5,"tokens_per_second":400.25,"peak_memory_mib":512}})"
        "\n";
    write(name + "/metrics.jsonl", metrics);
    return (root_ / name).string();
  }

  void add_results(const std::string& name) const {
    write(
        name + "/evaluation-heldout.json",
        R"({"model": {"accuracy": 0.125, "perplexity": 16.5, "tokens": 12}, "unigram": {"accuracy": 0.1, "perplexity":)"
        R"(18.0, "tokens": 12}, "bigram": null, "sequences": 3, "seconds": 1.0, "by_length": [{"from": 1, "to": 64,)"
        R"("sequences": 3, "model": {"accuracy": 0.125, "perplexity": 16.5, "tokens": 12}, "unigram": {"accuracy": 0.1,)"
        R"("perplexity": 18.0, "tokens": 12}, "bigram": null}], "by_symbol": [{"symbol": "A<", "tokens": 12, "accuracy":)"
        R"(0.125, "perplexity": 16.5, "unigram_perplexity": 18.0, "predicted": 2}], "calibration": [{"from": 0,)"
        R"("to": 0.1, "tokens": 12, "confidence": 0.08, "accuracy": 0.125}], "calibration_error": 0.045})");
    write(name + "/results.json", Json{{"what", kEvil}, {"deep", {{"a/b", 0.123456789}}}}.dump());
    write(name + "/generated_1.fasta", std::string(">1 ") + kEvil + "\nMKT\n");
    write(
        name + "/study/model_heads.json",
        R"({"title": "Heads", "rows": [{"layer": 0, "head": 1, "squared_norm": 3.5, "attended": 20.0, "uniform_error":)"
        R"(0.5, "best_error": 0.05, "advice": "favor-softmax, 64 features"}]})");
    write(
        name + "/study/attention.json",
        R"({"sequences": [{"id": "a<b>", "length": 9, "band": 1, "columns": 1, "heads": [{"layer": 0, "head": 0,)"
        R"("label": "diffuse", "diagonal": 0.25, "uniform_diagonal": 0.3, "vertical": 0.125, "uniform_vertical": 0.1,)"
        R"("attended": 7.5, "uniform_attended": 9, "distance": 3, "uniform_distance": 3.2}], "pictures": [{"layer": 0,)"
        R"("file": "p.svg", "description": "what \"it\" shows"}]}], "similarity": null})");
    write(name + "/study/p.svg", std::string("<svg xmlns='http://www.w3.org/2000/svg'>") + kEvil + "</svg>");
  }

  std::string page(const std::vector<std::string>& paths) const {
    std::vector<Experiment> runs;
    for (const std::string& path : paths) runs.push_back(read_experiment(path, false));
    return report_html(runs, report_numbers(runs), kEvil, "end");
  }

  std::filesystem::path root_;
};

// Elements close in the order in which they were opened, attributes are quoted, and only known entities
// occur.
void expect_well_formed(const std::string& html) {
  static const std::set<std::string> kEmpty = {"meta", "link", "img", "br"};
  std::vector<std::string> open;
  size_t at = html.find("<html");
  ASSERT_NE(at, std::string::npos);
  const std::regex tag(
      R"re(^<(/?)([a-zA-Z][a-zA-Z0-9]*)((?:\s+[a-zA-Z][a-zA-Z0-9:-]*(?:="[^"<]*")?)*)\s*(/?)>)re");
  while ((at = html.find_first_of("<&", at)) != std::string::npos) {
    std::smatch match;
    // A style holds no tags, and regular expressions are slow on long attributes: both are cut off here.
    const size_t end = html.find(html[at] == '&' ? ';' : '>', at);
    ASSERT_NE(end, std::string::npos);
    std::string text = html.substr(at, end + 1 - at);
    if (html[at] == '&') {
      static const std::set<std::string> kEntities = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"};
      ASSERT_TRUE(kEntities.contains(text)) << text.substr(0, 60);
    } else {
      text = std::regex_replace(text, std::regex("base64,[A-Za-z0-9+/=]*"), "base64,");
      ASSERT_TRUE(std::regex_match(text, match, tag)) << text.substr(0, 200);
      const std::string name = match[2];
      if (match[1] == "/") {
        ASSERT_FALSE(open.empty()) << name;
        ASSERT_EQ(open.back(), name);
        open.pop_back();
      } else if (match[4] != "/" && !kEmpty.contains(name)) {
        open.push_back(name);
      }
    }
    at = end + 1;
  }
  EXPECT_TRUE(open.empty());
}

// Every <data> shows the number at its key, and there are `least` of them.
void expect_numbers_of(const std::string& html, const Json& numbers, int least) {
  const std::regex data(R"re(<data value="([^"]*)" data-key="([^"]*)">([^<]*)</data>)re");
  int count = 0;
  for (std::sregex_iterator found(html.begin(), html.end(), data), end; found != end; ++found, ++count) {
    const auto key = Json::json_pointer((*found)[2].str());
    ASSERT_TRUE(numbers.contains(key)) << (*found)[2];
    EXPECT_EQ(numbers.at(key).dump(), (*found)[1].str());
    EXPECT_FALSE((*found)[3].str().empty());
  }
  EXPECT_GE(count, least);
}

TEST_F(Report, IsAWellFormedPageOfTheNumbersInTheFolders) {
  const std::string one = make_run("one"), two = make_run("two <&> \"2\"", 2.5);
  add_results("one");
  const std::string html = page({one, two});
  expect_well_formed(html);
  const auto numbers = report_numbers({read_experiment(one, false), read_experiment(two, false)});
  expect_numbers_of(html, numbers, 40);
  EXPECT_EQ(numbers["runs"][0]["evaluations"]["heldout"]["model"]["perplexity"], 16.5);
  for (const char* text : {"<html lang=\"en\">",
                           "prefers-color-scheme: dark",
                           "@media print",
                           "class=\"skip\"",
                           "scope=\"col\"",
                           "scope=\"row\"",
                           "<caption>",
                           "role=\"img\"",
                           "<desc>",
                           "17.33</data>",
                           "10.62 %</data>",
                           "1 h 02 min</data>",
                           "798,749</data>",
                           "attention.seed",
                           "Learning curves",
                           "favor-softmax, 64 features",
                           "0.1235</data>",
                           "alt=\"what &quot;it&quot; shows\"",
                           "two &lt;&amp;&gt; &quot;2&quot;",
                           "Calibration",
                           "A&lt;"}) {
    EXPECT_THAT(html, HasSubstr(text));
  }
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("src=\"http")));
}

TEST_F(Report, ShowsOneRunToo) {
  const std::string html = page({make_run("alone")});
  expect_well_formed(html);
  EXPECT_THAT(html, HasSubstr("All settings"));
  EXPECT_THAT(html, Not(HasSubstr("Settings that differ")));
  EXPECT_THAT(html, Not(HasSubstr("class=\"best\""))) << "one alone is not the best of several";
}

TEST_F(Report, ThinsLongCurves) {
  const std::string run = make_run("long");
  std::string metrics;
  for (int step = 1; step <= 5000; ++step) {
    metrics += Json{{"step", step}, {"loss", 3.0}, {"tokens", step}, {"seconds", step}}.dump() + "\n";
  }
  write("long/metrics.jsonl", metrics + "{\"step\":5000,\"final\":{}}\n");
  const std::string html = page({run});
  EXPECT_THAT(html, HasSubstr("means of up to 32 steps"));
  EXPECT_LT(html.size(), 60000u);
  EXPECT_THAT(html, Not(HasSubstr("accuracy against"))) << "no step has one";
}

TEST_F(Report, NamesFoldersThatAreNone) {
  const auto message = [](const std::string& path, bool unfinished = false) {
    return test::error_of<InputError>([&] { read_experiment(path, unfinished); });
  };
  EXPECT_THAT(message((root_ / "nowhere").string()), HasSubstr("does not exist"));
  EXPECT_THAT(message(write("file", "x")), HasSubstr("is a file"));
  std::filesystem::create_directories(root_ / "empty");
  EXPECT_THAT(message((root_ / "empty").string()), HasSubstr("has no config.json"));
  const std::string run = make_run("run");
  std::filesystem::remove(root_ / "run/metrics.jsonl");
  EXPECT_THAT(message(run), HasSubstr("has no metrics.jsonl"));
  write("run/metrics.jsonl", "{\"step\":1,\"loss\":3.0}\n");
  EXPECT_THAT(message(run), HasSubstr("not finished: its last record is of step 1"));
  EXPECT_EQ(read_experiment(run, true).steps.size(), 1u);
  write("run/metrics.jsonl", "{\"step\":1,\"loss\":3.0}\n{\"step\":2,\"lo");
  EXPECT_THAT(message(run), HasSubstr("metrics.jsonl:2"));
  EXPECT_EQ(read_experiment(run, true).steps.size(), 1u) << "a line that is being written";
  write("run/metrics.jsonl", "[]\n");
  EXPECT_THAT(message(run, true), HasSubstr("metrics.jsonl:1: expected a JSON object with a step"));
  const std::string other = make_run("other");
  write("other/evaluation.json", "{}");
  EXPECT_THAT(message(other), HasSubstr("evaluation.json does not hold results"));
  write("other/evaluation.json", "no JSON");
  EXPECT_THAT(message(other), HasSubstr("evaluation.json, line 1, column 2: not JSON"));
  std::filesystem::remove(root_ / "other/evaluation.json");
  write("other/attention.json",
        R"({"sequences": [{"pictures": [{"file": "../secret", "description": ""}]}]})");
  EXPECT_THAT(message(other), HasSubstr("does not lie beside it"));
  write("other/attention.json", R"({"sequences": 5})");
  EXPECT_THAT(message(other), AllOf(HasSubstr("attention.json: not as this program writes it"),
                                    HasSubstr("write it anew"), HasSubstr("found number")));
  std::filesystem::remove(root_ / "other/attention.json");
  write("other/evaluation.json",
        R"({"model": {"perplexity": 2}, "by_length": [{"from": "one", "to": 64, "sequences": 1}]})");
  EXPECT_THAT(test::error_of<InputError>([&] { page({other}); }),
              AllOf(HasSubstr("the results for the part 'Evaluations': not as this program writes them"),
                    HasSubstr("type must be number, but is string")));
}

TEST(ResultFiles, AreThoseThatMayBeReplaced) {
  for (const char* name :
       {"evaluation.json", "evaluation-ood.json", "results.json", "report.html", "report-2.html"})
    EXPECT_TRUE(is_result_file(name)) << name;
  for (const char* name : {"config.json", "model.safetensors", "metrics.jsonl", "report.txt"})
    EXPECT_FALSE(is_result_file(name)) << name;
}

}  // namespace
}  // namespace performer::studies
