// SPDX-License-Identifier: Apache-2.0
#include "tests/nn/kind_properties.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <vector>

#include "performer/base/error.h"

namespace performer::nn::properties {
namespace {

constexpr int64_t kHeads = 2, kHeadSize = 6;

void expect_close(const at::Tensor& found, const at::Tensor& expected, const Tolerance& tolerance,
                  const std::string& what) {
  ASSERT_EQ(found.sizes(), expected.sizes()) << what;
  if (found.numel() == 0) return;
  EXPECT_TRUE(at::allclose(found, expected, tolerance.relative, tolerance.absolute))
      << what << ": " << (found - expected).abs().max();
}

Capabilities can(const std::string& kind) {
  return find_kind(kind).capabilities;
}

std::vector<bool> directions(const std::string& kind) {
  std::vector<bool> causal;
  if (can(kind).causal) causal.push_back(true);
  if (can(kind).bidirectional) causal.push_back(false);
  return causal;
}

at::Tensor step(const Attention& attention, const Tokens& tokens, int64_t t, Cache& cache) {
  return attention.step(tokens.query.select(1, t), tokens.key.select(1, t), tokens.value.select(1, t), cache);
}

// All tokens one at a time.
at::Tensor stream(const Attention& attention, const Tokens& tokens, Cache& cache) {
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < tokens.query.size(1); ++t) rows.push_back(step(attention, tokens, t, cache));
  return at::stack(rows, 1);
}

// Differences against the gradient in one random direction of all inputs.
void expect_derivative(Attention& attention, const Tokens& given, bool causal, const std::string& what) {
  Tokens in{given.query.clone(), given.key.clone(), given.value.clone()};
  for (at::Tensor* x : {&in.query, &in.key, &in.value}) x->set_requires_grad(true);
  const at::Tensor weight = at::randn_like(given.value);
  (run(attention, in, causal) * weight).sum().backward();
  const Tokens way{at::randn_like(in.query), at::randn_like(in.key), at::randn_like(in.value)};
  const auto dot = [](const at::Tensor& gradient, const at::Tensor& direction) {
    return gradient.defined() ? (gradient * direction).sum().item<double>() : 0.0;
  };
  const double found =
      dot(in.query.grad(), way.query) + dot(in.key.grad(), way.key) + dot(in.value.grad(), way.value);
  const at::NoGradGuard no_grad;
  const double h = 1e-5;
  const auto at_distance = [&](double t) {
    const Tokens moved{given.query + t * way.query, given.key + t * way.key, given.value + t * way.value};
    return (run(attention, moved, causal) * weight).sum().item<double>();
  };
  const double expected = (at_distance(h) - at_distance(-h)) / (2 * h);
  EXPECT_NEAR(found, expected, 1e-5 * (1 + std::abs(expected))) << what;
}

void expect_rows_of(Attention& attention, const Tokens& tokens, bool causal,
                    const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& cu,
                    const Tolerance& tolerance, const std::string& what) {
  ops::AttentionInputs inputs{tokens.query, tokens.key, tokens.value, causal};
  inputs.key_mask = inputs.query_mask = mask;
  inputs.cu_query = cu;
  const at::Tensor rows = attention.rows(inputs, {0, 20});
  ASSERT_EQ(rows.scalar_type(), at::kDouble) << what;
  const at::Tensor parts = at::cat(
      {attention.rows(inputs, {0, 9}), attention.rows(inputs, {9, 0}), attention.rows(inputs, {9, 11})}, 2);
  EXPECT_TRUE(at::allclose(parts, rows, 1e-9, 1e-12)) << what << " in two ranges";
  const at::Tensor out = at::matmul(rows, tokens.value.to(at::kDouble).transpose(1, 2)).transpose(1, 2);
  expect_close(out, run(attention, tokens, causal, mask, cu).to(at::kDouble), tolerance, what);
  if (causal) {
    EXPECT_EQ(rows.triu(1).count_nonzero().item<int64_t>(), 0) << what;
  }
  EXPECT_THROW(attention.rows(inputs, {15, 6}), Error) << what;
}

}  // namespace

