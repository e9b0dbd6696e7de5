// SPDX-License-Identifier: Apache-2.0
// Attention kinds against their plain definitions, in double.
#include "performer/references/fast_transformers/layers_attention.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "performer/base/error.h"
#include "tests/references/fast_transformers_layers.h"

namespace performer::references::fast_transformers {
namespace {

struct Problem {
  at::Tensor query, key, value, mask, lengths;  // mask bool [L, S], lengths bool [B, S]
};

// Three sequences, two heads of size 5; the last sequence has no keys.
Problem problem(int64_t queries, int64_t keys) {
  Problem p{normal({3, queries, 2, 5}, 1), normal({3, keys, 2, 5}, 2), normal({3, keys, 2, 5}, 3), {}, {}};
  p.mask = normal({queries, keys}, 4) > -0.7;
  p.lengths = lengths({keys, (keys + 1) / 2, 0}, keys).bool_matrix();
  return p;
}

InnerInputs inputs_of(const Problem& p) {
  return {p.query,
          p.key,
          p.value,
          FullMask(p.mask),
          FullMask(p.query.size(0), p.query.size(1)),
          FullMask(p.lengths)};
}

at::Tensor visible(const Problem& p) {  // [B, L, S]
  return p.mask.unsqueeze(0).logical_and(p.lengths.unsqueeze(1));
}

// Rows of queries that see a key, bool [B, L, 1, 1]: the others are a test of their own.
at::Tensor sees(const Problem& p) {
  return visible(p).any(-1).unsqueeze(-1).unsqueeze(-1);
}

double error_where_keys_are(const Problem& p, const at::Tensor& out, const at::Tensor& expected) {
  EXPECT_EQ(out.sizes(), expected.sizes());
  return (out - expected).masked_fill(sees(p).logical_not(), 0).abs().max().item<double>();
}

// sum_s w v / sum_s w of weights [B, H, L, S], 0 where no weight is.
at::Tensor average(const at::Tensor& weights, const at::Tensor& value) {
  return at::einsum("nhls,nshd->nlhd", {weights / weights.sum(-1, true).clamp_min(1e-300), value});
}

at::Tensor scores(const Problem& p, double temperature) {
  return at::einsum("nlhd,nshd->nhls", {p.query, p.key}) * temperature;
}

constexpr int64_t kSizes[][2] = {{1, 1}, {4, 4}, {7, 19}, {19, 7}, {33, 33}};

TEST(InnerAttention, FullIsASoftmax) {
  for (const auto& [queries, keys] : kSizes) {
    for (const double temperature : {0.0, 0.3}) {
      const Problem p = problem(queries, keys);
      InnerAttentionOptions options;
      options.softmax_temp = temperature;
      const auto full = make_attention("full", options, {2, 5, 5, 0});
      full->eval();
      const double factor = temperature > 0 ? temperature : 1 / std::sqrt(5.0);
      const at::Tensor expected = average(scores(p, factor).exp() * visible(p).unsqueeze(1), p.value);
      InnerInputs in = inputs_of(p);
      at::Tensor weights;
      in.weights = &weights;
      EXPECT_LT(error_where_keys_are(p, full->forward(in), expected), 1e-12);
      EXPECT_EQ(weights.sizes(), at::IntArrayRef({3, 2, queries, keys}));
    }
  }
}

TEST(InnerAttention, StepsFollowTheTemperature) {
  InnerAttentionOptions options;
  options.softmax_temp = 0.3;
  const auto attention = make_attention("full", options, {2, 5, 5, 0});
  attention->eval();
  const Problem p = problem(6, 6);
  InnerInputs in = inputs_of(p);
  in.mask = TriangularCausalMask(6);
  in.key_lengths = FullMask(3, 6);
  const at::Tensor causal = attention->forward(in);
  in.mask = FullMask(6);
  const at::Tensor whole = attention->forward(in);
  const AttentionState memory = attention->summarize(p.key, p.value, FullMask(3, 6));
  AttentionState state;
  for (int64_t i = 0; i < 6; ++i) {
    const at::Tensor query = p.query.select(1, i);
    const at::Tensor out = attention->step(query, p.key.select(1, i), p.value.select(1, i), state);
    EXPECT_LT(largest_error(out, causal.select(1, i)), 1e-12) << i;
    EXPECT_LT(largest_error(attention->cross_step(query, memory), whole.select(1, i)), 1e-12) << i;
  }
}

TEST(InnerAttention, RowsWithoutKeysAreZeroAndTheirGradientsToo) {
  for (const std::string kind : {"aft-full", "linear", "aft-simple"}) {
    Problem p = problem(6, 6);
    p.mask = at::ones({6, 6}, at::kBool);
    const auto attention = make_attention(kind, {}, {2, 5, 5, 0});
    attention->to(at::kDouble);
    attention->eval();
    p.key.set_requires_grad(true);
    p.query.set_requires_grad(true);
    const at::Tensor out = attention->forward(inputs_of(p));
    EXPECT_EQ(out.select(0, 2).abs().max().item<double>(), 0) << kind;
    const auto gradients = torch::autograd::grad({out.square().sum()}, {p.query, p.key});
    for (const at::Tensor& gradient : gradients) {
      EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << kind;
      EXPECT_EQ(gradient.select(0, 2).abs().max().item<double>(), 0) << kind;
    }
  }
}

// The third sequence has no keys.
TEST(InnerAttention, RowsWithoutKeysAreNaNOrTheSumAround) {
  for (const std::string kind : {"full", "exact-topk", "local"}) {
    Problem p = problem(6, 6);
    p.mask = at::ones({6, 6}, at::kBool);
    InnerAttentionOptions options;
    options.local_context = 4;
    p.query.set_requires_grad(true);
    const auto attention = make_attention(kind, options, {2, 5, 5, 0});
    attention->eval();
    const at::Tensor out = attention->forward(inputs_of(p));
    const at::Tensor gradient = torch::autograd::grad({out.sum()}, {p.query})[0];
    EXPECT_TRUE(out.narrow(0, 0, 2).isfinite().all().item<bool>()) << kind;
    EXPECT_TRUE(gradient.narrow(0, 0, 2).isfinite().all().item<bool>()) << kind;
    const at::Tensor empty = out.select(0, 2);
    if (kind != "local") {
      EXPECT_TRUE(empty.isnan().all().item<bool>()) << kind;
      EXPECT_TRUE(gradient.select(0, 2).isnan().all().item<bool>()) << kind;
      continue;
    }
    const at::Tensor value = p.value.select(0, 2);
    EXPECT_LT(largest_error(empty[0], value.narrow(0, 0, 2).sum(0) / 4), 1e-12);
    EXPECT_LT(largest_error(empty[3], value.narrow(0, 1, 4).sum(0) / 4), 1e-12);
  }
}

TEST(InnerAttention, ExactTopKKeepsTheBest) {
  for (const int64_t topk : {1, 3, 40}) {
    const Problem p = problem(19, 33);
    InnerAttentionOptions options;
    options.topk = topk;
    const auto attention = make_attention("exact-topk", options, {2, 5, 5, 0});
    attention->eval();
    const at::Tensor visible_scores =
        scores(p, 1 / std::sqrt(5.0))
            .masked_fill(visible(p).unsqueeze(1).logical_not(), -std::numeric_limits<double>::infinity());
    const at::Tensor sorted = std::get<0>(visible_scores.sort(-1, /*descending=*/true));
    const at::Tensor least = sorted.narrow(-1, std::min<int64_t>(topk, 33) - 1, 1);
    const at::Tensor weights = visible_scores.exp() * visible_scores.ge(least);
    EXPECT_LT(error_where_keys_are(p, attention->forward(inputs_of(p)), average(weights, p.value)), 1e-12)
        << topk;
  }
}

TEST(InnerAttention, LocalSeesItsWindow) {
  for (const auto& [queries, keys] : kSizes) {
    for (const int64_t context : {1, 2, 5, 8, 64}) {
      for (const bool causal : {false, true}) {
        Problem p = problem(queries, keys);
        if (causal && queries != keys) continue;
        if (causal) p.mask = at::ones({queries, keys}, at::kBool).tril();
        InnerAttentionOptions options;
        options.local_context = context;
        const auto attention = make_attention("local", options, {2, 5, 5, 0});
        attention->eval();
        const at::Tensor i = at::arange(queries).unsqueeze(1), j = at::arange(keys);
        const at::Tensor window = (j >= i - context / 2).logical_and(j <= i + (context + 1) / 2 - 1);
        const at::Tensor weights =
            scores(p, 1 / std::sqrt(5.0)).exp() * visible(p).logical_and(window.unsqueeze(0)).unsqueeze(1);
        InnerInputs in = inputs_of(p);
        if (causal) in.mask = TriangularCausalMask(queries);  // decided by places, not by the matrix
        const at::Tensor alone = weights.sum(-1).eq(0).transpose(1, 2).unsqueeze(-1);  // sees no key
        const at::Tensor error = attention->forward(in) - average(weights, p.value);
        EXPECT_LT(error.masked_fill(alone, 0).abs().max().item<double>(), 1e-12)
            << queries << " " << keys << " " << context;
      }
    }
  }
  EXPECT_THROW(make_attention("local", {}, {2, 5, 5, 0}), UsageError);
}

// sigmoid(q) times the average of values, weighted element by element by w [B, L, S, H, D].
at::Tensor gated(const Problem& p, const at::Tensor& weights) {
  return p.query.sigmoid() * (weights * p.value.unsqueeze(1)).sum(2) / weights.sum(2).clamp_min(1e-300);
}

TEST(InnerAttention, AftSimpleAveragesElements) {
  const auto attention = make_attention("aft-simple", {}, {2, 5, 5, 0});
  for (const auto& [queries, keys] : kSizes) {
    for (const bool causal : {false, true}) {
      Problem p = problem(queries, keys);
      if (causal && queries != keys) continue;
      p.mask = causal ? at::ones({queries, keys}, at::kBool).tril() : at::ones({queries, keys}, at::kBool);
      p.key = (p.key * 30).set_requires_grad(true);  // a common shift would leave nothing of the small ones
      const at::Tensor keep = visible(p).unsqueeze(-1).unsqueeze(-1);
      const at::Tensor shifted = p.key.unsqueeze(1).masked_fill(keep.logical_not(), -1e30);
      const at::Tensor weights = (shifted - std::get<0>(shifted.max(2, true))).exp() * keep;
      const at::Tensor expected = gated(p, weights), out = attention->forward(inputs_of(p));
      EXPECT_LT(largest_error(out, expected), 1e-12) << queries << " " << causal;
      EXPECT_LT(largest_error(torch::autograd::grad({out.square().sum()}, {p.key})[0],
                              torch::autograd::grad({expected.square().sum()}, {p.key})[0]),
                1e-10);
    }
  }
  EXPECT_THROW(make_attention("aft-simple", {}, {2, 5, 6, 0}), UsageError);
}

TEST(InnerAttention, AftFullAddsPositionWeights) {
  InnerAttentionOptions options;
  options.max_sequence_length = 33;
  options.aft_parameterization = 3;
  const auto attention = make_attention("aft-full", options, {2, 5, 5, 0});
  attention->to(at::kDouble);
  auto parameters = attention->named_parameters();
  {
    const at::NoGradGuard no_grad;
    parameters["u"].copy_(normal({33, 3}, 7));
    parameters["v"].copy_(normal({33, 3}, 8));
  }
  for (const auto& [queries, keys] : kSizes) {
    const Problem p = problem(queries, keys);
    const at::Tensor bias =
        at::matmul(parameters["u"].narrow(0, 0, queries), parameters["v"].narrow(0, 0, keys).t());
    const at::Tensor weights = (p.key.unsqueeze(1) + bias.unsqueeze(-1).unsqueeze(-1)).exp();
    EXPECT_LT(largest_error(attention->forward(inputs_of(p)),
                            gated(p, weights * visible(p).unsqueeze(-1).unsqueeze(-1))),
              1e-12);
  }
  EXPECT_THROW(attention->forward(inputs_of(problem(34, 3))), UsageError);
}

}  // namespace
}  // namespace performer::references::fast_transformers
