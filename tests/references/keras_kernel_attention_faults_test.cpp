// SPDX-License-Identifier: Apache-2.0
// One test for each fault of the KernelAttention layer that docs/kernel_attention.md lists.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/references/keras/features.h"
#include "performer/references/keras/kernel_attention.h"

namespace performer::references::keras {
namespace {

using at::Tensor;

// Heads are slices of the input and outputs are stacked heads, so that tests choose queries, keys and values.
KernelAttentionOptions open_options(const std::string& transform, int64_t heads, int64_t size) {
  KernelAttentionOptions o;
  o.query_width = o.value_width = o.key_width = heads * size;
  o.num_heads = heads;
  o.key_dim = o.value_dim = size;
  o.feature_transform = transform;
  o.num_random_features = 0;
  o.use_bias = false;
  return o;
}

KernelAttention open_layer(const KernelAttentionOptions& o) {
  KernelAttention layer(o);
  layer->to(at::kDouble);
  layer->eval();
  const at::NoGradGuard no_grad;
  const Tensor eye = at::eye(o.query_width, at::kDouble);
  for (auto& item : layer->named_parameters()) {
    if (item.value().numel() == eye.numel()) item.value().copy_(eye.reshape(item.value().sizes()));
  }
  return layer;
}

KernelAttentionInputs self_inputs(const Tensor& query, const Tensor& key, const Tensor& value) {
  KernelAttentionInputs inputs;
  inputs.query = query;
  inputs.key = key;
  inputs.value = value;
  return inputs;
}

Tensor random(at::IntArrayRef shape, double deviation = 1) {
  return at::randn(shape, at::kDouble) * deviation;
}

double largest(const Tensor& x) {
  return x.abs().max().item<double>();
}

class Fault : public ::testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(21); }
};

// 1e-6 in the denominator: with one value for all keys attention should return it.
TEST_F(Fault, DenominatorGuardShrinksOutputs) {
  KernelAttentionOptions o = open_options("exp", 1, 64);
  o.num_random_features = 64;
  const Tensor ones = at::ones({1, 40, 64}, at::kDouble);
  const Tensor out = open_layer(o)(self_inputs(random({1, 40, 64}), random({1, 40, 64}), ones));
  EXPECT_LT(out.min().item<double>(), 0.5);
}

// One shift for all heads: a loud head silences the others.
TEST_F(Fault, LoudHeadSilencesTheOthers) {
  const Tensor query = random({1, 10, 8}), key = random({1, 10, 8}), ones = at::ones({1, 10, 8}, at::kDouble);
  const Tensor loud = key.clone();
  loud.narrow(-1, 0, 4).mul_(50);
  const auto quiet_head = [&](const Tensor& keys) {
    return open_layer(open_options("expmod", 2, 4))(self_inputs(query, keys, ones)).narrow(-1, 4, 4);
  };
  EXPECT_GT(quiet_head(key).min().item<double>(), 0.9);
  EXPECT_LT(quiet_head(loud).max().item<double>(), 0.1);
}

// Masked keys keep score 0 in the short path.
TEST_F(Fault, ShortPathSeesMaskedKeys) {
  const Tensor x = random({1, 6, 4});
  KernelAttentionOptions o = open_options("identity", 1, 4);
  o.is_short_seq = true;
  KernelAttention layer = open_layer(o);
  KernelAttentionInputs inputs = self_inputs(x, x, x);
  inputs.attention_mask = at::tensor({1, 1, 1, 0, 0, 0}, at::kDouble).unsqueeze(0);
  const Tensor before = layer(inputs);
  inputs.value = x.clone();
  inputs.value.slice(1, 3).add_(7);  // of masked keys
  EXPECT_GT(largest(layer(inputs) - before), 0.5);
}

