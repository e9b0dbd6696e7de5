// SPDX-License-Identifier: Apache-2.0
// The registry, and the same promises for every kind of the core.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <set>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "tests/errors.h"
#include "tests/nn/kind_properties.h"

namespace performer::nn {
namespace {

using ::testing::HasSubstr;

std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& letter : name) {
    if (!std::isalnum(static_cast<unsigned char>(letter))) letter = '_';
  }
  return name;
}

// Features of some maps have any sign, and a denominator near 0 makes any rounding large.
bool may_divide_by_little(const std::string& kind) {
  const auto& map = find_kind(kind).feature_map;
  AttentionConfig config;
  config.kind = kind;
  return map && ops::feature_map_traits(map(config).map).signed_features;
}

class Kinds : public ::testing::TestWithParam<std::string> {};

TEST_P(Kinds, KeepTheirPromises) {
  const double tolerance = may_divide_by_little(GetParam()) ? 5e-2 : 2e-4;
  properties::expect_kind_properties(GetParam(), {tolerance, tolerance});
}

INSTANTIATE_TEST_SUITE_P(All, Kinds, ::testing::ValuesIn(kind_names()), test_name);

TEST(Registry, NamesEachKindOnceWithASummary) {
  const std::vector<std::string> names = kind_names();
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size());
  for (const char* known : {"favor-softmax", "favor-relu", "favor-oprf", "exact", "local", "identity"}) {
    EXPECT_THAT(names, ::testing::Contains(known));
  }
  for (const std::string& name : names) {
    EXPECT_FALSE(find_kind(name).summary.empty()) << name;
    AttentionConfig attention;
    attention.kind = name;
    EXPECT_NO_THROW(validate(ModelConfig{}, attention)) << name;
  }
}

TEST(Registry, RefusesUnknownNamesAndNamesTakenTwice) {
  EXPECT_THAT(test::error_of<UsageError>([] { find_kind("favor-sofmax"); }),
              HasSubstr("did you mean favor-softmax?"));
  EXPECT_THAT(test::error_of<UsageError>([] { register_kind(find_kind("exact")); }),
              HasSubstr("the attention kind exact is registered already"));
}

TEST(KindOptions, BelongToTheirKind) {
  AttentionConfig attention;
  set_field("attention", attention, "features", "64");
  EXPECT_EQ(std::get<int64_t>(attention.options.at("features")), 64);
  set_field("attention", attention, "kind", "favor-softmax");  // has the option, too
  EXPECT_EQ(std::get<int64_t>(attention.options.at("features")), 64);
  set_field("attention", attention, "kind", "exact");
  EXPECT_TRUE(attention.options.empty());
  EXPECT_THAT(test::error_of<UsageError>([&] { set_field("attention", attention, "features", "64"); }),
              HasSubstr("attention.features is not an option of attention.kind = exact"));
  attention.set("features", 64);
  EXPECT_THAT(test::error_of<UsageError>([&] { validate(ModelConfig{}, attention); }),
              HasSubstr("attention.features is not an option of attention.kind = exact"));
  EXPECT_THAT(test::error_of<UsageError>([&] { set_field("attention", attention, "seeed", "1"); }),
              HasSubstr("did you mean 'attention.seed'?"));
}

TEST(KindOptions, AreListedWithTheirValues) {
  AttentionConfig attention;
  attention.set("features", 64);
  int64_t found = 0;
  for (const FieldInfo& field : list_fields("attention", attention)) {
    if (field.key() == "attention.features") found = std::get<int64_t>(field.value);
  }
  EXPECT_EQ(found, 64);
}

TEST(FavorAttention, RedrawsAreNamed) {
  int64_t projected = 0;
  for (const std::string& name : kind_names()) {
    const auto one = properties::make(name, true), other = properties::make(name, true);
    const auto buffers = one->named_buffers();
    const at::Tensor* projection = buffers.find("projection");
    if (projection == nullptr) continue;
    ++projected;
    one->redraw(3);
    EXPECT_FALSE(at::equal(*projection, other->named_buffers()["projection"])) << name;
    other->redraw(3);
    EXPECT_TRUE(at::equal(*projection, other->named_buffers()["projection"])) << name;
  }
  EXPECT_GE(projected, 8);
}

TEST(FavorAttention, MomentsMoveAtStepBoundariesOnly) {
  torch::manual_seed(2);
  AttentionConfig config;
  config.kind = "favor-oprf";
  const auto layer = make_attention(config, {2, 6, true, 1});
  const at::Tensor moment = layer->named_buffers()["key_moment"];
  const auto see = [&] { properties::run(*layer, properties::random_tokens(2, 10), true); };
  see();
  EXPECT_EQ(moment.count_nonzero().item<int64_t>(), 0) << "moved within a step";
  layer->after_step();
  const at::Tensor first = moment.clone();
  EXPECT_GT(first.count_nonzero().item<int64_t>(), 0);
  layer->after_step();  // no batch in between
  EXPECT_TRUE(at::equal(first, moment));
  layer->eval();
  see();
  layer->after_step();
  EXPECT_TRUE(at::equal(first, moment)) << "evaluation moved the moments";
  layer->train();
  see();
  layer->after_step();
  EXPECT_FALSE(at::equal(first, moment));
  EXPECT_TRUE(at::allclose(first, moment, 0.1, 0.02)) << "the old moments must weigh 0.99";
}

}  // namespace
}  // namespace performer::nn
