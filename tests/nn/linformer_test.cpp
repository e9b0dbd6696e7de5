// SPDX-License-Identifier: Apache-2.0
// The kind `linformer` against plain loops over queries and projected rows.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/nn/attention.h"
#include "tests/errors.h"
#include "tests/nn/dense_attention.h"

namespace performer::nn::linformer_test {
namespace {

using properties::Tokens;
using ::testing::HasSubstr;

constexpr int64_t kHeads = 2, kSize = 4, kLength = 20, kRank = 6;  // pools of 4 tokens

AttentionConfig linformer(const std::string& reduce, const std::string& sharing = "none") {
  AttentionConfig config;
  config.kind = "linformer";
  config.set("length", kLength).set("rank", kRank).set("reduce", reduce).set("sharing", sharing);
  config.set("delta", 0.3);
  return config;
}

std::shared_ptr<Attention> make(const AttentionConfig& config) {
  auto made = make_attention(config, {kHeads, kSize, false, 2});
  made->to(at::kDouble);
  return made;
}

// What a matrix [k, tokens] makes of x [tokens, D], entry by entry.
at::Tensor product(const at::Tensor& matrix, const at::Tensor& x) {
  std::vector<at::Tensor> rows;
  for (int64_t r = 0; r < matrix.size(0); ++r) {
    at::Tensor row = at::zeros({x.size(1)}, at::kDouble);
    for (int64_t t = 0; t < x.size(0); ++t) row = row + matrix[r][t] * x[t];
    rows.push_back(row);
  }
  return at::stack(rows);
}

// Keys or values x [tokens, D] of one head as rows, only those that exist.
at::Tensor reduced(const Attention& attention, const std::string& reduce, const std::string& name,
                   int64_t head, const at::Tensor& x, const std::vector<bool>& kept) {
  const int64_t tokens = x.size(0);
  at::Tensor existing = x.clone();
  for (int64_t t = 0; t < tokens; ++t) {
    if (!kept[static_cast<size_t>(t)]) existing[t] = 0;
  }
  const auto parameters = attention.named_parameters();
  const auto weight = [&] {
    const at::Tensor* both = parameters.find("both");
    const at::Tensor all = both != nullptr ? *both : parameters[name];
    return all[all.size(0) == 1 ? 0 : head];
  };
  if (reduce == "learned") return product(weight(), existing);
  if (reduce == "random") {
    const at::Tensor all = attention.named_buffers()["projection"];
    const double factor = name == "keys" ? 0.3 : std::exp(-0.3);
    return product(all[all.size(0) == 1 ? 0 : head] * factor, existing);
  }
  std::vector<at::Tensor> rows;
  for (int64_t first = 0; first < tokens; first += 4) {
    at::Tensor row = at::zeros({x.size(1)}, at::kDouble);
    double count = 0;
    for (int64_t t = first; t < std::min(first + 4, tokens); ++t) {
      if (!kept[static_cast<size_t>(t)]) continue;
      count += 1;
      row = row +
            (reduce == "mean"
                 ? existing[t]
                 : at::matmul(existing[t], weight().slice(0, (t - first) * kSize, (t - first + 1) * kSize)));
    }
    if (count > 0) rows.push_back(reduce == "mean" ? row / count : row);
  }
  return rows.empty() ? at::zeros({0, x.size(1)}, at::kDouble) : at::stack(rows);
}

at::Tensor dense_rows(const Attention& attention, const std::string& reduce, const Tokens& in,
                      const std::optional<at::Tensor>& mask, const std::vector<int64_t>& bounds) {
  return dense::rows_of_segments(in, bounds, [&](const dense::Segment& segment) {
    const at::Tensor query = segment.part(in.query), kept = segment.kept(mask);
    const auto reduced_part = [&](const char* name, const at::Tensor& x) {
      return reduced(attention, reduce, name, segment.head, segment.part(x), dense::flags(kept));
    };
    const at::Tensor key = reduced_part("keys", in.key), value = reduced_part("values", in.value);
    if (key.size(0) == 0) return at::zeros_like(query);
    const at::Tensor seen = at::ones({query.size(0), key.size(0)}, at::kBool);
    return dense::attend(query, key, value, seen, 0.5) * kept.unsqueeze(1).to(at::kDouble);
  });
}

TEST(Linformer, FollowsTheDefinition) {
  torch::manual_seed(1);
  for (const std::string reduce : {"learned", "mean", "convolution", "random"}) {
    for (const std::string sharing : {"none", "heads", "kv", "layers"}) {
      const auto attention = make(linformer(reduce, sharing));
      for (const int64_t tokens : {1, 7, 20}) {
        const std::string what = fmt::format("{} {} {}", reduce, sharing, tokens);
        const Tokens in = dense::random_tokens(3, tokens, kHeads, kSize);
        at::Tensor mask = at::ones({3, tokens}, at::kBool);
        for (int64_t t = 0; t < tokens; ++t) mask[1][t] = t % 3 != 1 && t < 9;
        mask[2].fill_(false);
        for (const std::optional<at::Tensor>& hidden : {std::optional<at::Tensor>(), std::optional(mask)}) {
          dense::expect_same(
              dense::with_gradients(
                  in, [&](const Tokens& x) { return properties::run(*attention, x, false, hidden); }),
              dense::with_gradients(in,
                                    [&](const Tokens& x) {
                                      return dense_rows(*attention, reduce, x, hidden, {0, tokens});
                                    }),
              what + (hidden ? ", masked" : ""));
        }
        const std::vector<int64_t> bounds = {0, tokens / 3, tokens / 3, tokens};
        const Tokens packed = dense::random_tokens(1, tokens, kHeads, kSize);
        dense::expect_same(
            dense::with_gradients(packed,
                                  [&](const Tokens& x) {
                                    return properties::run(*attention, x, false, {},
                                                           at::tensor(bounds, at::kLong));
                                  }),
            dense::with_gradients(
                packed, [&](const Tokens& x) { return dense_rows(*attention, reduce, x, {}, bounds); }),
            what + ", packed");
      }
    }
  }
}

TEST(Linformer, GradientsOfWeightsAreThoseOfTheDefinition) {
  torch::manual_seed(2);
  for (const std::string reduce : {"learned", "convolution"}) {
    for (const std::string sharing : {"none", "heads", "kv"}) {
      const auto attention = make(linformer(reduce, sharing));
      const Tokens in = dense::random_tokens(2, 18, kHeads, kSize);
      const at::Tensor weight = at::randn_like(in.value);
      const std::vector<at::Tensor> leaves = attention->parameters();
      ASSERT_EQ(leaves.size(), sharing == "kv" ? 1U : 2U);
      EXPECT_EQ(leaves[0].size(0), sharing == "none" ? kHeads : 1);
      const auto found =
          torch::autograd::grad({(properties::run(*attention, in, false) * weight).sum()}, leaves);
      const auto expected =
          torch::autograd::grad({(dense_rows(*attention, reduce, in, {}, {0, 18}) * weight).sum()}, leaves);
      for (size_t n = 0; n < leaves.size(); ++n)
        EXPECT_TRUE(at::allclose(found[n], expected[n], 1e-9, 1e-10)) << reduce << " " << sharing;
    }
  }
}

TEST(Linformer, LayersOfAModelMayShareOneProjection) {
  torch::manual_seed(3);
  const AttentionConfig config = linformer("learned", "layers");
  const auto shared = std::make_shared<SharedWeights>();
  const auto layer = [&](int64_t number) {
    return make_attention(config, {kHeads, kSize, false, number, shared});
  };
  const auto first = layer(0), second = layer(1);
  ASSERT_EQ(first->parameters().size(), 1U);
  EXPECT_TRUE(first->borrowed().empty());
  EXPECT_TRUE(second->parameters().empty());
  ASSERT_EQ(second->borrowed().size(), 1U);
  EXPECT_TRUE(second->borrowed()[0].is_same(first->parameters()[0]));
  first->to(at::kDouble);
  const Tokens in = dense::random_tokens(1, 9, kHeads, kSize);
  EXPECT_TRUE(at::equal(properties::run(*first, in, false), properties::run(*second, in, false)));
}

TEST(Linformer, RedrawsOnlyRandomProjections) {
  for (const char* reduce : {"learned", "mean", "convolution", "random"}) {
    const AttentionConfig config = linformer(reduce);
    EXPECT_EQ(capabilities_of(config).redraws, std::string(reduce) == "random");
    const auto attention = make(config);
    torch::manual_seed(4);
    const Tokens in = dense::random_tokens(1, 9, kHeads, kSize);
    const at::Tensor before = properties::run(*attention, in, false);
    attention->redraw(1);
    EXPECT_EQ(at::equal(properties::run(*attention, in, false), before), std::string(reduce) != "random");
  }
  const at::Tensor drawn = make(linformer("random"))->named_buffers()["projection"];
  EXPECT_NEAR(drawn.square().mean().item<double>(), 1.0 / kRank, 0.05) << "theorem 2: N(0, 1 / k)";
}

TEST(Linformer, RefusesWhatCannotBe) {
  ModelConfig masked;
  masked.objective = "masked";
  const auto error = [](const ModelConfig& model, const AttentionConfig& config) {
    return test::error_of<UsageError>([&] { validate(model, config); });
  };
  EXPECT_THAT(error(ModelConfig{}, linformer("learned")),
              HasSubstr("attention.kind = linformer has no causal form"));
  EXPECT_THAT(error(masked, linformer("learned").set("rank", 21)),
              HasSubstr("attention.rank must be between 1 and attention.length (20), not 21"));
  EXPECT_THAT(error(masked, linformer("learned").set("length", 0)), HasSubstr("attention.length"));
  EXPECT_EQ(longest_of(linformer("mean")), kLength);
  for (const char* reduce : {"learned", "mean", "convolution", "random"}) {
    EXPECT_THAT(test::error_of<UsageError>([&] {
                  properties::run(*make(linformer(reduce)), dense::random_tokens(1, 21, kHeads, kSize),
                                  false);
                }),
                HasSubstr("takes sequences of at most attention.length = 20 tokens, but this one has 21"));
  }
}

}  // namespace
}  // namespace performer::nn::linformer_test