// Rows of the short path depend on each other through the shared maximum.
TEST_F(Fault, ShortPathMixesRows) {
  const Tensor x = random({1, 6, 4});
  KernelAttentionOptions o = open_options("exp", 1, 4);
  o.is_short_seq = true;
  KernelAttention layer = open_layer(o);
  KernelAttentionInputs inputs = self_inputs(x, x, x);
  const Tensor before = layer(inputs);
  inputs.query = x.clone();
  inputs.query.slice(1, 5).add_(3);
  EXPECT_GT(largest((layer(inputs) - before).slice(1, 0, 5)), 1e-3);
}

TEST_F(Fault, LengthScaleOfAnEmptyRowIsNaN) {
  const Tensor x = random({2, 6, 4});
  for (const bool is_short : {false, true}) {
    KernelAttentionOptions o = open_options("elu", 1, 4);
    o.scale_by_length = true;
    o.is_short_seq = is_short;
    KernelAttentionInputs inputs = self_inputs(x, x, x);
    inputs.attention_mask = at::ones({2, 6}, at::kDouble);
    inputs.attention_mask->select(0, 0).fill_(0);
    EXPECT_TRUE(open_layer(o)(inputs).isnan().any().item<bool>());
  }
}

// D^(-1/4) twice: expplus estimates exp(q k / D).
TEST_F(Fault, ExpPlusScalesTwice) {
  const int64_t d = 16;
  const Tensor query = random({1, 30, d}, 0.8), key = random({1, 30, d}, 0.8), value = random({1, 30, d});
  KernelAttentionOptions o = open_options("expplus", 1, d);
  o.num_random_features = 16384;
  const Tensor out = open_layer(o)(self_inputs(query, key, value));
  const auto distance = [&](double scale) {
    const Tensor scores = at::einsum("btd,bsd->bts", {query, key}) * scale;
    return (out - at::matmul(scores.softmax(-1), value)).norm().item<double>();
  };
  const double root = 1 / std::sqrt(static_cast<double>(d));
  EXPECT_LT(distance(root * root), 0.3 * distance(root));
}

KernelAttentionOptions expplus_options() {
  KernelAttentionOptions o = open_options("expplus", 1, 4);
  o.num_random_features = 12;
  return o;
}

// Through the shift of keys: exactly, with the 1e-6 that is not shifted along.
TEST_F(Fault, ExpPlusDependsOnBatchNeighbours) {
  const Tensor x = random({2, 6, 4}, 2);
  KernelAttention layer = open_layer(expplus_options());
  Tensor other = x.clone();
  other[1].mul_(4);
  EXPECT_GT(largest((layer(self_inputs(x, x, x)) - layer(self_inputs(other, other, other)))[0]), 1e-4);
}

TEST_F(Fault, ExpPlusStatisticsIgnoreMasks) {
  const Tensor x = random({1, 8, 4});
  KernelAttentionInputs inputs = self_inputs(x, x, x);
  inputs.attention_mask = at::tensor({1, 1, 1, 1, 1, 1, 0, 0}, at::kDouble).unsqueeze(0);
  KernelAttentionInputs louder = inputs;
  louder.key = x.clone();
  louder.key->slice(1, 6).mul_(9);
  KernelAttention layer = open_layer(expplus_options());
  EXPECT_GT(largest(layer(inputs) - layer(louder)), 1e-3);
}

// Both sums are divided by the tokens of the tensor at hand: queries and keys get different maps when T != S.
TEST_F(Fault, ExpPlusTakesTheWrongLength) {
  const Tensor query = random({1, 3, 4}), key = random({1, 9, 4}), value = random({1, 9, 4});
  KernelAttention layer = open_layer(expplus_options());
  const Tensor once = layer(self_inputs(query, key, value));
  const Tensor thrice = layer(self_inputs(query.repeat({1, 3, 1}), key, value)).narrow(1, 0, 3);
  EXPECT_GT(largest(once - thrice), 1e-3) << "the same queries three times should change nothing";
}

TEST_F(Fault, ExpPlusOfZerosIsNaN) {
  const Tensor zero = at::zeros({1, 5, 4}, at::kDouble);
  EXPECT_TRUE(
      open_layer(expplus_options())(self_inputs(zero, zero, random({1, 5, 4}))).isnan().all().item<bool>());
}

