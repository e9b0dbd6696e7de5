// SPDX-License-Identifier: Apache-2.0
// The kinds `sparse` and `global` against dense softmax attention under the masks that their papers define.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
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

namespace performer::nn::sparse_attention_test {
namespace {

using dense::Sees;
using properties::Tokens;
using ::testing::HasSubstr;

constexpr int64_t kHeads = 2, kSize = 5;

std::shared_ptr<Attention> make(const AttentionConfig& config, bool causal) {
  auto made = make_attention(config, {kHeads, kSize, causal, 3});
  made->to(at::kDouble);
  return made;
}

using HeadSees = std::function<Sees(int64_t head)>;

// All heads of all rows; hidden tokens are neither keys nor queries, and segments do not see each other.
at::Tensor dense_rows(const Tokens& in, const HeadSees& sees, const std::optional<at::Tensor>& mask,
                      const std::vector<int64_t>& bounds) {
  return dense::rows_of_segments(in, bounds, [&](const dense::Segment& segment) {
    const at::Tensor kept = segment.kept(mask);
    const at::Tensor seen = dense::matrix(segment.end - segment.begin, sees(segment.head))
                                .logical_and(kept.unsqueeze(0))
                                .logical_and(kept.unsqueeze(1));
    return dense::attend(segment.part(in.query), segment.part(in.key), segment.part(in.value), seen,
                         1 / std::sqrt(static_cast<double>(kSize)));
  });
}

void expect_definition(const AttentionConfig& config, bool causal, const HeadSees& sees, int64_t tokens,
                       const std::string& what) {
  const auto attention = make(config, causal);
  const Tokens in = dense::random_tokens(2, tokens, kHeads, kSize);
  at::Tensor mask = at::ones({2, tokens}, at::kBool);
  for (int64_t t = 0; t < tokens; ++t) mask[1][t] = t % 5 != 1;
  for (const std::optional<at::Tensor>& hidden : {std::optional<at::Tensor>(), std::optional(mask)}) {
    dense::expect_same(
        dense::with_gradients(
            in, [&](const Tokens& x) { return properties::run(*attention, x, causal, hidden); }),
        dense::with_gradients(in,
                              [&](const Tokens& x) {
                                return dense_rows(x, sees, hidden, {0, tokens});
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
      dense::with_gradients(packed, [&](const Tokens& x) { return dense_rows(x, sees, {}, bounds); }),
      what + ", packed");
}

AttentionConfig sparse(const std::string& pattern, int64_t stride, int64_t summary) {
  AttentionConfig config;
  config.kind = "sparse";
  config.set("pattern", pattern).set("stride", stride).set("summary", summary);
  return config;
}

// A(1) = {i - l, ..., i} and A(2) = {j: (i - j) mod l = 0}; arXiv 1904.10509, section 4.2.
TEST(SparseAttention, StridedFollowsThePaper) {
  torch::manual_seed(1);
  for (const bool causal : {true, false}) {
    for (const auto& [stride, tokens] : std::vector<std::pair<int64_t, int64_t>>{
             {4, 1}, {4, 4}, {4, 9}, {4, 31}, {1, 7}, {3, 40}, {2, 300}, {50, 23}}) {
      const Sees sees = [&, stride = stride](int64_t i, int64_t j) {
        if (causal && j > i) return false;
        return std::abs(i - j) <= stride || (i - j) % stride == 0;
      };
      expect_definition(
          sparse("strided", stride, 1), causal, [&](int64_t) { return sees; }, tokens,
          fmt::format("stride {} tokens {} causal {}", stride, tokens, causal));
    }
  }
}

// A(1) = the own block, A(2) = {j: j mod l in {t, ..., t + c - 1}}, the c tokens being others for each head.
TEST(SparseAttention, FixedFollowsThePaper) {
  torch::manual_seed(2);
  for (const bool causal : {true, false}) {
    for (const auto& [stride, summary, tokens] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
             {4, 1, 3}, {4, 2, 9}, {4, 4, 30}, {5, 2, 33}, {3, 1, 70}, {2, 1, 300}}) {
      const HeadSees sees = [&, l = stride, c = summary](int64_t head) {
        const int64_t first = l - c * (1 + head % (l / c));
        return [=](int64_t i, int64_t j) {
          if (causal && j > i) return false;
          return i / l == j / l || (j % l >= first && j % l < first + c);
        };
      };
      expect_definition(
          sparse("fixed", stride, summary), causal, sees, tokens,
          fmt::format("block {} summary {} tokens {} causal {}", stride, summary, tokens, causal));
    }
  }
}

AttentionConfig global(int64_t window, int64_t globals, int64_t random) {
  AttentionConfig config;
  config.kind = "global";
  config.seed = 4;
  config.set("window", window).set("global_tokens", globals).set("random_blocks", random);
  return config;
}

TEST(GlobalAttention, FollowsLongformer) {
  torch::manual_seed(3);
  for (const bool causal : {true, false}) {
    for (const auto& [window, globals, tokens] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
             {3, 2, 1}, {3, 2, 2}, {3, 0, 17}, {3, 2, 20}, {4, 7, 33}, {1, 1, 9}, {40, 3, 20}, {2, 1, 90}}) {
      const Sees sees = [&, w = window, g = globals](int64_t i, int64_t j) {
        if (causal && j > i) return false;
        return std::abs(i - j) <= w || j < g || i < g;
      };
      expect_definition(
          global(window, globals, 0), causal, [&](int64_t) { return sees; }, tokens,
          fmt::format("window {} globals {} tokens {} causal {}", window, globals, tokens, causal));
    }
  }
}

// The weights of every pair: values that are the unit vectors come out as rows of the attention matrix.
at::Tensor weights_of(Attention& attention, const Tokens& in, bool causal) {
  const int64_t tokens = in.query.size(1);
  const at::Tensor units =
      at::eye(tokens, at::kDouble).view({1, tokens, 1, tokens}).expand({1, tokens, kHeads, tokens});
  return properties::run(attention, {in.query, in.key, units}, causal)[0].transpose(0, 1);  // [H, T, T]
}

// Which random blocks the queries of block `own` of a head see, checked to be whole and the same for all.
std::set<int64_t> random_blocks(const at::Tensor& seen, int64_t own, int64_t window, int64_t globals,
                                bool causal) {
  const int64_t tokens = seen.size(0);
  std::set<int64_t> blocks;
  for (int64_t i = std::max(own * window, globals); i < std::min((own + 1) * window, tokens); ++i) {
    std::set<int64_t> of_row;
    for (int64_t j = globals; j < tokens; ++j) {
      const bool near = std::abs(i - j) <= window && (!causal || j <= i), is_seen = seen[i][j].item<bool>();
      EXPECT_TRUE(is_seen || !near) << i << " " << j;
      if (!near && is_seen) of_row.insert(j / window);
    }
    for (const int64_t block : of_row) {
      EXPECT_GT(std::abs(block - own), 1);
      for (int64_t j = std::max(globals, block * window); j < std::min((block + 1) * window, tokens); ++j)
        EXPECT_TRUE(seen[i][j].item<bool>()) << i << " " << j;
    }
    if (i == std::max(own * window, globals)) blocks = of_row;
    EXPECT_EQ(of_row, blocks) << "rows of one block see the same blocks";
  }
  return blocks;
}

TEST(GlobalAttention, RandomBlocksFollowBigBird) {
  torch::manual_seed(4);
  const at::NoGradGuard no_grad;
  const int64_t window = 3, globals = 2, tokens = 40, count = 14;
  for (const bool causal : {true, false}) {
    const auto attention = make(global(window, globals, 2), causal);
    const Tokens in = dense::random_tokens(1, tokens, kHeads, kSize);
    const at::Tensor weights = weights_of(*attention, in, causal);
    std::set<std::set<int64_t>> different;
    for (int64_t head = 0; head < kHeads; ++head) {
      const at::Tensor seen = weights[head] > 0;
      for (int64_t own = 1; own < count; ++own) {
        const auto blocks = random_blocks(seen, own, window, globals, causal);
        // Block 0 has two global tokens and one that is not.
        const int64_t candidates = causal ? own - 1 : count - (own == count - 1 ? 2 : 3);
        EXPECT_EQ(static_cast<int64_t>(blocks.size()), std::min<int64_t>(2, candidates)) << own;
        different.insert(blocks);
      }
      const at::Tensor expected = dense::attend(in.query[0].select(1, head), in.key[0].select(1, head),
                                                at::eye(tokens, at::kDouble), seen, 1 / std::sqrt(5.0));
      EXPECT_TRUE(at::allclose(weights[head], expected, 1e-10, 1e-12)) << "weights are those of a softmax";
    }
    EXPECT_GT(different.size(), 12U) << "draws differ between blocks and heads";
    AttentionConfig other = global(window, globals, 2);
    other.seed = 5;
    EXPECT_FALSE(at::equal(weights_of(*make(other, causal), in, causal) > 0, weights > 0))
        << "named by the seed";
  }
}

// Long enough for several tiles, and for two threads to share the heads.
TEST(BlockAttention, DoesNotDependOnThreadsOrOnWhatFollows) {
  torch::manual_seed(5);
  const int threads = at::get_num_threads();
  const at::NoGradGuard no_grad;
  Tokens in = dense::random_tokens(1, 3000, kHeads, kSize);
  for (at::Tensor* x : {&in.query, &in.key, &in.value}) *x = x->to(at::kFloat);
  for (const AttentionConfig& config : {sparse("strided", 64, 1), sparse("fixed", 64, 2), global(64, 5, 2)}) {
    const auto attention = make_attention(config, {kHeads, kSize, true, 3});
    at::set_num_threads(1);
    const at::Tensor one = properties::run(*attention, in, true);
    at::set_num_threads(3);
    const at::Tensor three = properties::run(*attention, in, true);
    at::set_num_threads(threads);
    EXPECT_TRUE(at::equal(one, three)) << config.kind;
    EXPECT_TRUE(at::allclose(properties::run(*attention, in.slice(0, 1700), true), one.narrow(1, 0, 1700),
                             1e-5, 1e-5))
        << config.kind;
  }
}

TEST(BlockAttention, IsPreciseInBfloat16) {
  torch::manual_seed(6);
  const at::NoGradGuard no_grad;
  const Tokens in = dense::random_tokens(1, 300, kHeads, kSize);
  const auto as = [&](at::ScalarType type) {
    const auto rounded = [&](const at::Tensor& x) { return (4 * x).to(at::kBFloat16).to(type); };
    return Tokens{rounded(in.query), rounded(in.key), in.value.to(at::kBFloat16).to(type)};
  };
  for (const AttentionConfig& config : {sparse("strided", 16, 1), global(16, 3, 1)}) {
    const at::Tensor half =
        properties::run(*make_attention(config, {kHeads, kSize, true, 3}), as(at::kBFloat16), true);
    const at::Tensor precise = properties::run(*make(config, true), as(at::kDouble), true);
    EXPECT_EQ(half.scalar_type(), at::kBFloat16);
    // Half a unit in the last place of the result: nothing else is rounded.
    EXPECT_LT(((half.to(at::kDouble) - precise).abs() / precise.abs().clamp_min(1e-3)).max().item<double>(),
              1.05 / 256);
  }
}

TEST(SparseAttention, RefusesWhatCannotBe) {
  const auto error = [](const AttentionConfig& config) {
    return test::error_of<UsageError>([&] { validate(ModelConfig{}, config); });
  };
  EXPECT_THAT(error(sparse("strided", 0, 1)), HasSubstr("attention.stride must be between 1 and"));
  EXPECT_THAT(error(sparse("fixed", 4, 5)),
              HasSubstr("attention.summary must be between 1 and attention.stride (4)"));
  EXPECT_THAT(error(global(0, 1, 1)), HasSubstr("attention.window"));
  EXPECT_THAT(error(global(1, -1, 1)), HasSubstr("attention.global_tokens"));
  EXPECT_THAT(error(global(1, 1, -1)), HasSubstr("attention.random_blocks"));
  const auto cross = [&](const AttentionConfig& config) {
    return test::error_of<UsageError>(
        [&] { MultiHeadAttention(ModelConfig{}, config, 0, AttentionRole::cross); });
  };
  EXPECT_THAT(cross(sparse("fixed", 4, 1)),
              HasSubstr("attention.kind = sparse has no cross-attention: choose exact"));
  EXPECT_THAT(cross(global(4, 1, 1)), HasSubstr("attention.kind = global has no cross-attention"));
}

}  // namespace
}  // namespace performer::nn::sparse_attention_test
