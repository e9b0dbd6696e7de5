// SPDX-License-Identifier: Apache-2.0
// Attention layers of performer-pytorch on their own weights, and when they redraw their projections.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <regex>

#include "performer/base/files.h"
#include "performer/references/performer_pytorch/attention.h"
#include "tests/golden/golden.h"
#include "tests/golden/performer_pytorch_attention.h"

namespace performer::golden::performer_pytorch {
namespace {

PerformerAttentionOptions layer_options(const Case& item) {
  expect_known_options(item, {"dim",
                              "heads",
                              "dim_head",
                              "nb_features",
                              "causal",
                              "local_heads",
                              "local_window_size",
                              "generalized_attention",
                              "kernel_fn",
                              "no_projection",
                              "qkv_bias",
                              "attn_out_bias",
                              "mode",
                              "B",
                              "L",
                              "mask",
                              "mask_prefix",
                              "rotary",
                              "context_len",
                              "context_mask",
                              "inputs",
                              "dropout"});
  PerformerAttentionOptions options;
  options.dim = item.option<int64_t>("dim");
  options.heads = item.option<int64_t>("heads");
  options.dim_head = item.options.at("dim_head").is_null() ? 0 : item.option<int64_t>("dim_head");
  options.features = item.options.at("nb_features").is_null() ? 0 : item.option<int64_t>("nb_features");
  options.local_heads = item.option<int64_t>("local_heads");
  options.local_window_size = item.option<int64_t>("local_window_size");
  options.causal = item.option<bool>("causal");
  options.generalized = item.option<bool>("generalized_attention");
  options.no_projection = item.option<bool>("no_projection");
  options.kernel = kernel_name(item.options.at("kernel_fn"));
  options.qkv_bias = item.option<bool>("qkv_bias");
  options.out_bias = item.option<bool>("attn_out_bias");
  options.cross = item.function == "CrossAttention";
  options.dropout = item.options.value("dropout", 0.0);
  options.redraw_interval = -1;  // the counter is the stack's there
  return options;
}

// All "w.NAME" of the case into the module's parameters and buffers; a test failure unless they match one to
// one.
void load_weights(PerformerAttention& layer, const Case& item) {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> state;
  for (const auto& entry : layer->named_parameters()) state[entry.key()] = entry.value();
  for (const auto& entry : layer->named_buffers()) state[entry.key()] = entry.value();
  for (const std::string& name : item.inputs) {
    if (!name.starts_with("w.")) continue;
    const auto found = state.find(name.substr(2));
    ASSERT_NE(found, state.end()) << item.id << ": the layer has no " << name;
    ASSERT_TRUE(found->second.sizes().equals(item.tensor(name).sizes())) << item.id << ": shape of " << name;
    found->second.copy_(item.tensor(name));
    state.erase(found);
  }
  EXPECT_TRUE(state.empty()) << item.id << ": nothing for " << (state.empty() ? "" : state.begin()->first);
}

void compare(Group& group, const Case& item, at::ScalarType type) {
  PerformerAttention layer(layer_options(item));
  load_weights(layer, item);
  layer->to(type);
  layer->eval();
  std::map<std::string, at::Tensor> leaves;
  const auto leaf = [&](const std::string& name) {
    return leaves["d" + name] = item.tensor(name).to(type).detach().clone().requires_grad_(true);
  };
  for (const auto& entry : layer->named_parameters()) leaves["dw." + entry.key()] = entry.value();
  PerformerAttentionInputs inputs;
  inputs.x = leaf("x");
  if (item.has("context")) inputs.context = leaf("context");
  if (item.has("pos_table")) inputs.positions = item.tensor("pos_table");
  if (item.has("mask")) inputs.mask = item.tensor("mask").to(at::kBool);
  if (item.has("context_mask")) inputs.context_mask = item.tensor("context_mask").to(at::kBool);
  for (const std::string& name : item.inputs) {
    EXPECT_TRUE(
        name.starts_with("w.") ||
        std::set<std::string>({"x", "context", "pos_table", "mask", "context_mask", "cot"}).contains(name))
        << item.id << ": unknown input " << name;
  }
  expect_all(group, item, layer(inputs), leaves);
}

TEST(PerformerPytorchGolden, AttentionLayers) {
  run_group("attention_layers", "performer-pytorch", [&](Group& group, const Case& item) {
    ASSERT_TRUE(item.function == "SelfAttention" || item.function == "CrossAttention") << item.function;
    for (const at::ScalarType type : {at::kFloat, at::kDouble}) compare(group, item, type);
  });
}

// Calls, counted from 1, in which the projection of a layer changed. `alternating`: every second call is in
// evaluation mode.
std::vector<int64_t> changes(int64_t interval, bool alternating, int64_t calls) {
  PerformerAttentionOptions options;
  options.dim = 8;
  options.heads = 2;
  options.dim_head = 4;
  options.features = 8;
  options.redraw_interval = interval;
  PerformerAttention layer(options);
  const at::Tensor projection = layer->named_buffers()["fast_attention.projection_matrix"];
  std::vector<int64_t> found;
  for (int64_t call = 1; call <= calls; ++call) {
    layer->train(!alternating || call % 2 == 1);
    const at::Tensor before = projection.clone();
    layer(PerformerAttentionInputs{at::randn({1, 3, 8})});
    if (!at::equal(before, projection)) found.push_back(call);
  }
  return found;
}

TEST(PerformerPytorchGolden, RedrawSchedule) {
  int compared = 0;
  for (const std::string& folder : folders()) {
    const auto index = nlohmann::json::parse(read_file(folder + "/index.json"));
    const nlohmann::json meta = index.value("meta", nlohmann::json::object());
    if (!meta.is_object() || !meta.value("reference", "").starts_with("performer-pytorch") ||
        !meta.contains("redraw_schedule")) {
      continue;
    }
    for (const auto& [name, recorded] : meta["redraw_schedule"].items()) {
      if (name == "meaning") continue;
      std::smatch match;
      ASSERT_TRUE(std::regex_match(name, match,
                                   std::regex("interval(None|\\d+)(_all_training|_train_eval_alternating)?")))
          << name;
      const auto expected = recorded.get<std::vector<int64_t>>();
      const int64_t calls = expected.empty() ? 20 : expected.back();
      EXPECT_EQ(changes(match[1] == "None" ? -1 : std::stol(match[1]), match[2] == "_train_eval_alternating",
                        calls),
                expected)
          << name;
      ++compared;
    }
  }
  if (compared == 0) GTEST_SKIP() << kMissing;
}

}  // namespace
}  // namespace performer::golden::performer_pytorch
