// SPDX-License-Identifier: Apache-2.0
// fast-transformers' linear attentions: all tokens at once, the causal product, and one token at a time.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "performer/references/fast_transformers/layers_attention.h"
#include "tests/golden/fast_transformers_cases.h"

namespace performer::golden::fast_transformers {
namespace {

ft::InnerAttentionPtr attention_of(const Case& item, const std::string& kind, at::ScalarType type) {
  ft::InnerAttentionOptions options = attention_options(item.options);
  options.feature_map = map_options(option_or<std::string>(item.options, "feature_map", "elu"), item.options);
  const at::Tensor q = item.tensor("q"), v = item.tensor("v");
  const auto made = ft::make_attention(kind, options, {q.size(-2), q.size(-1), v.size(-1), 0});
  if (const auto map = std::dynamic_pointer_cast<ft::FeatureMapImpl>(made->randomness())) {
    expect_resolved(item, *map);
    if (item.has("omega")) set_omega(*map, item.tensor("omega"), type);
  }
  made->eval();
  return made;
}

void run_batch(Group& group, const Case& item, at::ScalarType type) {
  const std::string kind = attention_kind(item.function);
  const at::Tensor q = leaf(item, "q", type), k = leaf(item, "k", type), v = leaf(item, "v", type);
  const auto made = attention_of(item, kind, type);
  const int64_t batch = q.size(0), length = q.size(1), keys = k.size(1);
  const at::Tensor out = made->forward({q, k, v, mask_of_queries(item, kind == "causal-linear", length, keys),
                                        lengths_of(item, "query_lengths", batch, length),
                                        lengths_of(item, "key_lengths", batch, keys)});
  expect_all(group, item, out, {{"q", q}, {"k", k}, {"v", v}});
}

void run_product(Group& group, const Case& item, at::ScalarType type) {
  for (const int64_t chunk : {1, 7, 64}) {
    const at::Tensor q = leaf(item, "q", type), k = leaf(item, "k", type), v = leaf(item, "v", type);
    expect_all(group, item, ft::causal_dot_product(q, k, v, chunk), {{"q", q}, {"k", k}, {"v", v}});
  }
}

TEST(GoldenFastTransformers, Attention) {
  run_group("attention", kSystem, [&](Group& group, const Case& item) {
    expect_known(item, {"feature_map", "N", "L", "S", "H", "d", "dv", "inputs", "eps", "E", "M"});
    if (option_or<std::string>(item.options, "mask", "") == "blind") {
      group.known_other(item, "a query that sees no key has gradients of scores of -1e24; ours has none");
      return;
    }
    in_all_types(item, [&](at::ScalarType type) {
      item.function == "causal_dot_product" ? run_product(group, item, type) : run_batch(group, item, type);
    });
  });
}

void run_self(Group& group, const Case& item, at::ScalarType type) {
  const at::NoGradGuard no_grad;
  const at::Tensor q = item.tensor("q").to(type), k = item.tensor("k").to(type),
                   v = item.tensor("v").to(type);
  const auto made = attention_of(item, attention_kind(item.function), type);
  ft::AttentionState state;
  std::vector<at::Tensor> outs;
  for (int64_t i = 0; i < q.size(1); ++i) {
    outs.push_back(made->step(q.select(1, i), k.select(1, i), v.select(1, i), state));
    const auto [sums, norms] = state_parts(state);
    expect_output(group, item, fmt::format("S_{}", i), sums);
    expect_output(group, item, fmt::format("Z_{}", i), norms);
  }
  expect_output(group, item, "out", at::stack(outs, 1));
}

void run_cross(Group& group, const Case& item, at::ScalarType type) {
  const at::NoGradGuard no_grad;
  const at::Tensor q = item.tensor("q").to(type), k = item.tensor("k").to(type),
                   v = item.tensor("v").to(type);
  const auto made = attention_of(item, attention_kind(item.function), type);
  const ft::AttentionState memory =
      made->summarize(k, v, lengths_of(item, "key_lengths", k.size(0), k.size(1)));
  std::vector<at::Tensor> outs;
  for (int64_t i = 0; i < q.size(1); ++i) outs.push_back(made->cross_step(q.select(1, i), memory));
  expect_output(group, item, "out", at::stack(outs, 1));
  const auto [sums, norms] = state_parts(memory);
  expect_output(group, item, "S", sums);
  expect_output(group, item, "Z", norms);
}

TEST(GoldenFastTransformers, Recurrent) {
  run_group("recurrent", kSystem, [&](Group& group, const Case& item) {
    expect_known(item, {"feature_map", "N", "L", "S", "H", "d", "dv", "inputs", "eps"});
    const bool cross = item.function.starts_with("RecurrentCross");
    in_all_types(item, [&](at::ScalarType type) {
      cross ? run_cross(group, item, type) : run_self(group, item, type);
    });
    for (const auto& [name, output] : item.outputs) {
      const bool known = name == "out" || (cross ? name == "S" || name == "Z"
                                                 : name.starts_with("S_") || name.starts_with("Z_"));
      EXPECT_TRUE(known) << item.id << ": nothing is compared with output " << name;
    }
  });
}

}  // namespace
}  // namespace performer::golden::fast_transformers
