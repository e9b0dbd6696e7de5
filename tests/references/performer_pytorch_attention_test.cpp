// SPDX-License-Identifier: Apache-2.0
// The attention layer in its own mode against dense formulas computed from its weights; what both modes have
// in common.
#include "performer/references/performer_pytorch/attention.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <map>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "performer/base/error.h"
#include "performer/nn/local_attention.h"

namespace performer::nn {
namespace performer_attention_tests {

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
  options.compatible = false;
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

double gap(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return a.numel() == 0 ? 0 : (a - b).abs().max().item<double>();
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

at::Tensor turned(const at::Tensor& x, const at::Tensor& sines_and_cosines) {
  const at::Tensor sine = sines_and_cosines.narrow(1, 0, 3).unsqueeze(1),
                   cosine = sines_and_cosines.narrow(1, 3, 3).unsqueeze(1);
  const at::Tensor first = x.slice(-1, 0, 6, 2), second = x.slice(-1, 1, 6, 2);
  at::Tensor y = at::empty_like(x);
  y.slice(-1, 0, 6, 2).copy_(first * cosine - second * sine);
  y.slice(-1, 1, 6, 2).copy_(second * cosine + first * sine);
  return y;
}

struct Kind {
  std::string name;
  bool generalized = false, no_projection = false, causal = false, cross = false, rotary = false;
  int64_t local_heads = 0;
  std::string kernel = "relu";
};

void PrintTo(const Kind& kind, std::ostream* out) {
  *out << kind.name;
}

PerformerAttentionOptions options_of(const Kind& kind) {
  PerformerAttentionOptions options = small_options();
  options.generalized = kind.generalized;
  options.no_projection = kind.no_projection;
  options.causal = kind.causal;
  options.cross = kind.cross;
  options.local_heads = kind.local_heads;
  options.kernel = kind.kernel;
  return options;
}

// Unnormalised attention weights [B, H, T, S] of the global heads, masks not applied.
at::Tensor global_weights(const Kind& kind, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& key_mask, const at::Tensor& projection) {
  if (kind.no_projection) {
    const at::Tensor hidden = key_mask.logical_not().unsqueeze(-1).unsqueeze(-1);
    const at::Tensor phi_k = kind.causal ? k.exp() : k.masked_fill(hidden, -HUGE_VAL).softmax(1);
    return at::einsum("bihf,bjhf->bhij", {q.softmax(-1), phi_k});
  }
  const auto features = [&](const at::Tensor& x) {
    const at::Tensor scaled = x * std::pow(6.0, -0.25);
    const at::Tensor u = at::einsum("bthd,hmd->bthm", {scaled, projection});
    if (!kind.generalized) return at::exp(u - scaled.square().sum(-1, true) / 2);
    return (kind.kernel == "relu" ? at::relu(u) : at::gelu(u)) + 1e-3;
  };
  return at::einsum("bihm,bjhm->bhij", {features(q), features(k)});
}

at::Tensor expected_output(PerformerAttention& layer, const Kind& kind, const PerformerAttentionInputs& in) {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> state;
  for (const auto& entry : layer->named_parameters()) state[entry.key()] = entry.value();
  for (const auto& entry : layer->named_buffers()) state[entry.key()] = entry.value();
  const at::Tensor source = kind.cross ? *in.context : in.x;
  const auto heads = [&](const at::Tensor& x, const std::string& name) {
    return (at::matmul(x, state[name + ".weight"].t()) + state[name + ".bias"]).unflatten(-1, {3, 6});
  };
  const at::Tensor q = heads(in.x, "to_q"), k = heads(source, "to_k"), v = heads(source, "to_v");
  const auto all = [](const at::Tensor& x) { return at::ones({x.size(0), x.size(1)}, at::kBool); };
  const at::Tensor query_mask = in.mask.value_or(all(in.x));
  const at::Tensor key_mask = kind.cross ? in.context_mask.value_or(all(source)) : query_mask;
  const int64_t global = 3 - kind.local_heads;
  std::vector<at::Tensor> parts;
  if (global > 0) {
    at::Tensor gq = q.narrow(2, 0, global), gk = k.narrow(2, 0, global);
    if (in.positions && !kind.cross) {
      gq = turned(gq, *in.positions);
      gk = turned(gk, *in.positions);
    }
    at::Tensor weights = global_weights(kind, gq, gk, key_mask, state["fast_attention.projection_matrix"]) *
                         key_mask.unsqueeze(1).unsqueeze(1);
    if (kind.causal) weights = weights.tril();
    weights = (weights / weights.sum(-1, true)).nan_to_num(0);
    parts.push_back(at::einsum("bhij,bjhe->bihe", {weights, v.narrow(2, 0, global)}));
  }
  if (kind.local_heads > 0) {
    LocalAttentionOptions with;
    with.window = 4;
    with.causal = kind.causal;
    const auto local = [&](const at::Tensor& x) { return x.narrow(2, global, kind.local_heads); };
    parts.push_back(local_attention(local(q), local(k), local(v), key_mask, local_rotary_rates(6), with));
  }
  const at::Tensor mixed = at::cat(parts, 2).masked_fill(~query_mask.unsqueeze(-1).unsqueeze(-1), 0);
  return at::matmul(mixed.flatten(-2), state["to_out.weight"].t()) + state["to_out.bias"];
}

const Kind kKinds[] = {
    {.name = "Softmax"},
    {.name = "SoftmaxCausal", .causal = true},
    {.name = "SoftmaxRotaryLocal", .rotary = true, .local_heads = 1},
    {.name = "SoftmaxCausalRotaryLocal", .causal = true, .rotary = true, .local_heads = 2},
    {.name = "AllLocal", .local_heads = 3},
    {.name = "AllLocalCausal", .causal = true, .local_heads = 3},
    {.name = "Relu", .generalized = true, .rotary = true},
    {.name = "GeluCausal", .generalized = true, .causal = true, .kernel = "gelu"},
    {.name = "Efficient", .no_projection = true, .local_heads = 1},
    {.name = "EfficientCausal", .no_projection = true, .causal = true, .rotary = true},
    {.name = "Cross", .cross = true},
    {.name = "CrossRelu", .generalized = true, .cross = true},
    {.name = "CrossEfficient", .no_projection = true, .cross = true},
};

class OwnAttention : public ::testing::TestWithParam<Kind> {};

PerformerAttentionInputs inputs_of(const Kind& kind, int64_t tokens, bool masked) {
  PerformerAttentionInputs in{random_input(tokens, 1)};
  if (kind.rotary) in.positions = table(tokens);
  if (kind.cross) in.context = random_input(tokens + 3, 2);
  if (!masked) return in;
  in.mask = at::ones({2, tokens}, at::kBool);
  in.mask->index_put_({0, at::indexing::Slice(tokens - 6, at::indexing::None)}, false);
  in.mask->index_put_({1, 0}, false);  // the first row sees nothing when causal
  in.mask->index_put_({1, 5}, false);
  if (kind.cross) {
    in.context_mask = at::ones({2, tokens + 3}, at::kBool);
    in.context_mask->index_put_({1}, false);  // no key at all
    in.context_mask->index_put_({0, 2}, false);
  }
  return in;
}

TEST_P(OwnAttention, FollowsTheDenseFormula) {
  const Kind& kind = GetParam();
  PerformerAttention layer = make_layer(options_of(kind));
  for (const bool masked : {false, true}) {
    const PerformerAttentionInputs in = inputs_of(kind, 13, masked);
    // Projections are float32 and angles of local heads come from float32 rates.
    EXPECT_LT(gap(layer(in), expected_output(layer, kind, in)), 1e-6) << masked;
  }
}

TEST_P(OwnAttention, PrefixDoesNotChangeWhenTheSequenceGoesOn) {
  const Kind& kind = GetParam();
  if (!kind.causal) return;  // nothing to hold
  PerformerAttention layer = make_layer(options_of(kind));
  PerformerAttentionInputs in = inputs_of(kind, 21, false);
  in.x.narrow(1, 15, 6).mul_(30);  // a future that would show
  const at::Tensor whole = layer(in);
  for (const int64_t length : {1, 4, 5, 15}) {
    PerformerAttentionInputs prefix{in.x.narrow(1, 0, length)};
    if (in.positions) prefix.positions = in.positions->narrow(0, 0, length);
    EXPECT_LT(gap(layer(prefix), whole.narrow(1, 0, length)), 1e-11) << length;
  }
}

TEST_P(OwnAttention, MaskedTailIsAsIfTheSequenceEnded) {
  const Kind& kind = GetParam();
  PerformerAttention layer = make_layer(options_of(kind));
  PerformerAttentionInputs in = inputs_of(kind, 16, false), ended = in;
  at::Tensor& keys = kind.cross ? *in.context : in.x;
  const int64_t length = keys.size(1), kept = length - 7;
  keys.narrow(1, kept, 7).mul_(30);  // padding that would show
  at::Tensor mask = at::ones({2, length}, at::kBool);
  mask.narrow(1, kept, 7).fill_(false);
  if (kind.cross) {
    in.context_mask = mask;
    ended.context = keys.narrow(1, 0, kept);
  } else {
    in.mask = mask;
    ended.x = keys.narrow(1, 0, kept);
    if (ended.positions) ended.positions = ended.positions->narrow(0, 0, kept);
  }
  const at::Tensor expected = layer(ended), y = layer(in);
  EXPECT_LT(gap(y.narrow(1, 0, expected.size(1)), expected), 1e-11);
  if (!kind.cross) {  // padded rows: the output bias alone
    EXPECT_LT(gap(y.narrow(1, kept, 7), layer->named_parameters()["to_out.bias"].expand({2, 7, 12})), 1e-14);
  }
}

TEST_P(OwnAttention, GradientsAreThoseOfTheFunction) {
  const Kind& kind = GetParam();
  PerformerAttention layer = make_layer(options_of(kind));
  const PerformerAttentionInputs start = inputs_of(kind, 11, true);
  const at::Tensor weights = at::randn(start.x.sizes(), at::kDouble);
  std::map<std::string, at::Tensor> leaves;
  for (const auto& entry : layer->named_parameters()) leaves[entry.key()] = entry.value();
  PerformerAttentionInputs in = start;
  leaves["x"] = in.x = start.x.clone().requires_grad_(true);
  if (kind.cross) {
    in.context = start.context->clone().requires_grad_(true);
    leaves["context"] = *in.context;
  }
  for (auto& [name, leaf] : leaves) {
    const at::Tensor gradient = torch::autograd::grad({(layer(in) * weights).sum()}, {leaf})[0];
    at::manual_seed(7);
    const at::Tensor direction = at::randn(leaf.sizes(), at::kDouble), before = leaf.detach().clone();
    const auto moved = [&](double step) {
      const at::NoGradGuard no_grad;
      leaf.copy_(before + direction * step);
      const double loss = (layer(in) * weights).sum().item<double>();
      leaf.copy_(before);
      return loss;
    };
    const double expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
    EXPECT_NEAR((gradient * direction).sum().item<double>(), expected, 1e-6 * (1 + std::abs(expected)))
        << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, OwnAttention, ::testing::ValuesIn(kKinds),
                         [](const auto& info) { return info.param.name; });

// exp(k) of these overflows even float64; the reference's causal form gives NaN.
TEST(PerformerAttention, EfficientCausalAttentionDoesNotOverflow) {
  PerformerAttentionOptions options = small_options();
  options.no_projection = options.causal = true;
  PerformerAttention layer = make_layer(options, at::kFloat);
  const PerformerAttentionInputs in{at::randn({1, 9, 12}) * 1e4};
  EXPECT_TRUE(layer(in).isfinite().all().item<bool>());
  options.compatible = true;
  EXPECT_FALSE(make_layer(options, at::kFloat)(in).isfinite().all().item<bool>());
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
              ElementsAre("fast_attention.projection_matrix", "to_k.bias", "to_k.weight", "to_out.bias",
                          "to_out.weight", "to_q.bias", "to_q.weight", "to_v.bias", "to_v.weight"));
  options.qkv_bias = options.out_bias = false;
  options.no_projection = true;
  EXPECT_THAT(state_names(options),
              ElementsAre("to_k.weight", "to_out.weight", "to_q.weight", "to_v.weight"));
  options.compatible = true;
  options.local_heads = 1;
  EXPECT_THAT(state_names(options),
              ElementsAre("fast_attention.calls_since_last_redraw", "fast_attention.projection_matrix",
                          "fast_attention.redraws", "local_attn.rel_pos.inv_freq", "to_k.weight",
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
  for (const bool compatible : {false, true}) {
    PerformerAttentionOptions options = small_options();
    options.compatible = compatible;
    options.local_heads = 1;
    PerformerAttention layer(options), twin(options);
    const std::vector<int64_t> shape =
        compatible ? std::vector<int64_t>{14, 6} : std::vector<int64_t>{2, 14, 6};
    EXPECT_EQ(projection_of(layer).sizes(), at::IntArrayRef(shape));
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
}

// Haar-orthogonal: the first entry of Q is 0 on average, where a QR with its signs left alone has
// -E|a_1| / |a| = -0.29 at D = 8.
TEST(PerformerAttention, OwnProjectionsHaveNoPreferredSigns) {
  PerformerAttentionOptions options;
  options.dim = options.dim_head = options.features = 8;
  options.heads = 1;
  for (const bool compatible : {false, true}) {
    options.compatible = compatible;
    PerformerAttention layer(options);
    double mean = 0;
    for (int64_t index = 0; index < 200; ++index) {
      layer->redraw(index);
      const at::Tensor row = projection_of(layer).view({8, 8})[0];
      mean += (row[0] / row.norm()).item<double>() / 200;
    }
    EXPECT_NEAR(mean, compatible ? -0.29 : 0, 0.1) << compatible;  // 4 standard errors
  }
}

TEST(PerformerAttention, AutomaticRedrawsGoOnAfterAResume) {
  PerformerAttentionOptions options = small_options();
  options.compatible = true;
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

TEST(PerformerAttention, OwnModeRedrawsOnlyWhenTold) {
  PerformerAttentionOptions options = small_options();
  options.redraw_interval = 0;
  PerformerAttention layer(options);
  const at::Tensor first = projection_of(layer).clone();
  for (int i = 0; i < 3; ++i) layer(PerformerAttentionInputs{at::randn({1, 4, 12})});
  EXPECT_TRUE(at::equal(projection_of(layer), first));
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

// The same weights, without masks, causal: only the treatment of global heads differs between the modes.
TEST(PerformerAttention, LocalHeadsAgreeInBothModesWhenCausal) {
  PerformerAttentionOptions options = small_options();
  options.local_heads = 3;
  options.causal = true;
  PerformerAttention own = make_layer(options);
  options.compatible = true;
  PerformerAttention compatible = make_layer(options);
  const PerformerAttentionInputs in{random_input(10, 3)};
  EXPECT_LT(gap(own(in), compatible(in)), 1e-6);
}

// A mask only zeroes values there: what a masked key holds still moves the other rows.
TEST(PerformerAttention, MaskedKeysAreStillSeenInCompatibleMode) {
  for (const bool compatible : {false, true}) {
    PerformerAttentionOptions options = small_options();
    options.compatible = compatible;
    PerformerAttention layer = make_layer(options);
    PerformerAttentionInputs in{random_input(8, 1)};
    in.mask = at::ones({2, 8}, at::kBool);
    in.mask->index_put_({at::indexing::Slice(), 7}, false);
    const at::Tensor before = layer(in).narrow(1, 0, 7);
    in.x = in.x.clone();
    in.x.select(1, 7).mul_(3);
    const double change = gap(layer(in).narrow(1, 0, 7), before);
    if (compatible) {
      EXPECT_GT(change, 1e-4);
    } else {
      EXPECT_LT(change, 1e-14);
    }
  }
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
              ThrowsMessage<UsageError>(HasSubstr("swoosh")));
  EXPECT_THAT(made_with([](Options& o) {
                o.compatible = false;
                o.causal = o.cross = true;
              }),
              ThrowsMessage<UsageError>(HasSubstr("cannot be causal")));
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
  EXPECT_THAT(
      [&] {
        layer(PerformerAttentionInputs{.x = x, .context_mask = at::ones({2, 5}, at::kBool)});
      },
      ThrowsMessage<UsageError>(HasSubstr("no context mask")));
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

}  // namespace performer_attention_tests
}  // namespace performer::nn