TEST_F(Fault, ExpPlusWithoutProjectionIsIdentity) {
  const Tensor x = random({1, 6, 4});
  const auto out = [&](const std::string& transform) {
    return open_layer(open_options(transform, 1, 4))(self_inputs(x, x, x));
  };
  EXPECT_TRUE(at::equal(out("expplus"), out("identity")));
}

TEST_F(Fault, ExpPlusWindowsSeeTheFuture) {
  const Tensor x = random({1, 8, 4});
  Tensor later = x.clone();
  later.slice(1, 4).mul_(3);
  KernelAttentionOptions o = expplus_options();
  o.use_causal_windowed = true;
  KernelAttention layer = open_layer(o);
  const Tensor change = layer(self_inputs(x, x, x)) - layer(self_inputs(later, later, later));
  EXPECT_GT(largest(change.slice(1, 0, 4)), 1e-3);
}

// Outputs [B, T, ...] of one token at a time.
Tensor streamed(KernelAttention& layer, const Tensor& x) {
  Cache cache;
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < x.size(1); ++t) {
    KernelAttentionInputs row = self_inputs(x.narrow(1, t, 1), x.narrow(1, t, 1), x.narrow(1, t, 1));
    row.cache = &cache;
    rows.push_back(layer(row));
  }
  return at::cat(rows, 1);
}

TEST_F(Fault, MaximumOfExpStreamsDifferently) {
  const Tensor x = random({1, 8, 4}, 3);
  KernelAttentionOptions o = open_options("exp", 1, 4);
  o.use_causal_windowed = true;
  o.causal_window_length = 8;
  o.causal_window_decay = 0.9;
  KernelAttention layer = open_layer(o);
  EXPECT_GT(largest(streamed(layer, x) - layer(self_inputs(x, x, x))), 1e-2);
}

// With a decay nothing is ever dropped, whatever the window.
TEST_F(Fault, StreamsHaveNoWindow) {
  const Tensor x = random({1, 8, 4});
  KernelAttentionOptions o = open_options("elu", 1, 4);
  o.use_causal_windowed = true;
  o.causal_window_length = 3;
  o.causal_window_decay = 1;
  KernelAttention layer = open_layer(o);
  Tensor other = x.clone();
  other.slice(1, 0, 3).mul_(5);
  EXPECT_FALSE(at::allclose(streamed(layer, x).select(1, 7), streamed(layer, other).select(1, 7)));
}

// Sums are differences of running totals: in float32 they lose what the window holds.
TEST_F(Fault, WindowSumsCancel) {
  Tensor x = at::rand({1, 20000, 1, 1, 1}, at::kDouble);
  x.slice(1, 0, 200).add_(1e4);  // a loud beginning, long out of every later window
  const Tensor exact = weighted_window_sum(x, 5, at::ones({5}, at::kDouble));
  const Tensor found = rectangular_window_sum(x.to(at::kFloat), 5).to(at::kDouble);
  EXPECT_GT(largest(((found - exact) / exact).slice(1, 300)), 1e-2);
}

// Where all keys of a window are masked, 0 / 1e-6: gradients of a million, which the running totals cancel in
// the keys before only up to rounding.
TEST_F(Fault, MaskedWindowsLeaveAResidue) {
  KernelAttentionOptions o = open_options("relu", 2, 4);
  o.use_causal_windowed = true;
  o.causal_window_length = 2;
  const Tensor x = random({1, 60, 8}, 3), weights = random({1, 60, 8});
  KernelAttentionInputs inputs = self_inputs(x, x, x.clone().set_requires_grad(true));
  inputs.attention_mask = at::ones({1, 60}, at::kDouble);
  inputs.attention_mask->slice(1, 30).fill_(0);
  (open_layer(o)(inputs) * weights).slice(1, 32).sum().backward();
  EXPECT_GT(largest(inputs.value.grad()), 0);
}

