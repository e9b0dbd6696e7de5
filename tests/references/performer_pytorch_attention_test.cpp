// SPDX-License-Identifier: Apache-2.0
// The attention layer: its parts and options. What it computes is held to recordings (tests/golden).
#include "performer/references/performer_pytorch/attention.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "performer/base/error.h"
#include "tests/references/differences.h"

namespace performer::references::performer_pytorch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

PerformerAttentionOptions small_options() {
  PerformerAttentionOptions options;
  options.dim = 12;
  options.heads = 3;
  options.dim_head = 6;
  options.features = 14;
  options.local_window_size = 4;
  options.qkv_bias = true;
  options.seed = 5;
  options.layer = 1;
  return options;
}

PerformerAttention make_layer(const PerformerAttentionOptions& options, at::ScalarType type = at::kDouble) {
  torch::manual_seed(2);
  PerformerAttention layer(options);
  layer->to(type);
  layer->eval();
  return layer;
}

at::Tensor random_input(int64_t tokens, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn({2, tokens, 12}, at::kDouble);
}

// Rotary table [T, D] with sines first.
at::Tensor table(int64_t tokens) {
  const at::Tensor angles =
      at::arange(tokens, at::kDouble).unsqueeze(1) * at::tensor({1.0, 0.3, 0.01}, at::kDouble);
  return at::cat({angles.sin(), angles.cos()}, 1);
}

std::vector<std::string> state_names(const PerformerAttentionOptions& options) {
  PerformerAttention layer(options);
  std::set<std::string> names;
  for (const auto& entry : layer->named_parameters()) names.insert(entry.key());
  for (const auto& entry : layer->named_buffers()) names.insert(entry.key());
  return {names.begin(), names.end()};
}

TEST(PerformerAttention, StateIsNamedAsInTheReference) {
  PerformerAttentionOptions options = small_options();
  EXPECT_THAT(state_names(options),
              ElementsAre("fast_attention.calls_since_last_redraw", "fast_attention.projection_matrix",
                          "fast_attention.redraws", "to_k.bias", "to_k.weight", "to_out.bias",
                          "to_out.weight", "to_q.bias", "to_q.weight", "to_v.bias", "to_v.weight"));
  options.qkv_bias = options.out_bias = false;
  options.no_projection = true;  // the projection stays, although nothing reads it
  options.local_heads = 1;
  options.redraw_interval = -1;
  EXPECT_THAT(state_names(options),
              ElementsAre("fast_attention.projection_matrix", "local_attn.rel_pos.inv_freq", "to_k.weight",
                          "to_out.weight", "to_q.weight", "to_v.weight"));
}

TEST(PerformerAttention, DefaultsAreTheReferences) {
  PerformerAttention layer(PerformerAttentionOptions{});
  EXPECT_EQ(layer->named_buffers()["fast_attention.projection_matrix"].sizes(), at::IntArrayRef({266, 64}));
  EXPECT_EQ(layer->named_parameters()["to_q.weight"].sizes(), at::IntArrayRef({512, 512}));
  EXPECT_FALSE(layer->named_parameters().contains("to_q.bias"));
  EXPECT_TRUE(layer->named_parameters().contains("to_out.bias"));
}

at::Tensor projection_of(PerformerAttention& layer) {
  return layer->named_buffers()["fast_attention.projection_matrix"];
}

TEST(PerformerAttention, RedrawsAreNamedAndStopWhenFixed) {
  PerformerAttentionOptions options = small_options();
  options.local_heads = 1;
  PerformerAttention layer(options), twin(options);
  EXPECT_EQ(projection_of(layer).sizes(), at::IntArrayRef({14, 6}));
  const at::Tensor first = projection_of(layer).clone();
  EXPECT_TRUE(at::equal(first, projection_of(twin)));
  layer->redraw(3);
  EXPECT_FALSE(at::equal(first, projection_of(layer)));
  layer->redraw(0);
  EXPECT_TRUE(at::equal(first, projection_of(layer)));
  layer->fix_projection();
  layer->redraw(1);
  EXPECT_TRUE(at::equal(first, projection_of(layer)));
  EXPECT_TRUE(layer->projection_fixed());
  options.layer = 2;
  PerformerAttention deeper(options);
  EXPECT_FALSE(at::equal(first, projection_of(deeper)));
}

// A QR decomposition whose signs are left alone gives Q a first entry of -E|a_1| / |a| = -0.29 on average at
// D = 8; Haar-distributed matrices give 0.
TEST(PerformerAttention, ProjectionsHaveThePreferredSignsOfTheReference) {
  PerformerAttentionOptions options;
  options.dim = options.dim_head = options.features = 8;
  options.heads = 1;
  PerformerAttention layer(options);
  double mean = 0;
  for (int64_t index = 0; index < 200; ++index) {
    layer->redraw(index);
    const at::Tensor row = projection_of(layer)[0];
    mean += (row[0] / row.norm()).item<double>() / 200;
  }
  EXPECT_NEAR(mean, -0.29, 0.1);  // 4 standard errors
}

