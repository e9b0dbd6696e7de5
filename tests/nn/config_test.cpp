// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "performer/base/error.h"

namespace performer {
namespace {

using ::testing::HasSubstr;

struct Bad {
  const char* name;
  std::function<void(ModelConfig&, AttentionConfig&)> spoil;
  const char* expected;  // part of the message
};

class BadConfig : public ::testing::TestWithParam<Bad> {};

TEST_P(BadConfig, IsRefusedByName) {
  ModelConfig model;
  AttentionConfig attention;
  ASSERT_NO_THROW(validate(model, attention));
  GetParam().spoil(model, attention);
  try {
    validate(model, attention);
    FAIL() << "accepted";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr(GetParam().expected));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BadConfig,
    ::testing::Values(
        Bad{"width", [](auto& m, auto&) { m.width = 130; },
            "model.width (130) must be divisible by model.heads (4)"},
        Bad{"layers", [](auto& m, auto&) { m.layers = 0; }, "model.layers must be between 1"},
        Bad{"heads", [](auto& m, auto&) { m.heads = 0; }, "model.heads must be between 1"},
        Bad{"negative_head_size", [](auto& m, auto&) { m.head_size = -1; },
            "model.head_size must be between 0"},
        Bad{"ffn", [](auto& m, auto&) { m.ffn = 0; }, "model.ffn"},
        Bad{"max_length", [](auto& m, auto&) { m.max_length = 0; }, "model.max_length"},
        Bad{"huge", [](auto& m, auto&) { m.width = int64_t{1} << 62; }, "model.width must be between"},
        Bad{"huge_product", [](auto& m, auto&) { m.heads = m.head_size = 1 << 23; },
            "model.heads times model.head_size"},
        Bad{"odd_rotary", [](auto& m, auto&) { m.head_size = 33; }, "even head size, not 33"},
        Bad{"odd_rotary_from_width", [](auto& m, auto&) { m.width = 60; }, "even head size, not 15"},
        Bad{"dropout", [](auto& m, auto&) { m.dropout = 1; },
            "model.dropout must be at least 0 and below 1, not 1"},
        Bad{"dropout_nan", [](auto& m, auto&) { m.dropout = std::nan(""); }, "model.dropout"},
        Bad{"norm_epsilon", [](auto& m, auto&) { m.norm_epsilon = 0; }, "model.norm_epsilon"},
        Bad{"norm", [](auto& m, auto&) { m.norm = "middle"; },
            "model.norm must be one of pre, post, but is 'middle'"},
        Bad{"norm_type", [](auto& m, auto&) { m.norm_type = "batch"; }, "model.norm_type must be one of"},
        Bad{"kv_heads", [](auto& m, auto&) { m.kv_heads = 3; },
            "model.heads (4) must be a multiple of model.kv_heads (3)"},
        Bad{"token_dropout", [](auto& m, auto&) { m.token_dropout = true; },
            "model.token_dropout = true counts the masks of a whole sequence"},
        Bad{"rotary_stored", [](auto& m, auto&) { m.rotary_stored = true, m.positions = "learned"; },
            "model.rotary_stored = true needs model.positions = rotary"},
        Bad{"added_positions", [](auto& m, auto&) { m.added_positions = true, m.positions = "none"; },
            "model.added_positions = true needs model.positions = rotary"},
        Bad{"rotary_base", [](auto& m, auto&) { m.rotary_base = 0; }, "model.rotary_base must be above 0"},
        Bad{"embedding_scale", [](auto& m, auto&) { m.embedding_scale = 0; }, "model.embedding_scale"},
        Bad{"output_scale", [](auto& m, auto&) { m.output_scale = -1; }, "model.output_scale"},
        Bad{"kind", [](auto&, auto& a) { a.kind = "soft"; },
            "attention.kind must be a known attention kind, but is 'soft'"},
        Bad{"features", [](auto&, auto& a) { a.set("features", 0); }, "attention.features must be between 1"},
        Bad{"softmax_none", [](auto&, auto& a) { a.kind = "favor-softmax", a.set("projection", "none"); },
            "projection"},
        Bad{"epsilon", [](auto&, auto& a) { a.set("epsilon", -0.5); },
            "attention.epsilon must be at least 0"},
        Bad{"softmax_epsilon", [](auto&, auto& a) { a.kind = "favor-softmax", a.set("epsilon", 1e-3); },
            "epsilon"},
        Bad{"foreign_option", [](auto&, auto& a) { a.kind = "exact", a.set("projection", "iid"); },
            "attention.projection is not an option of attention.kind = exact"},
        Bad{"option_type", [](auto&, auto& a) { a.set("features", 0.5); },
            "attention.features must be a whole number"},
        Bad{"option_choice", [](auto&, auto& a) { a.set("projection", "round"); },
            "attention.projection must be one of"},
        Bad{"local_heads", [](auto&, auto& a) { a.local_heads = 5; },
            "attention.local_heads must be between 0 and model.heads (4), not 5"},
        Bad{"local_window", [](auto&, auto& a) { a.local_window = 0; }, "attention.local_window"},
        Bad{"begin_kernel", [](auto&, auto& a) { a.begin_kernel = -1; }, "attention.begin_kernel"},
        Bad{"reversible", [](auto& m, auto&) { m.reversible = true, m.norm = "post"; }, "model.reversible"},
        Bad{"odd_hyperbolic", [](auto&, auto& a) { a.kind = "favor-hyperbolic", a.set("features", 15); },
            "even"},
        Bad{"redraw_every", [](auto&, auto& a) { a.redraw_every = -1; }, "attention.redraw_every"}),
    [](const auto& info) { return info.param.name; });

TEST(Config, OddHeadSizesGoWithOtherPositions) {
  ModelConfig model;
  model.head_size = 33;
  model.positions = "learned";
  EXPECT_NO_THROW(validate(model, {}));
}

TEST(Config, ResolvesDefaults) {
  ModelConfig model;
  EXPECT_EQ(head_size(model), 32);
  model.head_size = 24;
  EXPECT_EQ(head_size(model), 24);
}

}  // namespace
}  // namespace performer