Tokens Tokens::slice(int64_t begin, int64_t length) const {
  return {query.narrow(1, begin, length), key.narrow(1, begin, length), value.narrow(1, begin, length)};
}

Tokens random_tokens(int64_t batch, int64_t length) {
  const auto draw = [&] { return 0.7 * at::randn({batch, length, kHeads, kHeadSize}); };
  at::Tensor query = draw(), key = draw(), value = draw();
  return {query, key, value};
}

std::shared_ptr<Attention> make(const std::string& kind, bool causal) {
  AttentionConfig config;
  config.kind = kind;
  config.seed = 5;
  if (has_option(find_kind(kind), "features")) config.set("features", 12);
  if (has_option(find_kind(kind), "window")) config.set("window", 4);
  if (has_option(find_kind(kind), "break_even")) config.set("break_even", 8);
  if (has_option(find_kind(kind), "chunk")) config.set("chunk", 3);
  if (has_option(find_kind(kind), "buckets")) config.set("buckets", 4);
  if (has_option(find_kind(kind), "stride")) config.set("stride", 4).set("summary", 2);
  if (has_option(find_kind(kind), "global_tokens")) config.set("global_tokens", 2).set("random_blocks", 1);
  if (has_option(find_kind(kind), "rank")) config.set("length", 32).set("rank", 5);
  auto attention = make_attention(config, {kHeads, kHeadSize, causal, 1});
  const at::NoGradGuard no_grad;
  attention->train();
  if (causal) run(*attention, random_tokens(2, 20), true);
  attention->after_step();
  attention->eval();
  return attention;
}

at::Tensor run(Attention& attention, const Tokens& tokens, bool causal,
               const std::optional<at::Tensor>& key_mask, const std::optional<at::Tensor>& cu) {
  ops::AttentionInputs inputs;
  inputs.query = tokens.query;
  inputs.key = tokens.key;
  inputs.value = tokens.value;
  inputs.causal = causal;
  inputs.key_mask = inputs.query_mask = key_mask;
  inputs.cu_query = cu;
  return attention.forward(inputs);
}

void expect_no_future(const std::string& kind, const Tolerance& tolerance) {
  const auto attention = make(kind, true);
  const at::NoGradGuard no_grad;
  Tokens tokens = random_tokens(1, 30);
  const at::Tensor before = run(*attention, tokens.slice(0, 17), true);
  tokens.key.narrow(1, 17, 13).mul_(50);
  tokens.value.narrow(1, 17, 13).fill_(1e4);
  expect_close(run(*attention, tokens, true).narrow(1, 0, 17), before, tolerance, kind + ": prefix");
}

void expect_packed_equals_alone(const std::string& kind, const Tolerance& tolerance) {
  const at::NoGradGuard no_grad;
  const std::vector<int64_t> lengths = {7, 12, 0, 1};
  for (const bool causal : directions(kind)) {
    const auto attention = make(kind, causal);
    const Tokens tokens = random_tokens(1, 20);
    const auto filled = [] { return at::full({4, 12, kHeads, kHeadSize}, 9.0); };
    Tokens padded{filled(), filled(), filled()};
    at::Tensor mask = at::zeros({4, 12}, at::kBool);
    std::vector<at::Tensor> alone;
    int64_t begin = 0;
    for (int64_t n = 0; n < 4; ++n) {
      const Tokens one = tokens.slice(begin, lengths[n]);
      alone.push_back(lengths[n] == 0 ? one.value : run(*attention, one, causal));
      padded.query[n].narrow(0, 0, lengths[n]).copy_(one.query[0]);
      padded.key[n].narrow(0, 0, lengths[n]).copy_(one.key[0]);
      padded.value[n].narrow(0, 0, lengths[n]).copy_(one.value[0]);
      mask[n].narrow(0, 0, lengths[n]).fill_(true);
      begin += lengths[n];
    }
    const std::string what = kind + (causal ? ", causal" : ", bidirectional");
    if (can(kind).packed) {
      const at::Tensor cu = at::tensor({0, 7, 19, 19, 20}, at::kLong);
      expect_close(run(*attention, tokens, causal, {}, cu), at::cat(alone, 1), tolerance, what + ": packed");
    }
    if (!can(kind).masks) continue;
    const at::Tensor rows = run(*attention, padded, causal, mask);
    for (int64_t n = 0; n < 4; ++n) {
      expect_close(rows[n].narrow(0, 0, lengths[n]), alone[n][0], tolerance, what + ": padded row");
      EXPECT_EQ(rows[n].narrow(0, lengths[n], 12 - lengths[n]).count_nonzero().item<int64_t>(), 0)
          << what << ": masked rows must be zero";
    }
  }
}

