// SPDX-License-Identifier: Apache-2.0
// performer info --kinds, and that help texts stay short whatever kinds there are.
#include <gmock/gmock.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/cli/program.h"

namespace performer::testing_cli {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class Info : public ProgramTest {
 protected:
  json kinds() const { return json::parse(run({"info", "--kinds", "--json"}).out).at("kinds"); }
};

TEST_F(Info, ListsEachKindOnceInItsGroup) {
  const json listed = kinds();
  std::map<std::string, std::string> group_of;
  for (const auto& kind : listed) {
    EXPECT_TRUE(group_of.emplace(kind.at("name"), kind.at("group")).second)
        << kind.at("name") << " is listed twice";
    EXPECT_NE(kind.at("summary"), "") << kind.at("name");
  }
  for (const char* name : {"favor-relu", "favor-softmax", "exact", "local", "identity"})
    EXPECT_TRUE(group_of.contains(name)) << name;
  EXPECT_EQ(group_of.at("favor-relu"), "own");
  EXPECT_EQ(group_of.at("exact"), "baselines");

  const Result text = run({"info", "--kinds"});
  EXPECT_EQ(text.code, 0) << text.err;
  std::string group;
  std::multiset<std::string> seen;
  for (const auto& line : lines_of(text.out)) {
    if (line.empty()) {
      group.clear();
    } else if (line[0] != ' ') {
      group = line;
    } else {
      const std::string name = line.substr(2, line.find(' ', 2) - 2);
      seen.insert(name);
      ASSERT_TRUE(group_of.contains(name)) << line;
      EXPECT_EQ(group_of.at(name), group) << line;
    }
  }
  EXPECT_EQ(seen.size(), group_of.size());
  EXPECT_EQ(std::set<std::string>(seen.begin(), seen.end()).size(), group_of.size());
}

TEST_F(Info, ShowsWhatAKindCanDoAndItsOptions) {
  const Result text = run({"info", "--kinds", "favor-softmax"});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out,
              AllOf(HasSubstr("favor-softmax (own)"), HasSubstr("streams"),
                    HasSubstr("attention.features = 256\n"), HasSubstr("attention.projection = auto  {")));
  const json kind = json::parse(run({"info", "--kinds", "favor-softmax", "--json"}).out);
  EXPECT_EQ(kind.at("name"), "favor-softmax");
  EXPECT_EQ(kind.at("capabilities").at("streams"), true);
  EXPECT_EQ(kind.at("options")[0].at("key"), "attention.features");
  EXPECT_EQ(kind.at("options")[0].at("default"), 256);
  EXPECT_THAT(run({"info", "--kinds", "identity"}).out,
              AllOf(HasSubstr("reads_queries  no"), HasSubstr("attention.projections = false")));
  EXPECT_THAT(run({"info", "--kinds", "exact"}).out,
              AllOf(HasSubstr("reads_queries  yes"), HasSubstr("no options of its own")));
  // The options that are shown are those that training takes.
  for (const auto& option : kind.at("options")) {
    const json& value = option.at("default");
    const std::string setting = option.at("key").get<std::string>() + "=" +
                                (value.is_string() ? value.get<std::string>() : value.dump());
    EXPECT_EQ(run({"train", "--dry-run", "--set", "attention.kind=favor-softmax", setting}).code, 0)
        << setting;
  }
}

TEST_F(Info, AMisspeltKindNamesTheNearest) {
  for (const Arguments& arguments : {Arguments{"info", "--kinds", "favor-sofmax"},
                                     {"train", "--dry-run", "--set", "attention.kind=favor-sofmax"}}) {
    expect_failure(run(arguments), 2,
                   {"'favor-sofmax'", "did you mean favor-softmax?", "performer info --kinds"});
  }
  expect_failure(run({"info", "model", "--kinds"}), 2, {"--kinds", "model"});
}

TEST_F(Info, HelpDoesNotListTheKinds) {
  const json listed = kinds();
  for (const Arguments& arguments :
       {Arguments{"--help"}, {"train", "--help"}, {"approx", "--help"}, {"info", "--help"}}) {
    const Result help = run(arguments);
    EXPECT_EQ(help.code, 0) << help.err;
    size_t named = 0;
    for (const auto& kind : listed) {
      named += help.out.find(kind.at("name").get<std::string>() + ",") != std::string::npos ||
               help.out.find(kind.at("name").get<std::string>() + "}") != std::string::npos;
    }
    EXPECT_LE(named, 8u) << arguments[0] << " names as many kinds";
  }
  EXPECT_THAT(run({"train", "--help"}).out, HasSubstr("performer info --kinds"));
  EXPECT_LT(lines_of(run({"--help"}).out).size(), 26u);
  EXPECT_THAT(run({"--help"}).out, Not(HasSubstr("favor-")));
}

}  // namespace
}  // namespace performer::testing_cli
