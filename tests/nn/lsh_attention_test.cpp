// SPDX-License-Identifier: Apache-2.0
// The kind `lsh` against plain loops: buckets, what they let a token see, and dense attention to that.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <set>

#include "performer/base/error.h"
#include "performer/nn/attention.h"
#include "tests/errors.h"
#include "tests/nn/dense_attention.h"

namespace performer::nn::lsh_attention_test {
namespace {

using properties::Tokens;
using ::testing::HasSubstr;

constexpr int64_t kHeads = 2, kSize = 5;

AttentionConfig lsh(int64_t rounds, int64_t buckets, int64_t chunk) {
  AttentionConfig config;
  config.kind = "lsh";
  config.seed = 7;
  config.set("rounds", rounds).set("buckets", buckets).set("chunk", chunk);
  return config;
}

std::shared_ptr<Attention> make(const AttentionConfig& config, bool causal) {
  auto made = make_attention(config, {kHeads, kSize, causal, 2});
  made->to(at::kDouble);
  return made;
}

// The bucket of each token in one round: the largest of the rotated coordinates and their negatives.
std::vector<int64_t> buckets_of(const at::Tensor& query, const at::Tensor& rotations) {
  std::vector<int64_t> buckets;
  const int64_t half = rotations.size(0);
  const at::Tensor rotated = at::mm(query, rotations.t());
  const auto coordinates = rotated.accessor<double, 2>();
  for (int64_t t = 0; t < query.size(0); ++t) {
    double largest = -1e300;
    int64_t bucket = 0;
    for (int64_t n = 0; n < 2 * half; ++n) {
      const double x = n < half ? coordinates[t][n] : -coordinates[t][n - half];
      if (x > largest) largest = x, bucket = n;
    }
    buckets.push_back(bucket);
  }
  return buckets;
}

struct Sizes {
  int64_t rounds, buckets, chunk;
  bool causal;
};

// Bool [T, T] for one head of one sequence; `kept` says which tokens exist.
at::Tensor seen_pairs(const at::Tensor& query, const at::Tensor& rotations, const std::vector<bool>& kept,
                      const Sizes& sizes) {
  const int64_t tokens = query.size(0), half = sizes.buckets / 2;
  at::Tensor seen = at::zeros({tokens, tokens}, at::kBool);
  auto entries = seen.accessor<bool, 2>();
  for (int64_t round = 0; round < sizes.rounds; ++round) {
    const std::vector<int64_t> buckets = buckets_of(query, rotations.narrow(0, round * half, half));
    for (int64_t i = 0; i < tokens; ++i) {
      for (const int64_t way : {-1, 1}) {
        if (!kept[static_cast<size_t>(i)] || (way > 0 && sizes.causal)) continue;
        int64_t found = 0;
        for (int64_t j = i + way; j >= 0 && j < tokens && found < sizes.chunk; j += way) {
          if (!kept[static_cast<size_t>(j)] ||
              buckets[static_cast<size_t>(j)] != buckets[static_cast<size_t>(i)])
            continue;
          entries[i][j] = true;
          ++found;
        }
      }
    }
  }
  return seen;
}

// One head of one sequence: softmax over the unit vectors of the tokens seen, or the own value.
at::Tensor dense_head(const at::Tensor& query, const at::Tensor& value, const at::Tensor& rotations,
                      const std::vector<bool>& kept, const Sizes& sizes) {
  at::Tensor seen = seen_pairs(query.detach(), rotations, kept, sizes);
  for (int64_t i = 0; i < query.size(0); ++i) {
    if (kept[static_cast<size_t>(i)] && !seen[i].any().item<bool>()) seen[i][i] = true;
  }
  // Up to the 1e-6 in the mean square: a unit vector.
  const at::Tensor unit = query / (query.square().sum(-1, true) + 1e-6 * kSize).sqrt();
  return dense::attend(query, unit, value, seen, 1);
}

at::Tensor dense_rows(const Tokens& in, const at::Tensor& projection, const Sizes& sizes,
                      const std::optional<at::Tensor>& mask, const std::vector<int64_t>& bounds) {
  return dense::rows_of_segments(in, bounds, [&](const dense::Segment& segment) {
    return dense_head(segment.part(in.query), segment.part(in.value), projection[segment.head],
                      dense::flags(segment.kept(mask)), sizes);
  });
}

TEST(LshAttention, FollowsTheDefinition) {
  torch::manual_seed(1);
  for (const bool causal : {true, false}) {
    for (const auto& [rounds, buckets, chunk, tokens] :
         std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t>>{{1, 2, 3, 1},
                                                                     {1, 4, 3, 20},
                                                                     {2, 4, 3, 20},
                                                                     {4, 6, 2, 33},
                                                                     {3, 2, 1, 15},
                                                                     {2, 2, 100, 30},
                                                                     {5, 16, 4, 40}}) {
      const Sizes sizes{rounds, buckets, chunk, causal};
      const auto attention = make(lsh(rounds, buckets, chunk), causal);
      const at::Tensor projection = attention->named_buffers()["projection"];
      const std::string what =
          fmt::format("R {} buckets {} chunk {} T {} causal {}", rounds, buckets, chunk, tokens, causal);
      const Tokens in = dense::random_tokens(2, tokens, kHeads, kSize);
      at::Tensor mask = at::ones({2, tokens}, at::kBool);
      for (int64_t t = 0; t < tokens; ++t) mask[1][t] = t % 5 != 1;
      for (const std::optional<at::Tensor>& hidden : {std::optional<at::Tensor>(), std::optional(mask)}) {
        dense::expect_same(
            dense::with_gradients(
                in, [&](const Tokens& x) { return properties::run(*attention, x, causal, hidden); }),
            dense::with_gradients(in,
                                  [&](const Tokens& x) {
                                    return dense_rows(x, projection, sizes, hidden, {0, tokens});
                                  }),
            what + (hidden ? ", masked" : ""));
      }
      const std::vector<int64_t> bounds = {0, tokens / 3, tokens / 3, tokens / 2, tokens};
      const Tokens packed = dense::random_tokens(1, tokens, kHeads, kSize);
      dense::expect_same(
          dense::with_gradients(packed,
                                [&](const Tokens& x) {
                                  return properties::run(*attention, x, causal, {},
                                                         at::tensor(bounds, at::kLong));
                                }),
          dense::with_gradients(
              packed, [&](const Tokens& x) { return dense_rows(x, projection, sizes, {}, bounds); }),
          what + ", packed");
    }
  }
}

// With enough rounds and a large chunk every pair meets, and attention is that of all tokens but oneself.
TEST(LshAttention, SeesEverythingWithManyRounds) {
  torch::manual_seed(2);
  const at::NoGradGuard no_grad;
  const auto attention = make(lsh(60, 2, 64), true);
  const Tokens in = dense::random_tokens(1, 12, kHeads, kSize);
  const at::Tensor found = properties::run(*attention, in, true);
  for (int64_t h = 0; h < kHeads; ++h) {
    const at::Tensor q = in.query[0].select(1, h);
    const at::Tensor seen =
        dense::matrix(12, [](int64_t i, int64_t j) { return j < i || (i == 0 && j == 0); });
    const at::Tensor expected = dense::attend(q, q / q.norm(2, -1, true), in.value[0].select(1, h), seen, 1);
    EXPECT_TRUE(at::allclose(found[0].select(1, h), expected, 1e-5, 1e-5));
  }
}

TEST(LshAttention, NearVectorsMeetMoreOftenThanFarOnes) {
  torch::manual_seed(3);
  const at::NoGradGuard no_grad;
  const at::Tensor center = at::randn({1, kSize}, at::kDouble);
  const Tokens random = dense::random_tokens(1, 40, kHeads, kSize);
  at::Tensor query = random.query.clone();
  query.narrow(1, 0, 20).copy_((center + 0.05 * at::randn({20, kSize}, at::kDouble))
                                   .view({1, 20, 1, kSize})
                                   .expand({1, 20, kHeads, kSize}));
  query.narrow(1, 20, 20).copy_((0.05 * at::randn({20, kSize}, at::kDouble) - center)
                                    .view({1, 20, 1, kSize})
                                    .expand({1, 20, kHeads, kSize}));
  const at::Tensor units = at::eye(40, at::kDouble).view({1, 40, 1, 40}).expand({1, 40, kHeads, 40});
  const at::Tensor weights =
      properties::run(*make(lsh(2, 4, 40), false), {query, query, units}, false)[0][5][0];
  EXPECT_GT(weights.narrow(0, 0, 20).gt(0).sum().item<int64_t>(), 15);
  EXPECT_EQ(weights.narrow(0, 20, 20).count_nonzero().item<int64_t>(), 0) << "opposite vectors never meet";
}

TEST(LshAttention, SharesQueriesAndKeysInALayer) {
  torch::manual_seed(4);
  ModelConfig model;
  model.width = 12, model.heads = 2;
  AttentionConfig config = lsh(2, 4, 3);
  config.qk_norm = config.learned_temperature = true;
  MultiHeadAttention layer(model, config, 0);
  const auto names = layer->named_parameters().keys();
  EXPECT_THAT(names, ::testing::Contains("query.weight"));
  EXPECT_THAT(names, ::testing::Contains("query_gain"));
  for (const std::string& name : names) EXPECT_THAT(name, ::testing::Not(HasSubstr("key")));
  SequenceBatch batch;
  batch.positions = at::arange(9, at::kLong).unsqueeze(0);
  at::Tensor seen_key;
  layer->observe([&](const at::Tensor& query, const at::Tensor& key, const at::Tensor&) {
    EXPECT_TRUE(at::equal(query, key));
    seen_key = key;
  });
  layer->forward(at::randn({1, 9, 12}), batch).square().sum().backward();
  EXPECT_TRUE(seen_key.defined());
  for (const auto& item : layer->named_parameters()) {
    EXPECT_TRUE(item.value().grad().defined() && item.value().grad().abs().max().item<double>() > 0)
        << item.key();
  }
}

TEST(LshAttention, RefusesWhatCannotBe) {
  const auto error = [](const AttentionConfig& config) {
    return test::error_of<UsageError>([&] { validate(ModelConfig{}, config); });
  };
  EXPECT_THAT(error(lsh(2, 5, 3)), HasSubstr("attention.buckets must be even"));
  EXPECT_THAT(error(lsh(0, 4, 3)), HasSubstr("attention.rounds must be between 1 and"));
  EXPECT_THAT(error(lsh(1, 4, 0)), HasSubstr("attention.chunk must be between 1 and"));
  AttentionConfig local = lsh(2, 4, 3);
  local.local_heads = 1;
  EXPECT_THAT(error(local), HasSubstr("attention.kind = lsh has no keys of its own"));
  AttentionConfig first = lsh(2, 4, 3);
  first.begin_kernel = 4;
  EXPECT_THAT(error(first),
              HasSubstr("set attention.local_heads and attention.begin_kernel to 0, not 0 and 4"));
  EXPECT_THAT(test::error_of<UsageError>(
                  [&] { MultiHeadAttention(ModelConfig{}, lsh(2, 4, 3), 0, AttentionRole::cross); }),
              HasSubstr("attention.kind = lsh has no cross-attention: choose exact"));
}

}  // namespace
}  // namespace performer::nn::lsh_attention_test