void expect_masked_tokens_are_not_seen(const std::string& kind, const Tolerance& tolerance) {
  const at::NoGradGuard no_grad;
  at::Tensor mask = at::ones({1, 20}, at::kBool);
  for (const int64_t hidden : {0, 4, 5, 7, 12, 13, 19}) mask[0][hidden] = false;
  const at::Tensor away = mask.logical_not().unsqueeze(-1).unsqueeze(-1);
  for (const bool causal : directions(kind)) {
    const auto attention = make(kind, causal);
    const Tokens tokens = random_tokens(1, 20);
    const Tokens other{tokens.query.masked_fill(away, 3), tokens.key.masked_fill(away, 3),
                       tokens.value.masked_fill(away, 1e3)};
    std::vector<std::optional<at::Tensor>> forms = {std::nullopt};
    if (can(kind).packed) forms.emplace_back(at::tensor({0, 7, 13, 13, 20}, at::kLong));
    for (const auto& cu : forms) {
      const std::string what = kind + (causal ? ", causal" : ", bidirectional") + (cu ? ", packed" : "");
      const at::Tensor rows = run(*attention, tokens, causal, mask, cu);
      expect_close(run(*attention, other, causal, mask, cu), rows, tolerance, what + ": masked tokens");
      EXPECT_EQ(rows.masked_select(away).count_nonzero().item<int64_t>(), 0) << what;
      EXPECT_GT(rows.abs().max().item<double>(), 0) << what;
    }
  }
}

void expect_steps_equal_one_pass(const std::string& kind, const Tolerance& tolerance) {
  const auto attention = make(kind, true);
  const at::NoGradGuard no_grad;
  const Tokens tokens = random_tokens(3, 21);
  const at::Tensor full = run(*attention, tokens, true);
  std::unique_ptr<Cache> cache = attention->begin(3);
  expect_close(stream(*attention, tokens.slice(0, 10), *cache), full.narrow(1, 0, 10), tolerance,
               kind + ": steps");
  const at::Tensor rows = at::tensor({2, 0, 2}, at::kLong);
  cache = cache->select(rows);
  const auto chosen = [&](const at::Tensor& x) { return x.index_select(0, rows).narrow(1, 10, 11); };
  const Tokens rest{chosen(tokens.query), chosen(tokens.key), chosen(tokens.value)};
  expect_close(stream(*attention, rest, *cache), chosen(full), tolerance, kind + ": steps of selected rows");
}

void expect_pieces_equal_one_pass(const std::string& kind, const Tolerance& tolerance) {
  const auto attention = make(kind, true);
  const at::NoGradGuard no_grad;
  const Tokens tokens = random_tokens(2, 41);
  const at::Tensor full = run(*attention, tokens, true);
  std::unique_ptr<Cache> cache = attention->begin(2);
  int64_t begin = 0;
  for (const int64_t length : {1, 5, 3, 1, 20, 11}) {
    const Tokens part = tokens.slice(begin, length);
    const at::Tensor rows = begin == 9 ? step(*attention, part, 0, *cache).unsqueeze(1)
                                       : attention->advance(part.query, part.key, part.value, *cache);
    expect_close(rows, full.narrow(1, begin, length), tolerance,
                 kind + ": piece at " + std::to_string(begin));
    begin += length;
  }
}

