// SPDX-License-Identifier: Apache-2.0
// KernelAttention in its default mode: every option against the dense definition, and what must hold for all
// of them: streaming equals batch, the future does not reach the past, masked keys do not exist, gradients.
#include "performer/references/keras/kernel_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include "tests/references/keras_kernel_attention_oracle.h"

namespace performer::nn::kernel_attention_test {
namespace {

using at::Tensor;

struct Variant {
  std::string name;
  std::function<void(KernelAttentionOptions&)> change;
};

void PrintTo(const Variant& variant, std::ostream* out) {
  *out << variant.name;
}

KernelAttentionOptions base_options() {
  KernelAttentionOptions o;
  o.query_width = 6;
  o.num_heads = 2;
  o.key_dim = 4;
  o.value_dim = 3;
  o.num_random_features = 10;
  o.seed = 5;
  return o;
}

void windows(KernelAttentionOptions& o, int64_t chunk, int64_t window, std::optional<double> decay = {},
             const char* padding = "none") {
  o.use_causal_windowed = true;
  o.causal_chunk_length = chunk;
  o.causal_window_length = window;
  o.causal_window_decay = decay;
  o.causal_padding = padding;
}

const std::vector<std::string> kTransforms = {"elu",      "exp",  "expmod", "expplus",
                                              "identity", "relu", "square"};

// Window 3 of 1 token and 1 of 2 tokens go by pairs, the others by sums; all of 1 token by the fused kernel.
std::vector<Variant> windowed_variants() {
  return {{"token3", [](auto& o) { windows(o, 1, 3); }},
          {"token3decay", [](auto& o) { windows(o, 1, 3, 0.6); }},
          {"chunk2", [](auto& o) { windows(o, 2, 1); }},
          {"chunk2window3decay", [](auto& o) { windows(o, 2, 3, 0.8); }},
          {"token7", [](auto& o) { windows(o, 1, 7); }},
          {"token5nodecay0", [](auto& o) { windows(o, 1, 5, 0.0); }},
          {"all", [](auto& o) { windows(o, 1, 0); }},
          {"alldecay", [](auto& o) { windows(o, 1, 0, 0.7); }},
          {"allchunk3left", [](auto& o) { windows(o, 3, 0, 0.9, "left"); }},
          {"chunk5left", [](auto& o) { windows(o, 5, 2, {}, "left"); }},
          {"chunk5right", [](auto& o) { windows(o, 5, 2, 0.5, "right"); }},
          {"begin", [](auto& o) { windows(o, 2, 2, 0.8), o.begin_kernel = 5; }},
          {"beginall", [](auto& o) { windows(o, 1, 0), o.begin_kernel = 3; }},
          {"beginpairs", [](auto& o) { windows(o, 1, 2), o.begin_kernel = 4; }},
          {"length", [](auto& o) { windows(o, 2, 3, 0.8), o.scale_by_length = true; }},
          {"lengthpairs", [](auto& o) { windows(o, 1, 3), o.scale_by_length = true; }},
          {"lengthall", [](auto& o) { windows(o, 1, 0), o.scale_by_length = true, o.begin_kernel = 2; }},
          {"noprojection", [](auto& o) { windows(o, 1, 6), o.num_random_features = 0; }}};
}

std::vector<Variant> whole_variants() {
  return {{"plain", [](auto&) {}},
          {"noprojection", [](auto& o) { o.num_random_features = 0; }},
          {"scale", [](auto& o) { o.scale = 0.9; }},
          {"scale0", [](auto& o) { o.scale = 0.0; }},
          {"length", [](auto& o) { o.scale_by_length = true; }},
          {"begin", [](auto& o) { o.begin_kernel = 4, o.scale_by_length = true; }},
          {"beginall", [](auto& o) { o.begin_kernel = 50; }},
          {"short", [](auto& o) { o.is_short_seq = true; }},
          {"shortlength", [](auto& o) { o.is_short_seq = true, o.scale_by_length = true; }},
          {"shortnoprojection", [](auto& o) { o.is_short_seq = true, o.num_random_features = 0; }},
          {"shapes", [](auto& o) {
             o.value_width = 5, o.key_width = 4, o.output_shape = {2, 3}, o.use_bias = false;
           }}};
}

bool possible(const KernelAttentionOptions& o) {
  return o.feature_transform != "expplus" || o.num_random_features > 0;
}

KernelAttention make_layer(const KernelAttentionOptions& o, at::ScalarType type = at::kDouble) {
  torch::manual_seed(11);
  KernelAttention layer(o);
  const at::NoGradGuard no_grad;
  for (auto& item : layer->named_parameters()) {
    if (item.key().ends_with("bias")) item.value().uniform_(-0.5, 0.5);
  }
  layer->to(type);
  layer->eval();
  return layer;
}

KernelAttentionInputs make_inputs(const KernelAttentionOptions& o, int64_t tokens, int64_t keys,
                                  at::ScalarType type = at::kDouble) {
  torch::manual_seed(12);
  KernelAttentionInputs inputs;
  const int64_t value_width = o.value_width > 0 ? o.value_width : o.query_width;
  inputs.query = at::randn({2, tokens, o.query_width}, type);
  inputs.value = at::randn({2, keys, value_width}, type);
  if (o.key_width > 0) inputs.key = at::randn({2, keys, o.key_width}, type);
  return inputs;
}

// expplus with windows needs them.
void freeze(KernelAttention& layer, const KernelAttentionInputs& inputs) {
  if (layer->options().feature_transform == "expplus") {
    layer->freeze_statistics(layer->measure_statistics(inputs));
  }
}

Tensor holes(int64_t keys) {  // bool [2, keys]
  Tensor mask = at::ones({2, keys}, at::kBool);
  mask[0].slice(0, keys - 3).fill_(false);
  for (const int64_t j : {1, 2, 3, 6}) mask[1][j] = false;
  return mask;
}

void expect_close(const Tensor& actual, const Tensor& expected, double relative, const std::string& what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  const double size = expected.abs().max().item<double>();
  EXPECT_LE((actual - expected).abs().max().item<double>(), relative * (1 + size)) << what;
}

// expplus in the fused kernel rounds its projection to float32.
double bound(const KernelAttentionOptions& o) {
  return o.feature_transform == "expplus" ? 1e-5 : o.feature_transform == "identity" ? 1e-7 : 1e-10;
}

using Param = std::tuple<Variant, std::string>;
class Whole : public ::testing::TestWithParam<Param> {};
class Windowed : public ::testing::TestWithParam<Param> {};

template <class Info>
std::string name_of(const Info& info) {
  return std::get<0>(info.param).name + "_" + std::get<1>(info.param);
}

KernelAttentionOptions options_of(const Param& param) {
  KernelAttentionOptions o = base_options();
  o.feature_transform = std::get<1>(param);
  std::get<0>(param).change(o);
  return o;
}

std::vector<Param> params(const std::vector<Variant>& variants) {
  std::vector<Param> all;
  for (const Variant& variant : variants) {
    for (const std::string& transform : kTransforms) {
      if (possible(options_of({variant, transform}))) all.emplace_back(variant, transform);
    }
  }
  return all;
}

TEST_P(Whole, FollowsTheDefinition) {
  const KernelAttentionOptions o = options_of(GetParam());
  KernelAttention layer = make_layer(o);
  KernelAttentionInputs inputs = make_inputs(o, 9, 11);
  expect_close(layer(inputs).flatten(2), dense_attention(layer, inputs), bound(o), "no mask");
  inputs.attention_mask = holes(11);
  inputs.query_mask = holes(9);
  const Tensor masked = layer(inputs);
  expect_close(masked.flatten(2), dense_attention(layer, inputs), bound(o), "mask");
  inputs.attention_mask = holes(11).to(at::kInt);
  expect_close(layer(inputs), masked, 1e-12, "integers");
  inputs.attention_mask = holes(11).to(at::kDouble);
  expect_close(layer(inputs), masked, bound(o), "floats");
  inputs.attention_mask = holes(11) * at::rand({2, 11}, at::kDouble);
  expect_close(layer(inputs).flatten(2), dense_attention(layer, inputs), bound(o), "weights");
}

TEST_P(Whole, MaskedKeysDoNotExist) {
  const KernelAttentionOptions o = options_of(GetParam());
  KernelAttention layer = make_layer(o);
  KernelAttentionInputs inputs = make_inputs(o, 9, 11);
  KernelAttentionInputs shorter = inputs;
  const Tensor keep = at::ones({2, 11}, at::kBool).index_fill(1, at::tensor({0, 4, 9, 10}, at::kLong), false);
  inputs.attention_mask = keep;
  inputs.value = inputs.value.clone().masked_fill_(~keep.unsqueeze(-1), 40.0);  // loud where masked
  if (inputs.key) inputs.key = inputs.key->clone().masked_fill_(~keep.unsqueeze(-1), 40.0);
  const Tensor left = keep[0].nonzero().squeeze(-1);
  shorter.value = shorter.value.index_select(1, left);
  if (shorter.key) shorter.key = shorter.key->index_select(1, left);
  expect_close(layer(inputs), layer(shorter), bound(o) * 1e-2 + 1e-10, "removed");
}

TEST_P(Whole, GradientsAreDerivatives) {
  const KernelAttentionOptions o = options_of(GetParam());
  KernelAttention layer = make_layer(o);
  KernelAttentionInputs inputs = make_inputs(o, 6, 7);
  if (o.begin_kernel < 6) freeze(layer, inputs);  // statistics carry no gradient
  inputs.attention_mask = holes(7);
  const Tensor cotangent = at::randn_like(layer(inputs));
  const auto loss = [&](const Tensor& query, const Tensor& value) {
    KernelAttentionInputs moved = inputs;
    moved.query = query;
    moved.value = value;
    return (layer(moved) * cotangent).sum();
  };
  const Tensor query = inputs.query.clone().set_requires_grad(true),
               value = inputs.value.clone().set_requires_grad(true);
  const auto grads = torch::autograd::grad({loss(query, value)}, {query, value});
  const at::NoGradGuard no_grad;
  const Tensor dq = at::randn_like(query), dv = at::randn_like(value);
  const double h = 1e-6;
  const double measured =
      ((loss(query + h * dq, value + h * dv) - loss(query - h * dq, value - h * dv)) / (2 * h))
          .item<double>();
  const double computed = ((grads[0] * dq).sum() + (grads[1] * dv).sum()).item<double>();
  EXPECT_NEAR(computed, measured, 2e-5 * (1 + std::abs(measured)));
}

INSTANTIATE_TEST_SUITE_P(KernelAttention, Whole, ::testing::ValuesIn(params(whole_variants())),
                         [](const auto& info) { return name_of(info); });

constexpr int64_t kTokens = 13;

int64_t tokens_of(const KernelAttentionOptions& o) {  // a multiple of the chunk unless padding allows others
  return o.causal_padding == "none" ? kTokens - kTokens % o.causal_chunk_length : kTokens;
}

TEST_P(Windowed, FollowsTheDefinition) {
  const KernelAttentionOptions o = options_of(GetParam());
  KernelAttention layer = make_layer(o);
  const int64_t tokens = tokens_of(o);
  KernelAttentionInputs inputs = make_inputs(o, tokens, tokens);
  freeze(layer, inputs);
  expect_close(layer(inputs), dense_attention(layer, inputs), bound(o), "no mask");
  inputs.attention_mask = holes(tokens);
  inputs.query_mask = holes(tokens);
  expect_close(layer(inputs), dense_attention(layer, inputs), bound(o), "mask");
  inputs.attention_mask = holes(tokens) * at::rand({2, tokens}, at::kDouble);
  expect_close(layer(inputs), dense_attention(layer, inputs), bound(o), "weights");
}

// Lengths of the calls that feed `tokens` tokens: uneven, whole chunks but for what padding allows.
std::vector<int64_t> call_lengths(const KernelAttentionOptions& o, int64_t tokens) {
  const int64_t chunk = o.causal_chunk_length, over = tokens % chunk;
  std::vector<int64_t> lengths;
  int64_t left = tokens, next = 1;
  if (over > 0 && o.causal_padding == "left") {
    lengths.push_back(over);
    left -= over;
  }
  while (left >= chunk) {
    const int64_t length = std::min(next, left / chunk) * chunk;
    lengths.push_back(length);
    left -= length;
    next = next % 3 + 1;
  }
  if (left > 0) lengths.push_back(left);
  return lengths;
}

void expect_stream(KernelAttention& layer, const KernelAttentionInputs& inputs, double relative) {
  const KernelAttentionOptions& o = layer->options();
  const Tensor whole = layer(inputs);
  KernelCache cache;
  std::vector<Tensor> outputs;
  int64_t begin = 0;
  for (const int64_t length : call_lengths(o, inputs.query.size(1))) {
    const auto part = [&](const Tensor& x) { return x.narrow(1, begin, length); };
    KernelAttentionInputs next;
    next.query = part(inputs.query);
    next.value = part(inputs.value);
    if (inputs.attention_mask) next.attention_mask = part(*inputs.attention_mask);
    if (inputs.query_mask) next.query_mask = part(*inputs.query_mask);
    next.cache = &cache;
    outputs.push_back(layer(next));
    begin += length;
  }
  expect_close(at::cat(outputs, 1), whole, relative, o.feature_transform);
}

TEST_P(Windowed, StreamingEqualsBatch) {
  const KernelAttentionOptions o = options_of(GetParam());
  KernelAttention layer = make_layer(o);
  const int64_t tokens = tokens_of(o);
  KernelAttentionInputs inputs = make_inputs(o, tokens, tokens);
  freeze(layer, inputs);
  expect_stream(layer, inputs, 1e-9);
  inputs.attention_mask = holes(tokens);
  inputs.query_mask = holes(tokens);
  expect_stream(layer, inputs, 1e-9);
  inputs.attention_mask = holes(tokens) * at::rand({2, tokens}, at::kDouble);
  expect_stream(layer, inputs, 1e-9);
}

TEST_P(Windowed, StreamingEqualsBatchForLargeInputs) {
  const KernelAttentionOptions o = options_of(GetParam());
  // Denominators of identity come close to zero, where float32 has no digits left.
  const at::ScalarType type = o.feature_transform == "identity" ? at::kDouble : at::kFloat;
  KernelAttention layer = make_layer(o, type);
  const int64_t tokens = tokens_of(o);
  KernelAttentionInputs inputs = make_inputs(o, tokens, tokens, type);
  inputs.query = inputs.query * 30;
  freeze(layer, inputs);
  inputs.value = inputs.value * 30;
  EXPECT_TRUE(layer(inputs).isfinite().all().item<bool>());
  expect_stream(layer, inputs, 1e-3);
}

TEST_P(Windowed, LaterTokensChangeNothing) {
  const KernelAttentionOptions o = options_of(GetParam());
  KernelAttention layer = make_layer(o);
  const int64_t tokens = tokens_of(o), chunk = o.causal_chunk_length;
  const int64_t kept = o.causal_padding == "left" ? tokens - 2 * chunk : (tokens / chunk - 1) * chunk;
  KernelAttentionInputs inputs = make_inputs(o, tokens, tokens);
  freeze(layer, inputs);
  KernelAttentionInputs prefix = inputs;
  prefix.query = inputs.query.narrow(1, 0, kept);
  prefix.value = inputs.value.narrow(1, 0, kept);
  inputs.query = inputs.query.clone();
  inputs.value = inputs.value.clone();
  inputs.query.slice(1, kept).mul_(20);
  inputs.value.slice(1, kept).mul_(20);
  expect_close(layer(inputs).narrow(1, 0, kept), layer(prefix), 1e-10, "outputs");
  inputs.query.set_requires_grad(true);
  inputs.value.set_requires_grad(true);
  layer(inputs).narrow(1, 0, kept).square().sum().backward();
  EXPECT_EQ(inputs.value.grad().slice(1, kept).abs().max().item<double>(), 0);
  EXPECT_GT(inputs.value.grad().abs().max().item<double>(), 0);
}

TEST_P(Windowed, GradientsAreDerivatives) {
  const KernelAttentionOptions o = options_of(GetParam());
  KernelAttention layer = make_layer(o);
  const int64_t tokens = tokens_of(o);
  KernelAttentionInputs inputs = make_inputs(o, tokens, tokens);
  freeze(layer, inputs);
  inputs.attention_mask = holes(tokens);
  const Tensor cotangent = at::randn_like(layer(inputs));
  const auto loss = [&](const Tensor& x) {  // self-attention: both roles of a token at once
    KernelAttentionInputs moved = inputs;
    moved.query = moved.value = x;
    return (layer(moved) * cotangent).sum();
  };
  const Tensor x = inputs.value.clone().set_requires_grad(true);
  const Tensor grad = torch::autograd::grad({loss(x)}, {x})[0];
  const at::NoGradGuard no_grad;
  const Tensor direction = at::randn_like(x);
  const double h = 1e-6;
  const double measured = ((loss(x + h * direction) - loss(x - h * direction)) / (2 * h)).item<double>();
  EXPECT_NEAR((grad * direction).sum().item<double>(), measured, 5e-5 * (1 + std::abs(measured)));
}

INSTANTIATE_TEST_SUITE_P(KernelAttention, Windowed, ::testing::ValuesIn(params(windowed_variants())),
                         [](const auto& info) { return name_of(info); });

}  // namespace
}  // namespace performer::nn::kernel_attention_test
