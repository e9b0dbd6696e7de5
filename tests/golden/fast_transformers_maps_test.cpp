// SPDX-License-Identifier: Apache-2.0
// fast-transformers' projections, feature maps and redraw schedule.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <regex>

#include "tests/golden/fast_transformers_cases.h"

namespace performer::golden::fast_transformers {
namespace {

TEST(GoldenFastTransformers, Projections) {
  run_group("projection", kSystem, [&](Group& group, const Case& item) {
    expect_known(item, {"rows", "columns"}, false);
    check<InputError>(item.function == "orthogonal_random_matrix_", "unknown function {}", item.function);
    const at::Tensor blocks = item.tensor("normal_blocks");
    EXPECT_EQ(blocks.size(1), item.option<int64_t>("rows"));
    for (const at::ScalarType type : kTypes) {
      group.expect(item, "omega",
                   ft::orthogonal_random_matrix(blocks.to(type), item.option<int64_t>("columns")));
    }
  });
}

TEST(GoldenFastTransformers, FeatureMaps) {
  run_group("features", kSystem, [&](Group& group, const Case& item) {
    expect_known(item, {"shape", "inputs"});
    in_all_types(item, [&](at::ScalarType type) {
      const at::Tensor x = leaf(item, "x", type);
      ft::FeatureMap map(map_options(item.function, item.options), x.size(-1));
      expect_resolved(item, *map);
      if (item.has("omega")) set_omega(*map, item.tensor("omega"), type);
      const at::Tensor out = map(x);
      EXPECT_EQ(out.size(-1), map->size()) << item.id;
      expect_all(group, item, out, {{"x", x}});
    });
  });
}

// Which of `calls` calls of new_feature_map() changed omega, from 1.
std::vector<int64_t> changes(ft::FeatureMap& map, int64_t calls, bool eval, bool alternating) {
  std::vector<int64_t> changed;
  for (int64_t call = 1; call <= calls; ++call) {
    map->train(alternating ? call % 2 == 1 : !eval);
    const at::Tensor before = map->omega().clone();
    map->new_feature_map();
    if (!at::equal(before, map->omega())) changed.push_back(call);
  }
  return changed;
}

void expect_schedule(const std::string& name, const std::vector<int64_t>& recorded) {
  std::smatch parts;
  ASSERT_TRUE(std::regex_match(
      name, parts, std::regex("redraw(\\d+)(_deterministic_eval)?(_in_eval|_eval|_alternating)?")))
      << "unknown schedule " << name;
  ft::FeatureMapOptions options;
  options.map = "favor";
  options.redraw = std::stol(parts[1]);
  options.deterministic_eval = parts[2].matched;
  ft::FeatureMap map(options, 4);
  const bool alternating = parts[3] == "_alternating", eval = parts[3].matched && !alternating;
  const int64_t last = recorded.empty() ? 3 : recorded.back();
  const int64_t calls =
      last + options.redraw * (alternating ? 2 : 1) - 1;  // the next draw would be one later
  EXPECT_EQ(changes(map, calls, eval, alternating), recorded) << name;
}

TEST(GoldenFastTransformers, RedrawSchedule) {
  const std::vector<nlohmann::json> all = descriptions();
  if (all.empty()) GTEST_SKIP() << kMissing;
  for (const nlohmann::json& meta : all) {
    const nlohmann::json schedules = meta.value("redraw_schedule", nlohmann::json::object());
    for (const auto& [name, recorded] : schedules.items()) {
      if (recorded.is_array()) {
        expect_schedule(name, recorded.get<std::vector<int64_t>>());
      } else if (name == "loaded_omega_kept_by_first_call_after_load") {
        ft::FeatureMapOptions options;
        options.map = "favor";
        options.redraw = 5;
        ft::FeatureMap map(options, 4);
        const at::Tensor loaded = at::ones({4, 2});
        set_omega(*map, loaded, at::kFloat);
        map->new_feature_map();
        EXPECT_EQ(at::equal(map->omega(), loaded), recorded.get<bool>());
      } else {
        EXPECT_TRUE(name == "meaning" || name == "loaded_omega_equal_before") << "unknown schedule " << name;
      }
    }
  }
}

}  // namespace
}  // namespace performer::golden::fast_transformers