void expect_chunks_equal_one_pass(const std::string& kind, const Tolerance& tolerance) {
  const auto attention = make(kind, true);
  const at::NoGradGuard no_grad;
  const Tokens tokens = random_tokens(2, 23);
  const at::Tensor full = run(*attention, tokens, true);
  ops::State state;
  int64_t begin = 0;
  for (const int64_t length : {1, 9, 0, 13}) {
    const Tokens part = tokens.slice(begin, length);
    ops::AttentionInputs inputs;
    inputs.query = part.query;
    inputs.key = part.key;
    inputs.value = part.value;
    inputs.causal = true;
    inputs.return_state = true;
    if (state.defined()) inputs.initial = state;
    const auto [out, final] = attention->continue_from(inputs);
    expect_close(out, full.narrow(1, begin, length), tolerance, kind + ": chunk");
    state = final;
    begin += length;
  }
}

void expect_kept_context_equals_one_pass(const std::string& kind, const Tolerance& tolerance) {
  const auto attention = make(kind, false);
  const at::NoGradGuard no_grad;
  const Tokens context = random_tokens(2, 11);
  const at::Tensor query = random_tokens(2, 5).query;
  at::Tensor mask = at::ones({2, 11}, at::kBool);
  mask[1].narrow(0, 6, 5).fill_(false);
  ops::AttentionInputs inputs;
  inputs.query = query;
  inputs.key = context.key;
  inputs.value = context.value;
  inputs.key_mask = mask;
  const at::Tensor expected = attention->forward(inputs);
  const auto cache = attention->begin_cross(context.key, context.value, mask);
  expect_close(attention->read(query, *cache), expected, tolerance, kind + ": kept context");
  at::Tensor other = context.value.clone();
  other[1].narrow(0, 6, 5).fill_(1e3);
  inputs.value = other;
  expect_close(attention->forward(inputs), expected, tolerance,
               kind + ": masked context tokens are not seen");
}

void expect_growing_context_equals_one_pass(const std::string& kind, const Tolerance& tolerance) {
  const auto attention = make(kind, false);
  const at::NoGradGuard no_grad;
  for (const int64_t whole : {6, 33}) {  // kind auto is exact for the shorter one
    const Tokens tokens = random_tokens(2, whole);
    const at::Tensor full = run(*attention, tokens, false);
    std::unique_ptr<Cache> context;
    int64_t begin = 0;
    for (const int64_t length : {int64_t{1}, int64_t{4}, whole - 5}) {
      const Tokens part = tokens.slice(begin, length);
      if (context) {
        attention->extend(part.key, part.value, *context);
      } else {
        context = attention->begin_cross(part.key, part.value, std::nullopt);
      }
      begin += length;
    }
    expect_close(attention->read(tokens.query.narrow(1, 0, 2), *context), full.narrow(1, 0, 2), tolerance,
                 kind + ": the first piece of a growing context");
    expect_close(attention->read(tokens.query.narrow(1, 2, whole - 2), *context),
                 full.narrow(1, 2, whole - 2), tolerance, kind + ": the rest of it");
  }
}

void expect_gradients(const std::string& kind) {
  for (const bool causal : directions(kind)) {
    const auto attention = make(kind, causal);
    Tokens in = random_tokens(1, 8);
    for (at::Tensor* x : {&in.query, &in.key, &in.value}) x->set_requires_grad(true);
    run(*attention, in, causal).square().sum().backward();
    for (const at::Tensor& x : {in.query, in.key, in.value}) {
      if (!x.is_same(in.value) && !can(kind).reads_queries && !x.grad().defined()) continue;
      if (x.is_same(in.key) && !can(kind).own_keys && !x.grad().defined()) continue;
      ASSERT_TRUE(x.grad().defined()) << kind;
      EXPECT_TRUE(x.grad().isfinite().all().item<bool>()) << kind;
      EXPECT_GT(x.grad().abs().max().item<double>(), 0) << kind;
    }
    for (const auto& item : attention->named_parameters()) {
      ASSERT_TRUE(item.value().grad().defined()) << kind << " " << item.key();
      EXPECT_GT(item.value().grad().abs().max().item<double>(), 0) << kind << " " << item.key();
    }
    attention->to(at::kDouble);
    const Tokens precise = random_tokens(2, 9);
    // Statistics are measured from the inputs and get no gradient: differences would see through them.
    const auto& map = find_kind(kind).feature_map;
    AttentionConfig config;
    config.kind = kind;
    if (map && ops::feature_map_traits(map(config).map).statistics) continue;
    expect_derivative(
        *attention,
        {precise.query.to(at::kDouble), precise.key.to(at::kDouble), precise.value.to(at::kDouble)}, causal,
        kind);
  }
}

