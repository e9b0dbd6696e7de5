// SPDX-License-Identifier: Apache-2.0
// Attention chunk by chunk, states handed on, against one call over everything; blocks likewise, dropout
// included.
#include "performer/nn/chunk_attention.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "performer/base/error.h"
#include "performer/nn/block.h"

namespace performer::nn {
namespace {

struct ChunkVariant {
  std::string kind, projection;
};

class ChunkAttention : public ::testing::TestWithParam<ChunkVariant> {
 protected:
  static ModelConfig model() {
    ModelConfig model;
    model.width = 24;
    model.heads = 3;
    model.head_size = 10;
    model.ffn = 20;
    return model;
  }
  static AttentionConfig attention() {
    AttentionConfig attention;
    attention.kind = GetParam().kind;
    attention.set("projection", GetParam().projection);
    attention.set("features", 20);
    return attention;
  }
  static MultiHeadAttention layer() {
    torch::manual_seed(1);
    MultiHeadAttention layer(model(), attention(), 0);
    layer->to(at::kDouble);
    return layer;
  }
};

at::Tensor normal(at::IntArrayRef shape) {
  return at::randn(shape, at::kDouble);
}

void expect_near(const at::Tensor& got, const at::Tensor& expected, const std::string& what) {
  ASSERT_EQ(got.sizes(), expected.sizes()) << what;
  if (got.numel() == 0) return;
  const double worst = (got - expected).abs().max().item<double>();
  EXPECT_LE(worst, 1e-12 * (1 + expected.abs().max().item<double>())) << what;
}

SequenceBatch slice(const SequenceBatch& batch, int64_t begin, int64_t size) {
  SequenceBatch part;
  part.positions = batch.positions.narrow(1, begin, size);
  if (batch.key_mask) part.key_mask = batch.key_mask->narrow(1, begin, size);
  return part;
}

TEST_P(ChunkAttention, RowsWithHolesGoOnFromTheirStates) {
  MultiHeadAttention attention = layer();
  const at::Tensor x = normal({2, 33, 24});
  SequenceBatch batch;
  batch.positions = at::arange(33).expand({2, 33});
  batch.key_mask = at::ones({2, 33}, at::kBool);
  batch.key_mask->index_put_({1, at::indexing::Slice(9, at::indexing::None)},
                             false);                                   // later chunks: nothing
  batch.key_mask->index_put_({0, at::indexing::Slice(0, 14)}, false);  // first chunks: nothing
  const at::Tensor whole = attention(x, batch);
  for (const int64_t size : {1, 5, 8, 32, 33}) {
    ops::State state;
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0; begin < 33; begin += size) {
      const int64_t length = std::min(size, 33 - begin);
      ops::State next;
      parts.push_back(attention->forward_chunk(x.narrow(1, begin, length), slice(batch, begin, length), state,
                                               begin + length < 33 ? &next : nullptr));
      state = next;
    }
    EXPECT_FALSE(state.defined()) << "none was asked for";
    expect_near(at::cat(parts, 1), whole, fmt::format("chunks of {}", size));
  }
}

// Cuts at 8: the segments 0-5, an empty one, 5-6 and 6-20, the last of which goes on.
TEST_P(ChunkAttention, OnlyTheSegmentAtTheCutGoesOn) {
  MultiHeadAttention attention = layer();
  const std::vector<int64_t> bounds = {0, 5, 5, 6, 20, 20, 23};
  const at::Tensor x = normal({1, 23, 24});
  SequenceBatch batch;
  std::vector<at::Tensor> positions;
  for (size_t i = 0; i + 1 < bounds.size(); ++i) positions.push_back(at::arange(bounds[i + 1] - bounds[i]));
  batch.positions = at::cat(positions).unsqueeze(0);
  batch.cu_seqlens = at::tensor(bounds, at::kLong);
  const at::Tensor whole = attention(x, batch);

  SequenceBatch first = slice(batch, 0, 8), second = slice(batch, 8, 15);
  first.cu_seqlens = at::tensor({0, 5, 5, 6, 8}, at::kLong);
  second.cu_seqlens = at::tensor({0, 12, 12, 15}, at::kLong);
  ops::State state, last;
  const at::Tensor before = attention->forward_chunk(x.narrow(1, 0, 8), first, {}, &state);
  ASSERT_EQ(state.kv.size(0), 1) << "segments that end in the chunk leave no state";
  const at::Tensor after = attention->forward_chunk(x.narrow(1, 8, 15), second, state, &last);
  expect_near(at::cat({before, after}, 1), whole, "outputs");

  SequenceBatch alone = slice(batch, 20, 3);
  ops::State fresh;
  attention->forward_chunk(x.narrow(1, 20, 3), alone, {}, &fresh);
  expect_near(last.kv, fresh.kv, "the state is the last segment's");
  expect_near(last.key_sum, fresh.key_sum, "the state is the last segment's");
}

TEST_P(ChunkAttention, GradientsFlowThroughTheState) {
  MultiHeadAttention attention = layer();
  const at::Tensor x = normal({2, 12, 24}).requires_grad_();
  const at::Tensor weight = normal({2, 12, 24});
  SequenceBatch batch;
  batch.positions = at::arange(12).expand({2, 12});
  const at::Tensor expected = torch::autograd::grad({(attention(x, batch) * weight).sum()}, {x})[0];
  ops::State state;
  const at::Tensor before = attention->forward_chunk(x.narrow(1, 0, 7), slice(batch, 0, 7), {}, &state);
  const at::Tensor after = attention->forward_chunk(x.narrow(1, 7, 5), slice(batch, 7, 5), state, nullptr);
  const at::Tensor got = torch::autograd::grad({(at::cat({before, after}, 1) * weight).sum()}, {x})[0];
  expect_near(got, expected, "gradient of x");
}

TEST_P(ChunkAttention, BlocksDropTheSameElements) {
  for (const char* norm : {"pre", "post"}) {
    torch::manual_seed(2);
    ModelConfig with = model();
    with.norm = norm;
    with.dropout = 0.5;
    Block block(with, attention(), 0);
    const at::Tensor x = at::randn({2, 21, 24});
    SequenceBatch batch;
    batch.positions = at::arange(21).expand({2, 21});
    torch::manual_seed(9);
    const at::Tensor whole = block(x, batch);
    ops::State state;
    torch::manual_seed(9);
    const at::Tensor before =
        block->forward_chunk(x.narrow(1, 0, 13), slice(batch, 0, 13), {0, 21}, {}, &state);
    torch::manual_seed(9);
    const at::Tensor after =
        block->forward_chunk(x.narrow(1, 13, 8), slice(batch, 13, 8), {13, 21}, state, nullptr);
    EXPECT_TRUE(at::allclose(at::cat({before, after}, 1), whole, 1e-4, 1e-4)) << norm;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, ChunkAttention,
                         ::testing::Values(ChunkVariant{"favor-softmax", "auto"},
                                           ChunkVariant{"favor-relu", "none"},
                                           ChunkVariant{"favor-relu", "orthogonal"}),
                         [](const auto& info) {
                           std::string name = info.param.kind + "_" + info.param.projection;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(ChunkAttentionErrors, RefusesWhatLeavesNoState) {
  const auto message = [](const std::string& kind, const std::string& objective) -> std::string {
    ModelConfig model;
    model.width = 8;
    model.heads = 2;
    model.objective = objective;
    AttentionConfig attention;
    attention.kind = kind;
    MultiHeadAttention layer(model, attention, 0);
    SequenceBatch batch;
    batch.positions = at::arange(3).unsqueeze(0);
    try {
      layer->forward_chunk(at::ones({1, 3, 8}), batch, {}, nullptr);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "";
  };
  using ::testing::HasSubstr;
  EXPECT_EQ(message("favor-relu", "causal"), "");
  EXPECT_THAT(message("exact", "causal"), HasSubstr("attention.kind = exact"));
  EXPECT_THAT(message("identity", "causal"), HasSubstr("attention.kind = identity"));
  EXPECT_THAT(message("favor-relu", "masked"), HasSubstr("model.objective = masked"));
}

}  // namespace
}  // namespace performer::nn