TEST(PerformerAttention, AutomaticRedrawsGoOnAfterAResume) {
  PerformerAttentionOptions options = small_options();
  options.redraw_interval = 2;
  PerformerAttention one(options), two(options);
  const PerformerAttentionInputs in{at::randn({1, 4, 12})};
  for (int i = 0; i < 4; ++i) one(in);
  for (const auto& entry : one->named_buffers()) two->named_buffers()[entry.key()].copy_(entry.value());
  for (int i = 0; i < 8; ++i) {
    one(in);
    two(in);
    EXPECT_TRUE(at::equal(projection_of(one), projection_of(two))) << i;
  }
  EXPECT_EQ(one->named_buffers()["fast_attention.redraws"].item<int64_t>(), 4);
  one->fix_projection();
  const at::Tensor last = projection_of(one).clone();
  for (int i = 0; i < 4; ++i) one(in);
  EXPECT_TRUE(at::equal(projection_of(one), last));
}

TEST(PerformerAttention, DropsOnlyWhileTraining) {
  for (const int64_t local_heads : {0, 3}) {
    PerformerAttentionOptions options = small_options();
    options.dropout = 0.5;
    options.local_heads = local_heads;
    PerformerAttention layer = make_layer(options);
    const PerformerAttentionInputs in{random_input(9, 1)};
    const at::Tensor plain = layer(in);
    EXPECT_EQ(gap(plain, layer(in)), 0);
    layer->train();
    const at::Tensor dropped = layer(in);
    const at::Tensor zero = dropped.eq(0);
    EXPECT_NEAR(zero.to(at::kDouble).mean().item<double>(), 0.5, 0.15);
    if (local_heads == 0) {
      EXPECT_LT(gap(dropped, at::where(zero, dropped, plain * 2)), 1e-6);  // dropout computes in float32
    } else {  // the weights of local heads are dropped as well
      EXPECT_GT(gap(dropped, at::where(zero, dropped, plain * 2)), 1e-3);
    }
  }
}

// A mask only sets values to zero: what a masked key holds still moves the other rows.
TEST(PerformerAttention, MaskedKeysAreStillSeen) {
  PerformerAttention layer = make_layer(small_options());
  PerformerAttentionInputs in{random_input(8, 1)};
  in.mask = at::ones({2, 8}, at::kBool);
  in.mask->index_put_({at::indexing::Slice(), 7}, false);
  const at::Tensor before = layer(in).narrow(1, 0, 7);
  in.x = in.x.clone();
  in.x.select(1, 7).mul_(3);
  EXPECT_GT(gap(layer(in).narrow(1, 0, 7), before), 1e-4);
}

TEST(PerformerAttention, RefusesImpossibleOptions) {
  const auto made_with = [](auto change) {
    return [change] {
      PerformerAttentionOptions options;
      change(options);
      PerformerAttention layer(options);
    };
  };
  using Options = PerformerAttentionOptions;
  EXPECT_THAT(made_with([](Options& o) { o.heads = 7; }), ThrowsMessage<UsageError>(HasSubstr("7 heads")));
  EXPECT_THAT(made_with([](Options& o) { o.dim_head = 1; }),
              ThrowsMessage<UsageError>(HasSubstr("at least 1 random feature")));
  EXPECT_THAT(made_with([](Options& o) { o.local_heads = 9; }),
              ThrowsMessage<UsageError>(HasSubstr("found 9")));
  EXPECT_THAT(made_with([](Options& o) {
                o.local_heads = 1;
                o.cross = true;
              }),
              ThrowsMessage<UsageError>(HasSubstr("cross-attention must have none")));
  EXPECT_THAT(made_with([](Options& o) {
                o.local_heads = 1;
                o.dim_head = 5;
              }),
              ThrowsMessage<UsageError>(HasSubstr("even head size")));
  EXPECT_THAT(made_with([](Options& o) {
                o.generalized = true;
                o.kernel = "swoosh";
              }),
              ThrowsMessage<c10::ValueError>(HasSubstr("swoosh")));
  EXPECT_THAT(made_with([](Options& o) { o.dropout = 1; }), ThrowsMessage<UsageError>(HasSubstr("below 1")));
}

TEST(PerformerAttention, RefusesInputsThatDoNotFit) {
  PerformerAttention layer = make_layer(small_options());
  const at::Tensor x = random_input(5, 1);
  EXPECT_THAT([&] { layer(PerformerAttentionInputs{x.narrow(2, 0, 11)}); },
              ThrowsMessage<UsageError>(HasSubstr("[B, T, 12], found [2, 5, 11]")));
  EXPECT_THAT([&] { layer(PerformerAttentionInputs{.x = x, .context = x}); },
              ThrowsMessage<UsageError>(HasSubstr("takes no context")));
  EXPECT_THAT(
      [&] {
        layer(PerformerAttentionInputs{.x = x, .mask = at::ones({2, 5})});
      },
      ThrowsMessage<UsageError>(HasSubstr("bool [2, 5]")));
  EXPECT_THAT([&] { layer(PerformerAttentionInputs{.x = x, .positions = table(4)}); },
              ThrowsMessage<UsageError>(HasSubstr("must be [5, 6]")));
  PerformerAttentionOptions options = small_options();
  options.cross = true;
  PerformerAttention cross = make_layer(options);
  EXPECT_THAT([&] { cross(PerformerAttentionInputs{x}); },
              ThrowsMessage<UsageError>(HasSubstr("needs a context")));
  EXPECT_THAT([&] { cross(PerformerAttentionInputs{.x = x, .context = x.narrow(0, 0, 1)}); },
              ThrowsMessage<UsageError>(HasSubstr("must be [2, S, 12]")));
}

}  // namespace
}  // namespace performer::references::performer_pytorch
