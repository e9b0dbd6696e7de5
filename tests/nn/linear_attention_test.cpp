// SPDX-License-Identifier: Apache-2.0
// Every kind of linear attention that a configuration can name: the same promises for all of ours, and what
// the presets promise.
#include "performer/nn/linear_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <algorithm>
#include <string>
#include <vector>

#include "performer/base/error.h"
#include "performer/references/presets.h"
#include "performer/nn/attention.h"

namespace performer::nn {
namespace {

constexpr int64_t kHeads = 2, kHeadSize = 6;

std::vector<std::string> kinds_where(bool (*wanted)(const AttentionConfig&)) {
  std::vector<std::string> names;
  for (const std::string& kind : attention_kinds()) {
    AttentionConfig attention;
    attention.kind = kind;
    if (wanted(attention)) names.push_back(kind);
  }
  return names;
}

LinearAttention make(const std::string& kind, bool causal) {
  AttentionConfig attention;
  attention.kind = kind;
  attention.features = 12;
  attention.seed = 5;
  return LinearAttention(attention, kHeads, kHeadSize, causal, 1);
}

// Features of some maps have any sign, and a denominator near 0 makes any rounding large.
bool may_divide_by_little(const std::string& kind) {
  AttentionConfig attention;
  attention.kind = kind;
  return is_favor(attention) && ops::feature_map_traits(map_name(attention)).signed_features;
}

struct Input {
  at::Tensor query, key, value;
};

Input random_input(int64_t batch, int64_t length) {
  const auto draw = [&] { return 0.7 * at::randn({batch, length, kHeads, kHeadSize}); };
  return {draw(), draw(), draw()};
}

at::Tensor run(LinearAttention& layer, const Input& in, const SequenceBatch& batch) {
  return layer->forward(in.query, in.key, in.value, batch);
}

Input slice(const Input& in, int64_t begin, int64_t length) {
  return {in.query.narrow(1, begin, length), in.key.narrow(1, begin, length),
          in.value.narrow(1, begin, length)};
}

std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& letter : name) {
    if (!std::isalnum(static_cast<unsigned char>(letter))) letter = '_';
  }
  return name;
}

class OwnKinds : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { torch::manual_seed(11); }
  // Frozen moments that a causal model has after some steps of training.
  static LinearAttention trained_causal(const std::string& kind) {
    LinearAttention layer = make(kind, true);
    layer->train();
    const at::NoGradGuard no_grad;
    run(layer, random_input(2, 20), {});
    layer->update_statistics();
    layer->eval();
    return layer;
  }
  double tolerance() const { return may_divide_by_little(GetParam()) ? 5e-2 : 2e-4; }
};

TEST_P(OwnKinds, PrefixDoesNotSeeTheFuture) {
  LinearAttention layer = trained_causal(GetParam());
  const at::NoGradGuard no_grad;
  Input in = random_input(1, 30);
  const at::Tensor before = run(layer, slice(in, 0, 17), {});
  in.key.narrow(1, 17, 13).mul_(50);
  in.value.narrow(1, 17, 13).fill_(1e4);
  const at::Tensor after = run(layer, in, {}).narrow(1, 0, 17);
  EXPECT_TRUE(at::allclose(before, after, tolerance(), tolerance())) << (before - after).abs().max();
}

TEST_P(OwnKinds, PackedEqualsPaddedAndAlone) {
  for (const bool causal : {true, false}) {
    LinearAttention layer = causal ? trained_causal(GetParam()) : make(GetParam(), false);
    layer->eval();
    const at::NoGradGuard no_grad;
    const std::vector<int64_t> lengths = {7, 12, 1};
    const Input in = random_input(1, 20);
    SequenceBatch packed;
    packed.cu_seqlens = at::tensor({0, 7, 19, 20}, at::kLong);
    const at::Tensor together = run(layer, in, packed);
    int64_t begin = 0;
    Input padded = {at::full({3, 12, kHeads, kHeadSize}, 9.0), at::full({3, 12, kHeads, kHeadSize}, 9.0),
                    at::full({3, 12, kHeads, kHeadSize}, 9.0)};
    SequenceBatch masked;
    masked.key_mask = at::zeros({3, 12}, at::kBool);
    for (int64_t n = 0; n < 3; ++n) {
      const Input alone = slice(in, begin, lengths[n]);
      const at::Tensor expected = run(layer, alone, {});
      const at::Tensor found = together.narrow(1, begin, lengths[n]);
      EXPECT_TRUE(at::allclose(found, expected, tolerance(), tolerance()))
          << "segment " << n << " causal " << causal << " " << (found - expected).abs().max();
      padded.query[n].narrow(0, 0, lengths[n]).copy_(alone.query[0]);
      padded.key[n].narrow(0, 0, lengths[n]).copy_(alone.key[0]);
      padded.value[n].narrow(0, 0, lengths[n]).copy_(alone.value[0]);
      masked.key_mask->select(0, n).narrow(0, 0, lengths[n]).fill_(true);
      begin += lengths[n];
    }
    const at::Tensor rows = run(layer, padded, masked);
    begin = 0;
    for (int64_t n = 0; n < 3; ++n) {
      const at::Tensor found = rows[n].narrow(0, 0, lengths[n]),
                       expected = together[0].narrow(0, begin, lengths[n]);
      EXPECT_TRUE(at::allclose(found, expected, tolerance(), tolerance()))
          << "row " << n << " causal " << causal << " " << (found - expected).abs().max();
      begin += lengths[n];
    }
  }
}

