// SPDX-License-Identifier: Apache-2.0
// The comparison itself, on a folder written here.
#include "tests/golden/golden.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <optional>
#include <set>

#include "performer/base/error.h"
#include "performer/base/files.h"

namespace performer::golden {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr const char* kCases = R"json([{
  "id": "one", "group": "g", "file": "t.safetensors", "options": {"k": 3}, "inputs": {"x": {}},
  "outputs": {
    "y": {"float64": "y64", "f32": {"atol": 0.01, "rtol": 0}, "f64": {"atol": 1e-9, "rtol": 0},
          "compare_only_where": "x != 27 (padding)"},
    "n": {"exact": true},
    "rows": {"float64": null, "f32": {"atol": 0, "rtol": 0.1}, "f64": null,
             "compare_only_where": "rows 0..1 (why)"},
    "odd": {"float64": null, "f32": {"atol": 0, "rtol": 0}, "compare_only_where": "when it suits"}
  }
}])json";

class GoldenFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("performer-golden-{}", getpid());
    fs::create_directories(folder_ / "sub");
    TensorFile file;
    file.tensors["one/x"] = at::tensor({1, 27, 3});
    file.tensors["one/y"] = at::tensor({1.1F, 2.2F, 3.3F});
    file.tensors["one/y64"] = at::tensor({1.0, 2.0, 3.0}, at::kDouble);
    file.tensors["one/n"] = at::tensor({1, 2, 3});
    file.tensors["one/rows"] = at::tensor({1.0F, NAN, INFINITY});
    file.tensors["one/odd"] = at::tensor({1.0F});
    write_safetensors((folder_ / "sub/t.safetensors").string(), file);
    write_index("golden-1");
    if (const char* given = std::getenv("PERFORMER_GOLDEN")) given_ = given;
    setenv("PERFORMER_GOLDEN", folder_.c_str(), 1);
  }
  void TearDown() override {
    given_ ? setenv("PERFORMER_GOLDEN", given_->c_str(), 1) : unsetenv("PERFORMER_GOLDEN");
    fs::remove_all(folder_);
  }
  void write_index(const std::string& schema) {
    write_file((folder_ / "sub/index.json").string(),
               fmt::format("{{\"schema\": \"{}\", \"cases\": {}}}", schema, kCases));
  }

  fs::path folder_;
  std::optional<std::string> given_;
};

TEST_F(GoldenFolder, ComparesWithTheToleranceOfThePrecision) {
  const Group group("g");
  ASSERT_EQ(group.cases().size(), 1u);
  const Case& item = group.cases()[0];
  EXPECT_EQ(item.option<int>("k"), 3);
  // Against the double recording, not the float32 one; the second element is at padding.
  EXPECT_EQ(difference(item, "y", at::tensor({1.005F, 99.0F, 3.0F})), "");
  EXPECT_THAT(difference(item, "y", at::tensor({1.02F, 2.0F, 3.0F})), HasSubstr("1 of 3 elements differ"));
  EXPECT_THAT(difference(item, "y", at::tensor({1.005, 2.0, 3.0}, at::kDouble)), HasSubstr("flat index 0"));
  EXPECT_THAT(difference(item, "y", at::tensor({NAN, 2.0F, 3.0F})), HasSubstr("differ"));
  EXPECT_THAT(difference(item, "y", at::zeros({2})), HasSubstr("shape [2], expected [3]"));
  EXPECT_THROW(difference(item, "absent", at::zeros({1})), InputError);
  EXPECT_THROW(item.tensor("absent"), InputError);
}

TEST_F(GoldenFolder, ComparesIntegersExactly) {
  const Case item = Group("g").cases()[0];
  EXPECT_EQ(difference(item, "n", at::tensor({1, 2, 3})), "");
  EXPECT_THAT(difference(item, "n", at::tensor({1, 2, 4})), HasSubstr("expected 3"));
}

TEST_F(GoldenFolder, ReadsConditionsAndKeepsNonFiniteValues) {
  const Case item = Group("g").cases()[0];
  EXPECT_EQ(difference(item, "rows", at::tensor({1.05F, NAN, 0.0F})), "");  // the last row does not count
  EXPECT_THAT(difference(item, "rows", at::tensor({1.05F, 1.0F, 0.0F})), HasSubstr("expected nan"));
  // No closer than its float32 recording allows.
  EXPECT_EQ(difference(item, "rows", at::tensor({1.05, NAN, 0.0}, at::kDouble)), "");
  EXPECT_THROW(difference(item, "odd", at::tensor({2.0F})), InputError);
}

TEST_F(GoldenFolder, RefusesOtherSchemasAndEmptyFolders) {
  write_index("golden-2");
  EXPECT_THROW(Group("g"), InputError);
  setenv("PERFORMER_GOLDEN", (folder_ / "nowhere").c_str(), 1);
  EXPECT_THROW(folders(), InputError);
}

TEST_F(GoldenFolder, KnowsGroupsThatAreNotThere) {
  EXPECT_TRUE(Group("other").empty());
}

// Each of these has a test in this folder that fails for a case it cannot run; a group that nothing runs
// fails here.
TEST(GoldenFolders, HaveATestForEveryGroup) {
  static const std::set<std::string> known = {"plm_tokenizer",
                                              "plm_masking",
                                              "plm_metrics",
                                              "plm_model",
                                              "plm_optimizer",
                                              "plm_positions",
                                              "plm_sampling",
                                              "plm_schedule",
                                              "jax_projection",
                                              "jax_features",
                                              "jax_attention_softmax",
                                              "jax_attention_trig",
                                              "jax_attention_generalized",
                                              "jax_module",
                                              "tf_projection",
                                              "tf_features",
                                              "tf_attention"};
  // KernelAttention, performer-pytorch and fast-transformers share names of groups.
  static const std::map<std::string, std::set<std::string>> known_of = {
      {"keras", {"features", "projection", "attention", "windowed", "streaming", "layer"}},
      {"performer-pytorch",
       {"features", "projection", "linear_attention", "fast_attention", "modules", "attention_layers",
        "performer", "lm", "wrapper"}},
      {"fast-transformers", {"features", "projection", "attention", "recurrent", "layers", "masks"}}};
  const auto is_known = [](const std::string& system, const std::string& group) {
    if (known.contains(group)) return true;
    return std::ranges::any_of(known_of, [&](const auto& of) {
      return system.find(of.first) != std::string::npos && of.second.contains(group);
    });
  };
  std::map<std::string, std::map<std::string, int>> systems;  // cases by system and group
  for (const std::string& folder : folders()) {
    for (const Case& item : load_folder(folder)) {
      const std::string system = item.entry.value("reference", "unnamed");
      EXPECT_TRUE(is_known(system, item.group))
          << folder << ": nothing runs " << item.group << " of " << system;
      ++systems[system][item.group];
    }
  }
  for (const auto& [system, groups] : systems) {
    int total = 0;
    for (const auto& [group, count] : groups) total += count;
    std::cout << "[  golden  ] " << system << ": " << total << " cases in " << groups.size() << " groups\n";
  }
}

}  // namespace
}  // namespace performer::golden
