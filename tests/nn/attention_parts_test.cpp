// SPDX-License-Identifier: Apache-2.0
// Local heads, exact attention for the first queries, and cross-attention: each against layers or formulas
// that have only one of them.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "performer/base/error.h"
#include "performer/nn/attention.h"
#include "performer/nn/block.h"
#include "tests/errors.h"

namespace performer::nn {
namespace {

using ::testing::HasSubstr;

ModelConfig small(bool causal) {
  ModelConfig model;
  model.width = 24;
  model.heads = 3;
  model.head_size = 8;
  model.objective = causal ? "causal" : "masked";
  return model;
}

MultiHeadAttention layer_of(const ModelConfig& model, const AttentionConfig& attention,
                            AttentionRole role = AttentionRole::self) {
  torch::manual_seed(4);
  MultiHeadAttention layer(model, attention, 0, role);
  layer->to(at::kDouble);
  return layer;
}

void copy_weights(MultiHeadAttention& to, const MultiHeadAttention& from) {
  const at::NoGradGuard no_grad;
  auto targets = to->named_parameters();
  for (const auto& item : from->named_parameters()) targets[item.key()].copy_(item.value());
}

SequenceBatch rows(int64_t batch, int64_t length) {
  SequenceBatch made;
  made.positions = at::arange(length).expand({batch, length});
  return made;
}

SequenceBatch packed(const std::vector<int64_t>& bounds) {
  SequenceBatch made;
  std::vector<at::Tensor> positions;
  for (size_t i = 0; i + 1 < bounds.size(); ++i) positions.push_back(at::arange(bounds[i + 1] - bounds[i]));
  made.positions = at::cat(positions).unsqueeze(0);
  made.cu_seqlens = at::tensor(bounds, at::kLong);
  return made;
}

// The output projection removed, so that heads can be told apart.
void show_heads(MultiHeadAttention& layer) {
  const at::NoGradGuard no_grad;
  layer->named_parameters()["out.weight"].copy_(at::eye(24));
}

TEST(LocalHeads, AreTheLastOnesAndSeeTheirWindows) {
  for (const bool causal : {true, false}) {
    AttentionConfig mixed;
    mixed.kind = "favor-relu";
    mixed.local_heads = 1;
    mixed.local_window = 4;
    AttentionConfig global, local;
    local.kind = "local";
    local.set("window", 4);
    MultiHeadAttention both = layer_of(small(causal), mixed), far = layer_of(small(causal), global),
                       near = layer_of(small(causal), local);
    copy_weights(far, both);
    copy_weights(near, both);
    for (MultiHeadAttention* layer : {&both, &far, &near}) show_heads(*layer);
    const at::NoGradGuard no_grad;
    const at::Tensor x = at::randn({1, 23, 24}, at::kDouble);
    for (const SequenceBatch& batch : {rows(1, 23), packed({0, 9, 9, 23})}) {
      const at::Tensor y = both(x, batch);
      EXPECT_TRUE(at::allclose(y.narrow(2, 0, 16), far(x, batch).narrow(2, 0, 16))) << causal;
      EXPECT_TRUE(at::allclose(y.narrow(2, 16, 8), near(x, batch).narrow(2, 16, 8))) << causal;
    }
  }
}

TEST(BeginKernel, FirstQueriesUseExactAttention) {
  for (const bool causal : {true, false}) {
    AttentionConfig begin;
    begin.kind = "favor-softmax";
    begin.begin_kernel = 5;
    AttentionConfig never = begin, exact;
    never.begin_kernel = 0;
    exact.kind = "exact";
    MultiHeadAttention both = layer_of(small(causal), begin), late = layer_of(small(causal), never),
                       first = layer_of(small(causal), exact);
    copy_weights(late, both);
    copy_weights(first, both);
    const at::NoGradGuard no_grad;
    const at::Tensor x = at::randn({2, 17, 24}, at::kDouble);
    SequenceBatch masked = rows(2, 17);
    masked.key_mask = at::ones({2, 17}, at::kBool);
    masked.key_mask->narrow(1, 12, 5).select(0, 1).fill_(false);
    for (const SequenceBatch& batch : {rows(2, 17), masked}) {
      const at::Tensor y = both(x, batch);
      EXPECT_TRUE(at::allclose(y.narrow(1, 0, 5), first(x, batch).narrow(1, 0, 5))) << causal;
      EXPECT_TRUE(at::allclose(y.narrow(1, 5, 12), late(x, batch).narrow(1, 5, 12))) << causal;
    }
    const at::Tensor segments = x.narrow(0, 0, 1);
    const SequenceBatch side_by_side = packed({0, 3, 3, 17});
    const at::Tensor y = both(segments, side_by_side), e = first(segments, side_by_side),
                     l = late(segments, side_by_side);
    EXPECT_TRUE(at::allclose(y.narrow(1, 0, 8), e.narrow(1, 0, 8))) << "3 and the first 5 of 14";
    EXPECT_TRUE(at::allclose(y.narrow(1, 8, 9), l.narrow(1, 8, 9)));
  }
}

class StreamedParts : public ::testing::TestWithParam<std::string> {};

TEST_P(StreamedParts, StepsEqualOnePass) {
  AttentionConfig attention;
  attention.kind = GetParam();
  attention.local_heads = 1;
  attention.local_window = 4;
  attention.begin_kernel = 6;
  MultiHeadAttention layer = layer_of(small(true), attention);
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({2, 20, 24}, at::kDouble);
  const at::Tensor full = layer(x, rows(2, 20));
  std::unique_ptr<Cache> cache = layer->begin(2);
  for (int64_t t = 0; t < 20; ++t) {
    if (t == 3 || t == 9) cache = cache->select(at::tensor({0, 1}, at::kLong));
    const at::Tensor y = layer->step(x.select(1, t), at::full({2}, t, at::kLong), *cache);
    EXPECT_TRUE(at::allclose(y, full.select(1, t), 1e-6, 1e-8)) << "token " << t;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, StreamedParts, ::testing::Values("favor-softmax", "favor-relu", "exact"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(CrossAttention, IsTheFormulaOverTheContext) {
  AttentionConfig exact;
  exact.kind = "exact";
  MultiHeadAttention layer = layer_of(small(true), exact, AttentionRole::cross);
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({2, 5, 24}, at::kDouble), context = at::randn({2, 9, 24}, at::kDouble);
  SequenceBatch seen = rows(2, 9);
  seen.key_mask = at::ones({2, 9}, at::kBool);
  seen.key_mask->select(0, 1).narrow(0, 4, 5).fill_(false);
  auto weights = layer->named_parameters();
  const auto heads = [&](const char* name, const at::Tensor& from) {
    return at::matmul(from, weights[std::string(name) + ".weight"].t()).unflatten(-1, {3, 8});
  };
  at::Tensor scores =
      at::einsum("bthd,bshd->bhts", {heads("query", x), heads("key", context)}) / std::sqrt(8.0);
  scores = scores.masked_fill(seen.key_mask->logical_not().unsqueeze(1).unsqueeze(1),
                              -std::numeric_limits<double>::infinity());
  const at::Tensor mixed = at::einsum("bhts,bshd->bthd", {scores.softmax(-1), heads("value", context)});
  const at::Tensor expected = at::matmul(mixed.flatten(-2), weights["out.weight"].t());
  EXPECT_TRUE(at::allclose(layer->attend_to(x, rows(2, 5), context, seen), expected));
  EXPECT_TRUE(at::allclose(layer->read(x, *layer->begin_cross(context, seen)), expected));
}

TEST(CrossAttention, NeedsAKindThatHasIt) {
  AttentionConfig identity;
  identity.kind = "identity";
  EXPECT_THAT(test::error_of<UsageError>([&] { layer_of(small(true), identity, AttentionRole::cross); }),
              HasSubstr("attention.kind = identity has no cross-attention"));
}

TEST(Block, PutsCrossAttentionBetweenItsParts) {
  torch::manual_seed(1);
  const ModelConfig model = small(true);
  Block block(model, AttentionConfig{}, 0, /*cross=*/true);
  block->eval();
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({2, 7, 24});
  const Context context{at::randn({2, 4, 24}), rows(2, 4)};
  const at::Tensor full = block(x, rows(2, 7), &context);
  auto children = block->named_children();
  const auto norm = [&](const char* name, const at::Tensor& y) {
    return children[name]->as<Norm>()->forward(y);
  };
  at::Tensor y =
      x + children["attention"]->as<MultiHeadAttention>()->forward(norm("attention_norm", x), rows(2, 7));
  y = y + children["cross_attention"]->as<MultiHeadAttention>()->attend_to(norm("cross_norm", y), rows(2, 7),
                                                                           context.encoded, context.batch);
  const auto dense = [&](const char* name, const at::Tensor& z) {
    return children[name]->as<torch::nn::Linear>()->forward(z);
  };
  y = y + dense("down", at::gelu(dense("up", norm("ffn_norm", y)), "tanh"));
  EXPECT_TRUE(at::allclose(full, y, 1e-5, 1e-6));
  BlockCache cache = block->begin(2, &context);
  for (int64_t t = 0; t < 7; ++t) {
    if (t == 4) cache = cache.select(at::tensor({0, 1}, at::kLong));
    const at::Tensor step = block->step(x.select(1, t), at::full({2}, t, at::kLong), cache);
    EXPECT_TRUE(at::allclose(step, full.select(1, t), 1e-4, 1e-5)) << t;
  }
}

}  // namespace
}  // namespace performer::nn
