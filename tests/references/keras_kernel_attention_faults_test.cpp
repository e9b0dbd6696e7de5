// SPDX-License-Identifier: Apache-2.0
// One test for each fault of the reference layer: compatible mode has it, the default does not; and the
// options and errors of the module.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/references/keras/features.h"
#include "performer/references/keras/kernel_attention.h"
#include "tests/references/keras_kernel_attention_oracle.h"

namespace performer::nn::kernel_attention_test {
namespace faults {
namespace {

using at::Tensor;

// Heads are slices of the input and outputs are stacked heads, so that tests choose queries, keys and values.
KernelAttentionOptions open_options(const std::string& transform, int64_t heads, int64_t size,
                                    bool compatible) {
  KernelAttentionOptions o;
  o.query_width = o.value_width = o.key_width = heads * size;
  o.num_heads = heads;
  o.key_dim = o.value_dim = size;
  o.feature_transform = transform;
  o.num_random_features = 0;
  o.use_bias = false;
  o.compatible = compatible;
  return o;
}

KernelAttention open_layer(const KernelAttentionOptions& o, at::ScalarType type = at::kDouble) {
  KernelAttention layer(o);
  layer->to(type);
  layer->eval();
  const at::NoGradGuard no_grad;
  const Tensor eye = at::eye(o.query_width, type);
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

Tensor random(at::IntArrayRef shape, double deviation = 1, at::ScalarType type = at::kDouble) {
  return at::randn(shape, type) * deviation;
}

class Fault : public ::testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(21); }
};

// 1e-6 in the denominator: with one value for all keys attention must return it.
TEST_F(Fault, DenominatorGuardShrinksOutputs) {
  const auto result = [](bool compatible) {
    KernelAttentionOptions o = open_options("exp", 1, 64, compatible);
    o.num_random_features = 64;
    torch::manual_seed(22);
    KernelAttention layer = open_layer(o);
    return layer(self_inputs(random({1, 40, 64}), random({1, 40, 64}), at::ones({1, 40, 64}, at::kDouble)));
  };
  EXPECT_LT(result(true).min().item<double>(), 0.5);
  EXPECT_TRUE(at::allclose(result(false), at::ones({1, 40, 64}, at::kDouble), 1e-6));
}

// One shift for all heads: a loud head silences the others.
TEST_F(Fault, LoudHeadSilencesTheOthers) {
  const Tensor query = random({1, 10, 8}), key = random({1, 10, 8}),
               value = at::ones({1, 10, 8}, at::kDouble);
  const Tensor loud = key.clone();
  loud.narrow(-1, 0, 4).mul_(50);
  const auto quiet_head = [&](bool compatible, const Tensor& keys) {
    KernelAttention layer = open_layer(open_options("expmod", 2, 4, compatible));
    return layer(self_inputs(query, keys, value)).narrow(-1, 4, 4);
  };
  EXPECT_LT(quiet_head(true, loud).max().item<double>(), 0.1);
  EXPECT_TRUE(at::allclose(quiet_head(false, loud), quiet_head(false, key), 1e-9));
}

// Masked keys keep score 0 in the short path.
TEST_F(Fault, ShortPathSeesMaskedKeys) {
  const Tensor x = random({1, 6, 4});
  const Tensor mask = at::tensor({1, 1, 1, 0, 0, 0}, at::kDouble).unsqueeze(0);
  const auto change = [&](bool compatible) {  // by the values of masked keys
    KernelAttentionOptions o = open_options("identity", 1, 4, compatible);
    o.is_short_seq = true;
    KernelAttention layer = open_layer(o);
    KernelAttentionInputs inputs = self_inputs(x, x, x);
    inputs.attention_mask = mask;
    const Tensor before = layer(inputs);
    inputs.value = x.clone();
    inputs.value.slice(1, 3).add_(7);
    return (layer(inputs) - before).abs().max().item<double>();
  };
  EXPECT_GT(change(true), 0.5);
  EXPECT_EQ(change(false), 0);
}

// Rows of the short path depend on each other through the shared maximum.
TEST_F(Fault, ShortPathMixesRows) {
  const Tensor x = random({1, 6, 4});
  const auto change = [&](bool compatible) {
    KernelAttentionOptions o = open_options("exp", 1, 4, compatible);
    o.is_short_seq = true;
    KernelAttention layer = open_layer(o);
    KernelAttentionInputs inputs = self_inputs(x, x, x);
    const Tensor before = layer(inputs);
    inputs.query = x.clone();
    inputs.query.slice(1, 5).add_(3);
    return (layer(inputs) - before).slice(1, 0, 5).abs().max().item<double>();
  };
  EXPECT_GT(change(true), 1e-3);
  EXPECT_EQ(change(false), 0);
}

TEST_F(Fault, LengthScaleOfAnEmptyRowIsNaN) {
  const Tensor x = random({2, 6, 4});
  Tensor mask = at::ones({2, 6}, at::kDouble);
  mask[0].fill_(0);
  for (const bool is_short : {false, true}) {
    KernelAttentionOptions o = open_options("elu", 1, 4, true);
    o.scale_by_length = true;
    o.is_short_seq = is_short;
    KernelAttentionInputs inputs = self_inputs(x, x, x);
    inputs.attention_mask = mask;
    EXPECT_TRUE(open_layer(o)(inputs).isnan().any().item<bool>());
    o.compatible = false;
    inputs.query = x.clone().set_requires_grad(true);
    const Tensor out = open_layer(o)(inputs);
    EXPECT_EQ(out[0].abs().max().item<double>(), 0);
    EXPECT_TRUE(out.isfinite().all().item<bool>());
    out.sum().backward();
    EXPECT_TRUE(inputs.query.grad().isfinite().all().item<bool>());
  }
}

// d^(-1/4) twice and statistics over the batch: expplus of the reference estimates exp(q.k / d).
TEST_F(Fault, ExpPlusScalesTwice) {
  const int64_t d = 16;
  const Tensor query = random({1, 30, d}, 0.8), key = random({1, 30, d}, 0.8), value = random({1, 30, d});
  const auto result = [&](bool compatible) {
    KernelAttentionOptions o = open_options("expplus", 1, d, compatible);
    o.num_random_features = 16384;
    return open_layer(o)(self_inputs(query, key, value));
  };
  const auto softmax = [&](double scale) {
    const Tensor scores = at::einsum("btd,bsd->bts", {query, key}) * scale;
    return at::matmul(scores.softmax(-1), value);
  };
  const auto far = [](const Tensor& a, const Tensor& b) { return (a - b).norm().item<double>(); };
  const double root = 1 / std::sqrt(static_cast<double>(d));
  EXPECT_LT(far(result(false), softmax(root)), 0.3 * far(result(false), softmax(root * root)));
  EXPECT_LT(far(result(true), softmax(root * root)), 0.3 * far(result(true), softmax(root)));
}

KernelAttentionOptions expplus_options(bool compatible) {
  KernelAttentionOptions o = open_options("expplus", 1, 4, compatible);
  o.num_random_features = 12;
  return o;
}

// In the reference through the shift of keys: exactly, with the 1e-6 that is not shifted along.
TEST_F(Fault, ExpPlusDependsOnBatchNeighbours) {
  const Tensor x = random({2, 6, 4}, 2);
  const auto change = [&](bool compatible) {
    KernelAttention layer = open_layer(expplus_options(compatible));
    Tensor other = x.clone();
    other[1].mul_(4);
    return (layer(self_inputs(x, x, x)) - layer(self_inputs(other, other, other)))[0]
        .abs()
        .max()
        .item<double>();
  };
  EXPECT_GT(change(true), 1e-4);
  EXPECT_EQ(change(false), 0);
}

TEST_F(Fault, ExpPlusStatisticsIgnoreMasks) {
  const Tensor x = random({1, 8, 4});
  KernelAttentionInputs inputs = self_inputs(x, x, x);
  inputs.attention_mask = at::tensor({1, 1, 1, 1, 1, 1, 0, 0}, at::kDouble).unsqueeze(0);
  Tensor loud = x.clone();
  loud.slice(1, 6).mul_(9);
  KernelAttentionInputs louder = inputs;
  louder.key = loud;
  KernelAttention theirs = open_layer(expplus_options(true)), ours = open_layer(expplus_options(false));
  EXPECT_GT((theirs(inputs) - theirs(louder)).abs().max().item<double>(), 1e-3);
  EXPECT_EQ((ours(inputs) - ours(louder)).abs().max().item<double>(), 0);
  inputs.query_mask = inputs.attention_mask->ne(0);
  louder.query_mask = inputs.query_mask;
  louder.query = loud;
  EXPECT_EQ((ours(inputs) - ours(louder)).abs().max().item<double>(), 0);
}

// Both sums divided by the tokens of the tensor at hand: queries and keys get different maps when T != S.
TEST_F(Fault, ExpPlusTakesTheWrongLength) {
  const Tensor query = random({1, 3, 4}), key = random({1, 9, 4}), value = random({1, 9, 4});
  const auto repeated = [&](bool compatible) {  // the same queries three times: nothing may change
    KernelAttention layer = open_layer(expplus_options(compatible));
    const Tensor once = layer(self_inputs(query, key, value));
    const Tensor thrice = layer(self_inputs(query.repeat({1, 3, 1}), key, value)).narrow(1, 0, 3);
    return (once - thrice).abs().max().item<double>();
  };
  EXPECT_GT(repeated(true), 1e-3);
  EXPECT_LT(repeated(false), 1e-6);
}

TEST_F(Fault, ExpPlusOfZerosIsNaN) {
  const Tensor zero = at::zeros({1, 5, 4}, at::kDouble), value = random({1, 5, 4});
  EXPECT_TRUE(open_layer(expplus_options(true))(self_inputs(zero, zero, value)).isnan().all().item<bool>());
  const Tensor out = open_layer(expplus_options(false))(self_inputs(zero, zero, value));
  EXPECT_TRUE(at::allclose(out, value.mean(1, true).expand_as(out), 1e-6));
}

TEST_F(Fault, ExpPlusWithoutProjectionIsIdentity) {
  KernelAttentionOptions o = open_options("expplus", 1, 4, true);
  EXPECT_NO_THROW(open_layer(o));
  o.compatible = false;
  EXPECT_THROW(KernelAttention{o}, UsageError);
}

TEST_F(Fault, ExpPlusWindowsSeeTheFuture) {
  const Tensor x = random({1, 8, 4});
  Tensor later = x.clone();
  later.slice(1, 4).mul_(3);
  const auto change = [&](KernelAttention& layer) {
    return (layer(self_inputs(x, x, x)) - layer(self_inputs(later, later, later)))
        .slice(1, 0, 4)
        .abs()
        .max()
        .item<double>();
  };
  KernelAttentionOptions o = expplus_options(true);
  o.use_causal_windowed = true;
  KernelAttention theirs = open_layer(o);
  EXPECT_GT(change(theirs), 1e-3);
  o.compatible = false;
  KernelAttention ours = open_layer(o);
  EXPECT_THROW(ours(self_inputs(x, x, x)), UsageError);
  ours->freeze_statistics(ours->measure_statistics(self_inputs(x, x, x)));
  EXPECT_EQ(change(ours), 0);
}

TEST_F(Fault, MaximumOfExpStreamsDifferently) {
  const Tensor x = random({1, 8, 4}, 3);
  const auto change = [&](bool compatible) {
    KernelAttentionOptions o = open_options("exp", 1, 4, compatible);
    o.use_causal_windowed = true;
    o.causal_window_length = 8;
    o.causal_window_decay = 0.9;
    KernelAttention layer = open_layer(o);
    KernelCache cache;
    std::vector<Tensor> rows;
    for (int64_t t = 0; t < 8; ++t) {
      KernelAttentionInputs row = self_inputs(x.narrow(1, t, 1), x.narrow(1, t, 1), x.narrow(1, t, 1));
      row.cache = &cache;
      rows.push_back(layer(row));
    }
    return (at::cat(rows, 1) - layer(self_inputs(x, x, x))).abs().max().item<double>();
  };
  EXPECT_GT(change(true), 1e-2);
  EXPECT_LT(change(false), 1e-12);
}

// Sums are differences of running totals: in float32 they lose what the window holds.
TEST_F(Fault, WindowSumsCancel) {
  const int64_t length = 20000;
  Tensor x = at::rand({1, length, 1, 1, 1}, at::kDouble);
  x.slice(1, 0, 200).add_(1e4);  // a loud beginning, long out of every later window
  const Tensor rough = x.to(at::kFloat), exact = windowed::window_sums(x, 5);
  const auto worst = [&](const Tensor& sums) {
    return ((sums.to(at::kDouble) - exact) / exact).slice(1, 300).abs().max().item<double>();
  };
  EXPECT_GT(worst(references::keras::rectangular_window_sum(rough, 5)), 1e-2);
  EXPECT_LT(worst(windowed::window_sums(rough, 5)), 1e-6);
  const Tensor ones = at::ones({1, length, 1, 1}, at::kFloat), flat = rough.flatten(2).unsqueeze(-1);
  const windowed::Sums sums{flat.unsqueeze(-1), flat, at::zeros_like(ones)};
  EXPECT_LT(worst(windowed::window_sums(sums, 5, 0).kv), 1e-6);
}

// Where all keys of a window are masked, 0 / 1e-6: gradients of a million, which the running totals cancel in
// the keys before only up to rounding.
TEST_F(Fault, MaskedWindowsLeaveAResidue) {
  KernelAttentionOptions o = open_options("relu", 2, 4, true);
  o.use_causal_windowed = true;
  o.causal_window_length = 2;
  const Tensor x = random({1, 60, 8}, 3), weights = random({1, 60, 8});
  KernelAttentionInputs inputs = self_inputs(x, x, x);
  inputs.attention_mask = at::ones({1, 60}, at::kDouble);
  inputs.attention_mask->slice(1, 30).fill_(0);
  const auto residue = [&](bool compatible) {
    o.compatible = compatible;
    inputs.value = x.clone().set_requires_grad(true);
    (open_layer(o)(inputs) * weights).slice(1, 32).sum().backward();
    return inputs.value.grad().abs().max().item<double>();
  };
  EXPECT_GT(residue(true), 0);
  EXPECT_EQ(residue(false), 0);
}

TEST_F(Fault, LeftPaddingMovesOutputs) {
  const Tensor x = random({1, 10, 4});
  const auto result = [&](bool compatible) {
    KernelAttentionOptions o = open_options("elu", 1, 4, compatible);
    o.use_causal_windowed = true;
    o.causal_chunk_length = 4;
    o.causal_window_length = 2;
    o.causal_padding = "left";
    return open_layer(o)(self_inputs(x, x, x));
  };
  const Tensor theirs = result(true), ours = result(false);
  EXPECT_EQ(theirs.slice(1, 0, 2).abs().max().item<double>(), 0);
  EXPECT_TRUE(at::allclose(theirs.slice(1, 2), ours.slice(1, 0, 8), 1e-5));
  EXPECT_GT(ours.slice(1, 8).abs().max().item<double>(), 0.1);
}

TEST_F(Fault, BeginKernelKnowsNeitherWindowsNorRedraw) {
  const Tensor x = random({1, 8, 4});
  KernelAttentionOptions o = open_options("exp", 1, 4, true);
  o.num_random_features = 12;
  o.redraw = true;
  o.begin_kernel = 3;
  KernelAttention theirs = open_layer(o);
  KernelAttentionInputs training = self_inputs(x, x, x);
  training.training = true;
  EXPECT_TRUE(at::equal(theirs(training), theirs(training)));  // no draw
  o.use_causal_windowed = true;
  EXPECT_THROW(open_layer(o)(self_inputs(x, x, x)), UsageError);
  o.compatible = false;
  KernelAttention ours = open_layer(o);
  const Tensor before = ours(self_inputs(x, x, x));
  ours->redraw(1);
  const Tensor after = ours(self_inputs(x, x, x));
  EXPECT_TRUE(at::equal(before.slice(1, 0, 3), after.slice(1, 0, 3)));  // softmax needs no projection
  EXPECT_FALSE(at::allclose(before.slice(1, 3), after.slice(1, 3)));
}

// The softmax part projects: its scores are noisy estimates of the products.
TEST_F(Fault, BeginKernelSoftmaxIsProjected) {
  const Tensor x = random({1, 6, 4});
  const Tensor exact = at::matmul((at::einsum("btd,bsd->bts", {x, x}) / 2).softmax(-1), x);  // 4^(-1/2)
  const auto far = [&](bool compatible) {
    KernelAttentionOptions o = open_options("exp", 1, 4, compatible);
    o.num_random_features = 12;
    o.begin_kernel = 6;
    return (open_layer(o)(self_inputs(x, x, x)) - exact).abs().max().item<double>();
  };
  EXPECT_GT(far(true), 1e-2);
  EXPECT_LT(far(false), 1e-12);
}

TEST_F(Fault, MasksMustBeFloats) {
  const Tensor x = random({1, 6, 4});
  KernelAttentionInputs inputs = self_inputs(x, x, x);
  inputs.attention_mask = at::ones({1, 6}, at::kBool);
  EXPECT_THROW(open_layer(open_options("elu", 1, 4, true))(inputs), UsageError);
  EXPECT_NO_THROW(open_layer(open_options("elu", 1, 4, false))(inputs));
  inputs.attention_mask = at::full({1, 6}, -0.5, at::kDouble);
  EXPECT_THROW(open_layer(open_options("elu", 1, 4, false))(inputs), UsageError);
}

// Without decay the reference cannot stream; with it nothing is ever dropped, whatever the window.
TEST_F(Fault, StreamsHaveNoWindow) {
  const Tensor x = random({1, 8, 4});
  const auto last_row = [&](bool compatible, double factor) {
    KernelAttentionOptions o = open_options("elu", 1, 4, compatible);
    o.use_causal_windowed = true;
    o.causal_window_length = 3;
    o.causal_window_decay = 1;
    KernelAttention layer = open_layer(o);
    Tensor y = x.clone();
    y.slice(1, 0, 3).mul_(factor);
    KernelCache cache;
    Tensor row;
    for (int64_t t = 0; t < 8; ++t) {
      KernelAttentionInputs next = self_inputs(y.narrow(1, t, 1), y.narrow(1, t, 1), y.narrow(1, t, 1));
      next.cache = &cache;
      row = layer(next);
    }
    return row;
  };
  EXPECT_FALSE(at::allclose(last_row(true, 1), last_row(true, 5)));
  EXPECT_TRUE(at::equal(last_row(false, 1), last_row(false, 5)));
}

// In compatible mode only directions change, on every training call, and never what inference uses.
TEST_F(Fault, RedrawKeepsRowNormsAndInferenceNeverSeesIt) {
  const Tensor x = random({1, 6, 4});
  KernelAttentionOptions o = open_options("exp", 1, 4, true);
  o.num_random_features = 12;
  o.redraw = true;
  KernelAttention theirs = open_layer(o);
  KernelAttentionInputs call = self_inputs(x, x, x);
  const Tensor still = theirs(call), fixed = theirs->projection().clone();
  call.training = true;
  const Tensor first = theirs(call), second = theirs(call);
  EXPECT_FALSE(at::allclose(first, second));
  EXPECT_TRUE(at::equal(theirs->projection(), fixed));
  theirs->redraw(0);
  EXPECT_TRUE(at::equal(theirs(call), first));
  call.training = false;
  EXPECT_TRUE(at::equal(theirs(call), still));

  o.compatible = false;
  KernelAttention ours = open_layer(o);
  call.training = true;
  EXPECT_TRUE(at::equal(ours(call), ours(call)));
  const Tensor draw0 = ours->projection().clone(), with0 = ours(call);
  ours->redraw(1);
  EXPECT_FALSE(at::allclose(ours->projection().square().sum(-1), draw0.square().sum(-1)));
  call.training = false;
  EXPECT_FALSE(at::allclose(ours(call), with0));  // inference uses the draw trained with
  ours->redraw(0);
  EXPECT_TRUE(at::equal(ours->projection(), draw0));
}

TEST_F(Fault, LayersAndHeadsShareOneProjection) {
  KernelAttentionOptions o = open_options("exp", 2, 4, true);
  o.num_random_features = 12;
  const Tensor theirs = KernelAttention(o)->projection();
  EXPECT_EQ(theirs.dim(), 2);
  o.layer = 1;
  EXPECT_TRUE(at::equal(KernelAttention(o)->projection(), theirs));
  o.compatible = false;
  const Tensor one = KernelAttention(o)->projection();
  EXPECT_FALSE(at::allclose(one[0], one[1]));
  o.layer = 2;
  EXPECT_FALSE(at::allclose(KernelAttention(o)->projection(), one));
}

// Keras takes the heads of [width, H, D] for a receptive field, so its weights start smaller.
TEST_F(Fault, GlorotCountsHeadsTwice) {
  const auto largest = [](bool compatible) {
    KernelAttentionOptions o = open_options("elu", 8, 16, compatible);
    return KernelAttention(o)->named_parameters()["query.kernel"].abs().max().item<double>();
  };
  EXPECT_NEAR(largest(false), std::sqrt(6.0 / (128 + 128)), 1e-3);
  EXPECT_NEAR(largest(true), std::sqrt(6.0 / (128 * 8 + 128 * 16)), 1e-3);
}

// Decay of element-wise features over thousands of masked tokens.
TEST_F(Fault, DecayDoesNotUnderflow) {
  KernelAttentionOptions o = open_options("elu", 1, 4, false);
  o.use_causal_windowed = true;
  o.causal_window_length = 0;
  o.causal_window_decay = 0.5;
  const Tensor x = random({1, 3000, 4}, 1, at::kFloat);
  KernelAttentionInputs inputs = self_inputs(x, x, x);
  inputs.attention_mask = at::zeros({1, 3000}, at::kBool).index_fill(1, at::tensor({0}, at::kLong), true);
  const Tensor out = open_layer(o, at::kFloat)(inputs);
  EXPECT_TRUE(at::allclose(out, x.narrow(1, 0, 1).expand_as(out), 1e-4));
}

}  // namespace
}  // namespace faults
}  // namespace performer::nn::kernel_attention_test