TEST_P(OwnKinds, StepsEqualOnePass) {
  LinearAttention layer = trained_causal(GetParam());
  const at::NoGradGuard no_grad;
  const Input in = random_input(2, 9);
  const at::Tensor full = run(layer, in, {});
  ops::State state;
  for (int64_t t = 0; t < 9; ++t) {
    const at::Tensor y =
        layer->step(in.query.select(1, t), in.key.select(1, t), in.value.select(1, t), state);
    EXPECT_TRUE(at::allclose(y, full.select(1, t), tolerance(), tolerance()))
        << "token " << t << " " << (y - full.select(1, t)).abs().max();
  }
}

TEST_P(OwnKinds, GradientsReachInputsAndLearnedParts) {
  LinearAttention layer = make(GetParam(), false);
  Input in = random_input(1, 8);
  for (at::Tensor* x : {&in.query, &in.key, &in.value}) x->set_requires_grad(true);
  run(layer, in, {}).square().sum().backward();
  for (const at::Tensor& x : {in.query, in.key, in.value}) {
    ASSERT_TRUE(x.grad().defined());
    EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
    EXPECT_GT(x.grad().abs().max().item<double>(), 0);
  }
  for (const auto& item : layer->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_GT(item.value().grad().abs().max().item<double>(), 0) << item.key();
  }
}

TEST_P(OwnKinds, RedrawsAreNamed) {
  LinearAttention layer = make(GetParam(), true), other = make(GetParam(), true);
  layer->redraw(3);
  const auto buffers = layer->named_buffers();
  if (const at::Tensor* projection = buffers.find("projection")) {
    EXPECT_FALSE(at::equal(*projection, other->named_buffers()["projection"]));
    other->redraw(3);
    EXPECT_TRUE(at::equal(*projection, other->named_buffers()["projection"]));
  }
}

INSTANTIATE_TEST_SUITE_P(All, OwnKinds, ::testing::ValuesIn(kinds_where(&is_favor)), test_name);

class PresetKinds : public ::testing::TestWithParam<std::string> {};

TEST_P(PresetKinds, RunsInALayerPackedAsAlone) {
  torch::manual_seed(3);
  const references::PresetTraits& traits = references::preset_traits(GetParam());
  for (const bool causal : {true, false}) {
    if (!(causal ? traits.causal : traits.bidirectional)) {
      EXPECT_THROW(make(GetParam(), causal), UsageError);
      continue;
    }
    LinearAttention layer = make(GetParam(), causal);
    const Input in = random_input(1, 15);
    SequenceBatch packed;
    packed.cu_seqlens = at::tensor({0, 6, 6, 15}, at::kLong);
    const at::Tensor together = run(layer, in, packed);
    const at::Tensor alone = at::cat({run(layer, slice(in, 0, 6), {}), run(layer, slice(in, 6, 9), {})}, 1);
    EXPECT_TRUE(at::allclose(together, alone, 1e-4, 1e-5));
    EXPECT_TRUE(together.isfinite().all().item<bool>());
  }
}

TEST_P(PresetKinds, SaysThatItCannotStream) {
  if (!references::preset_traits(GetParam()).causal) GTEST_SKIP() << "has no causal form";
  LinearAttention layer = make(GetParam(), true);
  ops::State state;
  const at::Tensor row = at::zeros({1, kHeads, kHeadSize});
  try {
    layer->step(row, row, row, state);
    FAIL() << "stepped";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find(GetParam()), std::string::npos) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(All, PresetKinds, ::testing::ValuesIn(kinds_where(&is_preset)), test_name);

TEST(LinearAttention, MomentsMoveAtStepBoundariesOnly) {
  torch::manual_seed(2);
  LinearAttention layer = make("favor-oprf", true);
  const at::Tensor moment = layer->named_buffers()["key_moment"];
  const Input in = random_input(2, 10);
  run(layer, in, {});
  EXPECT_EQ(moment.count_nonzero().item<int64_t>(), 0) << "moved within a step";
  layer->update_statistics();
  const at::Tensor first = moment.clone();
  EXPECT_GT(first.count_nonzero().item<int64_t>(), 0);
  layer->update_statistics();  // no batch in between
  EXPECT_TRUE(at::equal(first, moment));
  layer->eval();
  run(layer, random_input(2, 10), {});
  layer->update_statistics();
  EXPECT_TRUE(at::equal(first, moment)) << "evaluation moved the moments";
  layer->train();
  const Input other = random_input(2, 10);
  run(layer, other, {});
  layer->update_statistics();
  EXPECT_FALSE(at::equal(first, moment));
  EXPECT_TRUE(at::allclose(first, moment, 0.1, 0.02)) << "the old moments must weigh 0.99";
}

}  // namespace
}  // namespace performer::nn
