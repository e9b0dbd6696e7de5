// SPDX-License-Identifier: Apache-2.0
// The whole KernelAttention layer, on its own weights.
#include "performer/references/keras/kernel_attention.h"
#include "tests/golden/keras_case.h"

namespace performer::golden::keras {
namespace {

using reference::KernelAttention;
using reference::KernelAttentionOptions;

KernelAttentionOptions layer_options(const Case& item) {
  expect_known(item, {"num_heads",
                      "key_dim",
                      "value_dim",
                      "feature_transform",
                      "num_random_features",
                      "seed",
                      "model_dim",
                      "kv_dim",
                      "dropout",
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
  KernelAttentionOptions with;
  with.query_width = item.tensor("query").size(-1);
  with.value_width = item.tensor("value").size(-1);
  with.key_width = item.tensor(item.has("key") ? "key" : "value").size(-1);
  with.num_heads = item.option<int64_t>("num_heads");
  with.key_dim = item.option<int64_t>("key_dim");
  with.value_dim = option_or(item, "value_dim", with.value_dim);
  if (item.options.contains("output_shape") && !item.options["output_shape"].is_null()) {
    const auto& shape = item.options["output_shape"];
    with.output_shape =
        shape.is_array() ? shape.get<std::vector<int64_t>>() : std::vector<int64_t>{shape.get<int64_t>()};
  }
  with.dropout = option_or(item, "dropout", with.dropout);
  with.use_bias = option_or(item, "use_bias", with.use_bias);
  with.feature_transform = transform_of(item);
  with.num_random_features = random_features_of(item);
  with.seed = option_or(item, "seed", with.seed);
  with.redraw = option_or(item, "redraw", with.redraw);
  with.is_short_seq = option_or(item, "is_short_seq", with.is_short_seq);
  with.begin_kernel = option_or(item, "begin_kernel", with.begin_kernel);
  with.scale = optional<double>(item, "scale");
  with.scale_by_length = option_or(item, "scale_by_length", with.scale_by_length);
  with.use_causal_windowed = option_or(item, "use_causal_windowed", with.use_causal_windowed);
  with.causal_chunk_length = option_or(item, "causal_chunk_length", with.causal_chunk_length);
  with.causal_window_length = option_or(item, "causal_window_length", with.causal_window_length);
  with.causal_window_decay = optional<double>(item, "causal_window_decay");
  with.causal_padding = option_or(item, "causal_padding", with.causal_padding);
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
  reference::import_kernel_attention(layer, weights);
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
  reference::KernelAttentionInputs inputs;
  inputs.query = leaves["query"];
  inputs.value = leaves["value"];
  ASSERT_EQ(item.has("key"), option_or(item, "separate_key", false)) << item.id;
  if (item.has("key")) inputs.key = leaves["key"] = leaf("key");
  if (item.has("mask")) inputs.attention_mask = item.tensor("mask").to(type);
  inputs.training = option_or(item, "training", false);
  const at::Tensor out = layer(inputs);
  EXPECT_EQ(draws, item.has("W_redrawn") ? 1 : 0) << item.id;
  keras::expect(group, item, "out", out);
  if (!item.has("cot")) return;
  (out * item.tensor("cot").to(type)).sum().backward();
  const auto gradient = [&](const std::string& name, const at::Tensor& of) {
    if (!item.outputs.contains(name)) return;
    keras::expect(group, item, name, of.grad().defined() ? of.grad() : at::zeros_like(of));
  };
  for (const auto& [name, tensor] : leaves) gradient("d" + name, tensor);
  for (const auto& parameter : layer->named_parameters())
    gradient("dw." + parameter.key(), parameter.value());
}

TEST(KerasGolden, Layer) {
  run_group("layer", "keras", [&](Group& group, const Case& item) {
    ASSERT_EQ(item.function, "KernelAttention.call") << item.id;
    compare_layer(group, item, at::kFloat);
    compare_layer(group, item, at::kDouble);
  });
}

}  // namespace
}  // namespace performer::golden::keras
