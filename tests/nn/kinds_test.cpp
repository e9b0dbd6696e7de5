// SPDX-License-Identifier: Apache-2.0
// The registry, and the same promises for every kind of the core.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <set>

#include "performer/base/error.h"
#include "performer/nn/attention.h"
#include "performer/nn/attention/kind.h"
#include "tests/errors.h"
#include "tests/nn/kind_properties.h"

namespace performer::nn {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

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
    ModelConfig model;
    if (!find_kind(name).capabilities.causal) model.objective = "masked";
    EXPECT_NO_THROW(validate(model, attention)) << name;
    EXPECT_FALSE(find_kind(name).cost.empty()) << name;
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

std::vector<std::string> names_in_use(const std::string& kind, const AttentionConfig& base = {}) {
  AttentionConfig config = base;
  config.kind = kind;
  std::vector<std::string> names;
  for (const FieldInfo& field : fields_in_use("attention", config)) names.push_back(field.name);
  return names;
}

TEST(KindOptions, OfAModelAreThoseThatDecideSomething) {
  using testing::ElementsAre;
  using testing::IsSupersetOf;
  EXPECT_THAT(names_in_use("exact"),
              ElementsAre("kind", "local_heads", "begin_kernel", "qk_norm", "learned_temperature"));
  // Its element-wise map has no projection unless it is told to.
  EXPECT_THAT(names_in_use("favor-relu"), ElementsAre("kind", "local_heads", "begin_kernel", "qk_norm",
                                                      "learned_temperature", "projection", "epsilon"));
  AttentionConfig projected;
  projected.set("projection", "orthogonal");
  const std::vector<std::string> of_projection = {"redraw_every", "seed", "features", "row_norm",
                                                  "shared_projection"};
  EXPECT_THAT(names_in_use("favor-relu", projected), IsSupersetOf(of_projection));
  EXPECT_THAT(names_in_use("favor-softmax"), IsSupersetOf(of_projection));
  EXPECT_THAT(names_in_use("favor-t2r"), AllOf(Contains("features"), Not(Contains("seed"))));
  EXPECT_THAT(names_in_use("favor-hedgehog"), Not(Contains("features")));
  AttentionConfig relu;
  relu.set("map", "relu");
  EXPECT_THAT(names_in_use("favor-windowed"),
              IsSupersetOf<std::string>({"redraw_every", "features", "window"}));
  EXPECT_THAT(names_in_use("favor-windowed", relu), AllOf(Contains("window"), Not(Contains("redraw_every"))));
  EXPECT_THAT(names_in_use("global"), Not(Contains("seed")));
  AttentionConfig random;
  random.set("random_blocks", 2);
  EXPECT_THAT(names_in_use("global", random), AllOf(Contains("seed"), Not(Contains("redraw_every"))));
  EXPECT_THAT(names_in_use("identity"), Not(Contains("qk_norm")));
  AttentionConfig heads;
  heads.local_heads = 1;
  EXPECT_THAT(names_in_use("exact", heads), Contains("local_window"));
}

// What is left out decides nothing: a layer with another value of it has the same outputs.
TEST(KindOptions, ThatAreLeftOutChangeNothing) {
  AttentionConfig config;
  config.kind = "favor-relu";
  const auto output = [](const AttentionConfig& with) {
    const auto layer = make_attention(with, {2, 6, true, 1});
    layer->redraw(1);
    torch::manual_seed(3);
    return properties::run(*layer, properties::random_tokens(2, 10), true);
  };
  const at::Tensor before = output(config);
  const std::vector<std::string> used = names_in_use(config.kind);
  for (const auto& [name, other] :
       {std::pair{"seed", "5"}, {"features", "64"}, {"row_norm", "sqrt-d"}, {"shared_projection", "true"}}) {
    EXPECT_THAT(used, Not(Contains(name)));
    AttentionConfig changed = config;
    set_field("attention", changed, name, other);
    EXPECT_TRUE(at::equal(output(changed), before)) << name;
  }
  set_field("attention", config, "epsilon", "0.5");
  EXPECT_FALSE(at::equal(output(config), before)) << "what is shown decides something";
}

TEST(FavorAttention, RedrawsAreNamed) {
  int64_t projected = 0;
  for (const std::string& name : kind_names()) {
    const bool causal = find_kind(name).capabilities.causal;
    const auto one = properties::make(name, causal), other = properties::make(name, causal);
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

TEST(Identity, CanComputeQueriesAndKeysThatNothingReads) {
  torch::manual_seed(3);
  ModelConfig model;
  model.width = 12, model.heads = 2;
  const auto gradients = [&](bool projections) {
    AttentionConfig attention;
    attention.kind = "identity";
    attention.set("projections", projections);
    EXPECT_EQ(capabilities_of(attention).reads_queries, projections);
    torch::manual_seed(4);
    MultiHeadAttention layer(model, attention, 0);
    SequenceBatch batch;
    batch.positions = at::arange(5, at::kLong).unsqueeze(0);
    const at::Tensor out = layer->forward(at::ones({1, 5, 12}), batch);
    out.square().sum().backward();
    return std::make_pair(out.detach(), layer->named_parameters());
  };
  const auto [bare, without] = gradients(false);
  const auto [out, with] = gradients(true);
  EXPECT_TRUE(at::equal(bare, out)) << "the function is the same";
  EXPECT_FALSE(without["query.weight"].grad().defined());
  ASSERT_TRUE(with["query.weight"].grad().defined());
  ASSERT_TRUE(with["key.weight"].grad().defined());
  EXPECT_EQ(with["query.weight"].grad().count_nonzero().item<int64_t>(), 0);
  EXPECT_TRUE(at::equal(with["value.weight"].grad(), without["value.weight"].grad()));
}

AttentionConfig auto_config(int64_t break_even) {
  AttentionConfig config;
  config.kind = "auto";
  config.set("features", 12).set("break_even", break_even);
  config.seed = 5;
  return config;
}

// The same tokens by one of the two parts alone.
at::Tensor by(const std::string& kind, const properties::Tokens& tokens, bool causal) {
  AttentionConfig config;
  config.kind = kind;
  config.seed = 5;
  if (kind != "exact") config.set("features", 12);
  return properties::run(*make_attention(config, {2, 6, causal, 1}), tokens, causal);
}

TEST(Auto, QueriesThatSeeFewKeysAreExact) {
  torch::manual_seed(6);
  const at::NoGradGuard no_grad;
  const properties::Tokens tokens = properties::random_tokens(2, 20);
  for (const int64_t break_even : {7, 20}) {
    const auto causal = make_attention(auto_config(break_even), {2, 6, true, 1});
    const at::Tensor out = properties::run(*causal, tokens, true);
    const at::Tensor exact = by("exact", tokens, true), linear = by("favor-softmax", tokens, true);
    EXPECT_TRUE(at::allclose(out.narrow(1, 0, break_even), exact.narrow(1, 0, break_even)));
    const int64_t rest = 20 - break_even;
    EXPECT_TRUE(at::equal(out.narrow(1, break_even, rest), linear.narrow(1, break_even, rest)));
    const auto whole = make_attention(auto_config(break_even), {2, 6, false, 1});
    EXPECT_TRUE(at::allclose(properties::run(*whole, tokens, false),
                             by(break_even < 20 ? "favor-softmax" : "exact", tokens, false)));
  }
}

TEST(Auto, RowsOfOneBatchMayDiffer) {
  torch::manual_seed(7);
  const at::NoGradGuard no_grad;
  const auto layer = make_attention(auto_config(8), {2, 6, false, 1});
  const properties::Tokens tokens = properties::random_tokens(3, 15);
  at::Tensor mask = at::ones({3, 15}, at::kBool);
  mask[1].narrow(0, 5, 10).fill_(false);
  const at::Tensor out = properties::run(*layer, tokens, false, mask);
  const auto row = [](const at::Tensor& x, int64_t n, int64_t length) {
    return x.narrow(0, n, 1).narrow(1, 0, length);
  };
  const auto alone = [&](const std::string& kind, int64_t n, int64_t length) {
    return by(kind, {row(tokens.query, n, length), row(tokens.key, n, length), row(tokens.value, n, length)},
              false);
  };
  EXPECT_TRUE(at::allclose(row(out, 0, 15), alone("favor-softmax", 0, 15), 1e-4, 1e-5));
  EXPECT_TRUE(at::allclose(row(out, 1, 5), alone("exact", 1, 5), 1e-4, 1e-5));
  EXPECT_TRUE(at::allclose(row(out, 2, 15), alone("favor-softmax", 2, 15), 1e-4, 1e-5));
}

TEST(Auto, ContextsOfPackedSequencesMayDiffer) {
  torch::manual_seed(8);
  const at::NoGradGuard no_grad;
  const auto layer = make_attention(auto_config(8), {2, 6, false, 1});
  const properties::Tokens reader = properties::random_tokens(1, 9),
                           context = properties::random_tokens(1, 17);
  ops::AttentionInputs inputs;
  inputs.query = reader.query, inputs.key = context.key, inputs.value = context.value;
  inputs.cu_query = at::tensor({0, 4, 6, 9}, at::kLong);
  inputs.cu_key = at::tensor({0, 5, 5, 17}, at::kLong);
  const at::Tensor out = layer->forward(inputs);
  const auto alone = [&](const std::string& kind, int64_t begin, int64_t length, int64_t from, int64_t keys) {
    const properties::Tokens part = context.slice(from, keys);
    return by(kind, {reader.slice(begin, length).query, part.key, part.value}, false);
  };
  EXPECT_TRUE(at::allclose(out.narrow(1, 0, 4), alone("exact", 0, 4, 0, 5), 1e-4, 1e-5));
  EXPECT_EQ(out.narrow(1, 4, 2).count_nonzero().item<int64_t>(), 0) << "a context without tokens gives zeros";
  EXPECT_TRUE(at::allclose(out.narrow(1, 6, 3), alone("favor-softmax", 6, 3, 5, 12), 1e-4, 1e-5));
}

TEST(Auto, SaysWhatItDoes) {
  ModelConfig model;
  AttentionConfig config;
  config.kind = "auto";
  EXPECT_THAT(notice_of(model, config), HasSubstr("the first 512 tokens of a sequence attend exactly"));
  config.set("features", 100).set("linear", "favor-expmod");
  model.objective = "masked";
  EXPECT_THAT(notice_of(model, config),
              HasSubstr("sequences of at most 100 tokens attend exactly, longer ones by favor-expmod"));
  config.set("break_even", 30);
  EXPECT_THAT(notice_of(model, config), HasSubstr("at most 30 tokens"));
  config.kind = "favor-softmax";
  config.options.clear();
  EXPECT_EQ(notice_of(model, config), "");
}

TEST(Auto, RefusesKindsThatAreAnotherFunction) {
  AttentionConfig config;
  config.kind = "auto";
  for (const char* other : {"favor-relu", "favor-hedgehog", "favor-oprf", "exact", "auto", "local"}) {
    config.set("linear", other);
    EXPECT_THAT(test::error_of<UsageError>([&] { validate(ModelConfig{}, config); }),
                HasSubstr("attention.linear must be a kind that estimates softmax attention"))
        << other;
  }
  config.set("linear", "favor-softmax").set("break_even", -1);
  EXPECT_THAT(test::error_of<UsageError>([&] { validate(ModelConfig{}, config); }),
              HasSubstr("attention.break_even"));
}

}  // namespace
}  // namespace performer::nn
