// SPDX-License-Identifier: Apache-2.0
// The attentions that google-research's two factories make, and the module around them.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/references/jax/attention.h"
#include "performer/references/jax/module.h"
#include "tests/golden/cases.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

namespace jax = references::jax;

jax::FastAttention softmax_attention(const Case& item, const at::Tensor& w) {
  jax::SoftmaxAttentionOptions options;
  options.head_size = item.option<int64_t>("d");
  options.features = item.option<int64_t>("m");
  options.renormalize = option_or(item, "renormalize", options.renormalize);
  options.stabilizer = option_or(item, "stabilizer", options.stabilizer);
  options.unidirectional = option_or(item, "unidirectional", options.unidirectional);
  options.nonnegative = option_or(item, "nonnegative", options.nonnegative);
  options.chunk = option_or(item, "unroll", options.chunk);
  return jax::make_fast_softmax_attention(options, w);
}

jax::FastAttention generalized_attention(const Case& item, const at::Tensor& w) {
  jax::GeneralizedAttentionOptions options;
  options.head_size = item.option<int64_t>("d");
  options.features = option_or<int64_t>(item, "m", 256);
  const auto projection = item.option<std::string>("projection");
  options.features_type = projection == "none" ? "deterministic" : projection;
  options.renormalize = option_or(item, "renormalize", options.renormalize);
  options.stabilizer = option_or(item, "stabilizer", options.stabilizer);
  options.unidirectional = option_or(item, "unidirectional", options.unidirectional);
  options.function = function_name(item.option<std::string>("kernel_fn"));
  options.epsilon = option_or(item, "kernel_epsilon", options.epsilon);
  options.chunk = option_or(item, "unroll", options.chunk);
  return jax::make_fast_generalized_attention(options, w);
}

jax::FastAttention attention_of(const Case& item, const at::Tensor& w) {
  const auto family = item.option<std::string>("family");
  EXPECT_TRUE(family == "softmax" || family == "gen")
      << item.id << ": family " << family << " is not understood";
  return family == "softmax" ? softmax_attention(item, w) : generalized_attention(item, w);
}

std::vector<int64_t> axis_of(const Case& item) {
  const auto found = item.options.find("axis");
  if (found == item.options.end() || found->is_null()) return {};
  if (found->is_number()) return {found->get<int64_t>()};
  return found->get<std::vector<int64_t>>();
}

void expect_attention(Group& group, const Case& item, at::ScalarType type) {
  const at::Tensor q = leaf(item, "q", type), k = leaf(item, "k", type), v = leaf(item, "v", type);
  const jax::FastAttention attention = attention_of(item, leaf(item, "W", type, false));
  const auto [out, denominator] = attention.attend(q, k, v, axis_of(item));
  group.expect(item, "out", out);
  expect_recorded(group, item, "R", denominator);
  out.backward(item.tensor("ct").to(type));
  group.expect(item, "dq", q.grad());
  group.expect(item, "dk", k.grad());
  group.expect(item, "dv", v.grad());
}

void run_attention_group(const char* name) {
  run_group(name, [&](Group& group, const Case& item) {
    expect_known_options(item, {"family", "d", "m", "unidirectional", "renormalize", "stabilizer", "unroll",
                                "projection", "input_std", "hostile", "nonnegative", "ortho_scaling", "axis",
                                "kernel_fn", "kernel_epsilon"});
    for (const at::ScalarType type : run_types(item)) expect_attention(group, item, type);
  });
}

TEST(Golden, JaxAttentionSoftmax) {
  run_attention_group("jax_attention_softmax");
}
TEST(Golden, JaxAttentionTrigonometric) {
  run_attention_group("jax_attention_trig");
}
TEST(Golden, JaxAttentionGeneralized) {
  run_attention_group("jax_attention_generalized");
}

jax::FastAttentionModule module_of(const Case& item) {
  jax::FastAttentionModuleOptions options;
  options.heads = item.option<int64_t>("heads");
  options.query_size = item.tensor("inputs_q").size(-1);
  options.key_value_size = item.tensor("inputs_kv").size(-1);
  options.qkv_features = options.heads * item.option<int64_t>("d_head");
  options.out_features = item.tensor("out_kernel").size(-1);
  options.use_bias = item.has("query_bias");
  jax::SoftmaxAttentionOptions attention;
  attention.features = item.option<int64_t>("m");
  attention.redraw = false;
  attention.unidirectional = item.option<bool>("unidirectional");
  options.attention = attention;
  jax::FastAttentionModule module(options);
  std::map<std::string, at::Tensor> weights = {{"projection", item.tensor("W")}};
  for (const char* layer : {"query", "key", "value", "out"}) {
    for (const char* part : {"kernel", "bias"}) {
      const std::string name = std::string(layer) + "_" + part;
      if (item.has(name)) weights[std::string(layer) + "/" + part] = item.tensor(name);
    }
  }
  module->import_flax(weights);
  return module;
}

TEST(Golden, JaxModule) {
  run_group("jax_module", [&](Group& group, const Case& item) {
    expect_known_options(item, {"heads", "d_head", "m", "unidirectional", "mask"});
    EXPECT_EQ(item.has("mask_k"), item.option<bool>("mask")) << item.id;
    jax::FastAttentionModule module = module_of(item);
    for (const at::ScalarType type : run_types(item)) {
      module->to(type);
      std::optional<at::Tensor> mask;
      if (item.has("mask_k")) mask = item.tensor("mask_k");
      group.expect(
          item, "out",
          module->forward(item.tensor("inputs_q").to(type), item.tensor("inputs_kv").to(type), mask));
    }
  });
}

}  // namespace
}  // namespace performer::golden
