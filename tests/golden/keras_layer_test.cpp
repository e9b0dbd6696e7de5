// SPDX-License-Identifier: Apache-2.0
// The whole KernelAttention layer in compatible mode, on its own weights.
#include "performer/nn/kernel_attention.h"
#include "tests/golden/keras_case.h"

namespace performer::golden::keras {
namespace {

using nn::KernelAttention;
using nn::KernelAttentionOptions;

KernelAttentionOptions layer_options(const Case& item) {
  expect_known(item, {"num_heads",
                      "key_dim",
                      "value_dim",
                      "feature_transform",
                      "num_random_features",
                      "seed",
                      "model_dim",
                      "kv_dim",
                      "training",
                      "separate_key",
                      "use_bias",
                      "output_shape",
                      "is_short_seq",
                      "scale",
                      "scale_by_length",
                      "begin_kernel",
                      "redraw",
                      "use_causal_windowed",
                      "causal_chunk_length",
                      "causal_window_length",
                      "causal_window_decay",
                      "causal_padding"});
  const auto& options = item.options;
  KernelAttentionOptions with;
  with.compatible = true;
  with.query_width = options.at("model_dim");
  with.value_width = options.at("kv_dim");
  with.num_heads = options.at("num_heads");
  with.key_dim = options.at("key_dim");
  with.value_dim = options.value("value_dim", with.value_dim);
  if (options.contains("output_shape") && !options["output_shape"].is_null()) {
    const auto& shape = options["output_shape"];
    with.output_shape =
        shape.is_array() ? shape.get<std::vector<int64_t>>() : std::vector<int64_t>{shape.get<int64_t>()};
  }
  with.use_bias = options.value("use_bias", with.use_bias);
  with.feature_transform = options.at("feature_transform");
  with.num_random_features = options.at("num_random_features");
  with.seed = options.value("seed", with.seed);
  with.redraw = options.value("redraw", with.redraw);
  with.is_short_seq = options.value("is_short_seq", with.is_short_seq);
  with.begin_kernel = options.value("begin_kernel", with.begin_kernel);
  with.scale = optional_number(item, "scale");
  with.scale_by_length = options.value("scale_by_length", with.scale_by_length);
  with.use_causal_windowed = options.value("use_causal_windowed", with.use_causal_windowed);
  with.causal_chunk_length = options.value("causal_chunk_length", with.causal_chunk_length);
  with.causal_window_length = options.value("causal_window_length", with.causal_window_length);
  with.causal_window_decay = optional_number(item, "causal_window_decay");
  with.causal_padding = text_or_none(item, "causal_padding");
  return with;
}

// The layer with the recorded weights; its projection is the recorded one already, from the seed alone.
KernelAttention make_layer(const Case& item, at::ScalarType type, int& draws) {
  KernelAttention layer(layer_options(item));
  if (item.has("W")) expect_seeded(item, layer->projection());
  std::map<std::string, at::Tensor> weights;
  for (const std::string& name : item.inputs) {
    if (name == "W" || name.starts_with("w.")) weights[name] = item.tensor(name);
  }
  nn::import_kernel_attention(layer, weights);
  layer->to(type);
  layer->set_redraw_source([&draws, &item, type](int64_t) {
    ++draws;
    return item.tensor("W_redrawn").to(type);
  });
  return layer;
}

void compare_layer(Group& group, const Case& item, at::ScalarType type) {
  int draws = 0;
  KernelAttention layer = make_layer(item, type, draws);
  const auto leaf = [&](const char* name) { return item.tensor(name).to(type).clone().requires_grad_(true); };
  std::map<std::string, at::Tensor> leaves = {{"query", leaf("query")}, {"value", leaf("value")}};
  nn::KernelAttentionInputs inputs;
  inputs.query = leaves["query"];
  inputs.value = leaves["value"];
  ASSERT_EQ(item.has("key"), item.option<bool>("separate_key")) << item.id;
  if (item.has("key")) inputs.key = leaves["key"] = leaf("key");
  if (item.has("mask")) inputs.attention_mask = item.tensor("mask").to(type);
  inputs.training = item.option<bool>("training");
  const at::Tensor out = layer(inputs);
  EXPECT_EQ(draws, item.has("W_redrawn") ? 1 : 0) << item.id;
  keras::expect(group, item, "out", out);
  if (!item.has("cot")) return;
  (out * item.tensor("cot").to(type)).sum().backward();
  for (auto& [name, tensor] : leaves) keras::expect(group, item, "d" + name, tensor.grad());
  for (const auto& parameter : layer->named_parameters()) {
    const std::string name = "dw." + parameter.key();
    ASSERT_TRUE(item.outputs.contains(name)) << item.id << ": no recorded " << name;
    const at::Tensor& grad = parameter.value().grad();
    keras::expect(group, item, name, grad.defined() ? grad : at::zeros_like(parameter.value()));
  }
}

TEST(KerasGolden, Layer) {
  Group group("layer", "keras");
  if (group.empty()) GTEST_SKIP() << kMissing;
  for (const Case& item : group.cases()) {
    ASSERT_EQ(item.function, "KernelAttention.call") << item.id;
    compare_layer(group, item, at::kFloat);
    compare_layer(group, item, at::kDouble);
  }
  group.finish();
}

}  // namespace
}  // namespace performer::golden::keras