void expect_streams_do_not_meet(const std::string& kind) {
  const auto attention = make(kind, true);
  const at::NoGradGuard no_grad;
  const Tokens first = random_tokens(1, 9), second = random_tokens(2, 9);
  attention->redraw(0);
  const auto alone = [&](const Tokens& tokens, int64_t batch) {
    const auto cache = attention->begin(batch);
    return stream(*attention, tokens, *cache);
  };
  const at::Tensor first_alone = alone(first, 1);
  attention->redraw(1);
  const at::Tensor second_alone = alone(second, 2);
  attention->redraw(0);
  const auto first_cache = attention->begin(1);
  std::vector<at::Tensor> first_rows = {step(*attention, first, 0, *first_cache)}, second_rows;
  attention->redraw(1);
  const auto second_cache = attention->begin(2);
  for (int64_t t = 0; t < 9; ++t) {
    second_rows.push_back(step(*attention, second, t, *second_cache));
    if (t > 0) first_rows.push_back(step(*attention, first, t, *first_cache));
    attention->redraw(t);
  }
  EXPECT_TRUE(at::equal(at::stack(first_rows, 1), first_alone)) << kind;
  EXPECT_TRUE(at::equal(at::stack(second_rows, 1), second_alone)) << kind;
}

void expect_rows_give_outputs(const std::string& kind, const Tolerance& tolerance) {
  const at::NoGradGuard no_grad;
  at::Tensor mask = at::ones({1, 20}, at::kBool);
  for (const int64_t hidden : {0, 4, 5, 7, 12}) mask[0][hidden] = false;
  const at::Tensor cu = at::tensor({0, 7, 13, 13, 20}, at::kLong);
  const auto& map = find_kind(kind).feature_map;
  AttentionConfig config;
  config.kind = kind;
  const bool hostile = map && ops::feature_map_traits(map(config).map).exponential &&
                       !ops::feature_map_traits(map(config).map).signed_features &&
                       !ops::feature_map_traits(map(config).map).statistics;
  for (const bool causal : directions(kind)) {
    const auto attention = make(kind, causal);
    for (const auto type : {at::kFloat, at::kDouble}) {
      attention->to(type);
      for (const double size : {1.0, hostile && type == at::kDouble ? 150.0 : 0.3}) {
        for (const auto& [bounds, hidden] :
             {std::pair<std::optional<at::Tensor>, std::optional<at::Tensor>>{}, {{}, mask}, {cu, mask}}) {
          const Tokens given = random_tokens(1, 20);
          const Tokens tokens{(given.query * size).to(type), (given.key * size).to(type),
                              given.value.to(type)};
          const std::string what =
              fmt::format("{}, {}, size {}, {} bits: rows", kind, causal ? "causal" : "bidirectional", size,
                          type == at::kFloat ? 32 : 64);
          expect_rows_of(*attention, tokens, causal, hidden, bounds, tolerance, what);
        }
      }
    }
  }
}

void expect_kind_properties(const std::string& kind, const Tolerance& tolerance) {
  torch::manual_seed(11);
  if (can(kind).causal) expect_no_future(kind, tolerance);
  expect_packed_equals_alone(kind, tolerance);
  if (can(kind).streams) expect_steps_equal_one_pass(kind, tolerance);
  if (can(kind).streams) expect_streams_do_not_meet(kind);
  if (can(kind).chunks) expect_chunks_equal_one_pass(kind, tolerance);
  if (can(kind).cross) expect_kept_context_equals_one_pass(kind, tolerance);
  expect_gradients(kind);
  if (can(kind).masks) expect_masked_tokens_are_not_seen(kind, tolerance);
  if (can(kind).rows) expect_rows_give_outputs(kind, tolerance);
  if (can(kind).streams) expect_pieces_equal_one_pass(kind, tolerance);
  if (can(kind).grows) expect_growing_context_equals_one_pass(kind, tolerance);
}

}  // namespace performer::nn::properties