TEST_F(Fault, LeftPaddingMovesOutputs) {
  const Tensor x = random({1, 10, 4});
  KernelAttentionOptions o = open_options("elu", 1, 4);
  o.use_causal_windowed = true;
  o.causal_chunk_length = 4;
  o.causal_window_length = 2;
  o.causal_padding = "left";
  const Tensor out = open_layer(o)(self_inputs(x, x, x));
  EXPECT_EQ(largest(out.slice(1, 0, 2)), 0);
  EXPECT_GT(out.slice(1, 2).abs().amax(-1).min().item<double>(), 0);
}

TEST_F(Fault, BeginKernelKnowsNeitherWindowsNorRedraw) {
  const Tensor x = random({1, 8, 4});
  KernelAttentionOptions o = open_options("exp", 1, 4);
  o.num_random_features = 12;
  o.redraw = true;
  o.begin_kernel = 3;
  KernelAttention layer = open_layer(o);
  KernelAttentionInputs training = self_inputs(x, x, x);
  training.training = true;
  EXPECT_TRUE(at::equal(layer(training), layer(training)));  // no draw
  o.use_causal_windowed = true;
  EXPECT_THROW(open_layer(o)(self_inputs(x, x, x)), UsageError);
}

// The softmax part projects: its scores are noisy estimates of the products.
TEST_F(Fault, BeginKernelSoftmaxIsProjected) {
  const Tensor x = random({1, 6, 4});
  const Tensor exact = at::matmul((at::einsum("btd,bsd->bts", {x, x}) / 2).softmax(-1), x);  // 4^(-1/2)
  KernelAttentionOptions o = open_options("exp", 1, 4);
  o.num_random_features = 12;
  o.begin_kernel = 6;
  EXPECT_GT(largest(open_layer(o)(self_inputs(x, x, x)) - exact), 1e-2);
}

TEST_F(Fault, MasksMustBeFloats) {
  const Tensor x = random({1, 6, 4});
  KernelAttentionInputs inputs = self_inputs(x, x, x);
  inputs.attention_mask = at::ones({1, 6}, at::kBool);
  EXPECT_THROW(open_layer(open_options("elu", 1, 4))(inputs), UsageError);
}

// Only directions change, in every training call, and never what inference uses.
TEST_F(Fault, RedrawKeepsRowNormsAndInferenceNeverSeesIt) {
  const Tensor x = random({1, 6, 4});
  KernelAttentionOptions o = open_options("exp", 1, 4);
  o.num_random_features = 12;
  o.redraw = true;
  KernelAttention layer = open_layer(o);
  KernelAttentionInputs call = self_inputs(x, x, x);
  const Tensor still = layer(call), fixed = layer->projection().clone();
  call.training = true;
  const Tensor first = layer(call), second = layer(call);
  EXPECT_FALSE(at::allclose(first, second));
  EXPECT_TRUE(at::equal(layer->projection(), fixed));
  layer->redraw(0);
  EXPECT_TRUE(at::equal(layer(call), first));
  call.training = false;
  EXPECT_TRUE(at::equal(layer(call), still));
}

TEST_F(Fault, LayersAndHeadsShareOneProjection) {
  KernelAttentionOptions o = open_options("exp", 2, 4);
  o.num_random_features = 12;
  const Tensor one = KernelAttention(o)->projection();
  EXPECT_EQ(one.dim(), 2);
  EXPECT_TRUE(at::equal(KernelAttention(o)->projection(), one));
}

// Keras takes the heads of [width, H, D] for a receptive field, so its weights start smaller.
TEST_F(Fault, GlorotCountsHeadsTwice) {
  const KernelAttention layer(open_options("elu", 8, 16));
  EXPECT_NEAR(layer->named_parameters()["query.kernel"].abs().max().item<double>(),
              std::sqrt(6.0 / (128 * 8 + 128 * 16)), 1e-3);
}

}  // namespace
}  // namespace performer::references::keras
