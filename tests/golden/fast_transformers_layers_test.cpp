// SPDX-License-Identifier: Apache-2.0
// fast-transformers' layers, models and masks, run on its own weights.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <regex>

#include "performer/models/import_weights.h"
#include "performer/references/fast_transformers/layers.h"
#include "tests/golden/fast_transformers_cases.h"

namespace performer::golden::fast_transformers {
namespace {

// The tensors "w.NAME" of a case, by NAME.
std::map<std::string, at::Tensor> weights_of(const Case& item) {
  std::map<std::string, at::Tensor> weights;
  for (const std::string& name : item.inputs) {
    if (name.starts_with("w.")) weights[name.substr(2)] = item.tensor(name);
  }
  return weights;
}

ft::TransformerOptions model_options(const Case& item) {
  expect_known(item,
               {"n_layers", "n_heads", "query_dimensions", "value_dimensions", "feed_forward_dimensions",
                "dropout", "attention_dropout", "activation", "final_normalization", "attention_type",
                "feature_map", "feature_map_options", "self", "cross", "N", "L", "S", "inputs"},
               false);
  const nlohmann::json& given = item.options;
  ft::TransformerOptions options;
  options.n_layers = option_or(given, "n_layers", options.n_layers);
  options.n_heads = option_or(given, "n_heads", options.n_heads);
  options.query_dimensions = option_or(given, "query_dimensions", options.query_dimensions);
  options.value_dimensions = option_or(given, "value_dimensions", options.value_dimensions);
  options.feed_forward_dimensions =
      option_or(given, "feed_forward_dimensions", options.feed_forward_dimensions);
  options.dropout = option_or(given, "dropout", options.dropout);
  options.activation = option_or(given, "activation", options.activation);
  options.final_normalization = option_or(given, "final_normalization", options.final_normalization);
  options.attention_type =
      option_or(given, "attention_type", option_or(given, "self", options.attention_type));
  options.cross_attention_type = option_or(given, "cross", options.cross_attention_type);
  options.attention = attention_options(given);
  const nlohmann::json of_map = given.value("feature_map_options", nlohmann::json::object());
  for (const auto& [name, value] : of_map.items()) {
    EXPECT_TRUE(kMapOptions.contains(name))
        << item.id << ": unknown option of the feature map " << name << " = " << value;
  }
  options.attention.feature_map = map_options(option_or<std::string>(given, "feature_map", "elu"), of_map);
  options.cross_attention = options.attention;
  return options;
}

template <class Model>
void prepare(Model& model, const Case& item, at::ScalarType type) {
  import_weights(*model, weights_of(item));
  model->to(type);
  model->eval();
}

std::map<std::string, at::Tensor> leaves_of(torch::nn::Module& model,
                                            std::map<std::string, at::Tensor> inputs) {
  for (const auto& parameter : model.named_parameters()) inputs["w." + parameter.key()] = parameter.value();
  return inputs;
}

ft::AttentionMask self_mask(const Case& item, const ft::TransformerOptions& options, int64_t length) {
  return mask_of_queries(item, options.attention_type == "causal-linear", length, length);
}

void run_encoder(Group& group, const Case& item, at::ScalarType type) {
  const ft::TransformerOptions options = model_options(item);
  ft::TransformerEncoder model = ft::make_transformer_encoder(options);
  prepare(model, item, type);
  const at::Tensor x = leaf(item, "x", type);
  const at::Tensor out =
      model(x, self_mask(item, options, x.size(1)), lengths_of(item, "lengths", x.size(0), x.size(1)));
  expect_all(group, item, out, leaves_of(*model, {{"x", x}}));
}

void run_recurrent_encoder(Group& group, const Case& item, at::ScalarType type) {
  const at::NoGradGuard no_grad;
  ft::TransformerEncoder model = ft::make_transformer_encoder(model_options(item));
  prepare(model, item, type);
  const at::Tensor x = item.tensor("x").to(type);
  std::vector<ft::AttentionState> state;
  std::vector<at::Tensor> outs;
  for (int64_t i = 0; i < x.size(1); ++i) outs.push_back(model->step(x.select(1, i), state));
  expect_all(group, item, at::stack(outs, 1), {}, {"S_last_layer", "Z_last_layer"});
  const auto [sums, norms] = state_parts(state.back());
  expect_output(group, item, "S_last_layer", sums);
  expect_output(group, item, "Z_last_layer", norms);
}

void run_decoder(Group& group, const Case& item, at::ScalarType type) {
  const ft::TransformerOptions options = model_options(item);
  ft::TransformerDecoder model = ft::make_transformer_decoder(options);
  prepare(model, item, type);
  const at::Tensor x = leaf(item, "x", type), memory = leaf(item, "memory", type);
  const at::Tensor out = model->forward(x, memory, self_mask(item, options, x.size(1)),
                                        lengths_of(item, "lengths", x.size(0), x.size(1)), {},
                                        lengths_of(item, "memory_lengths", x.size(0), memory.size(1)));
  expect_all(group, item, out, leaves_of(*model, {{"x", x}, {"memory", memory}}));
}

void run_recurrent_decoder(Group& group, const Case& item, at::ScalarType type) {
  const at::NoGradGuard no_grad;
  ft::TransformerDecoder model = ft::make_transformer_decoder(model_options(item));
  prepare(model, item, type);
  const at::Tensor x = item.tensor("x").to(type), memory = item.tensor("memory").to(type);
  std::vector<ft::DecoderLayerState> state;
  std::vector<at::Tensor> outs;
  for (int64_t i = 0; i < x.size(1); ++i) {
    outs.push_back(model->step(x.select(1, i), memory, state,
                               lengths_of(item, "memory_lengths", x.size(0), memory.size(1))));
  }
  expect_all(group, item, at::stack(outs, 1), {});
}

ft::AttentionLayer attention_layer(const Case& item, const std::string& kind) {
  expect_known(item, {"N", "L", "S", "n_heads", "d_model", "d_keys", "d_values", "feature_map",
                      "feature_map_options", "inputs"});
  const int64_t heads = item.option<int64_t>("n_heads"), width = item.option<int64_t>("d_model");
  const int64_t keys = option_or(item.options, "d_keys", width / heads),
                values = option_or(item.options, "d_values", width / heads);
  ft::InnerAttentionOptions options = attention_options(item.options);
  options.feature_map = map_options(option_or<std::string>(item.options, "feature_map", "elu"),
                                    item.options.value("feature_map_options", item.options));
  return ft::AttentionLayer(ft::make_attention(kind, options, {heads, keys, values, 0}), width, heads, keys,
                            values);
}

void run_layer_of(Group& group, const Case& item, at::ScalarType type, const std::string& kind) {
  ft::AttentionLayer layer = attention_layer(item, kind);
  prepare(layer, item, type);
  const at::Tensor q = leaf(item, "q", type), k = leaf(item, "k", type), v = leaf(item, "v", type);
  const int64_t batch = q.size(0), length = q.size(1), memory = k.size(1);
  const at::Tensor out =
      layer(q, k, v, mask_of_queries(item, kind == "causal-linear", length, memory),
            lengths_of(item, "query_lengths", batch, length), lengths_of(item, "key_lengths", batch, memory));
  expect_all(group, item, out, leaves_of(*layer, {{"q", q}, {"k", k}, {"v", v}}));
}

// "AttentionLayer(CLASS)".
void run_attention_layer(Group& group, const Case& item, at::ScalarType type) {
  std::smatch parts;
  check<InputError>(std::regex_match(item.function, parts, std::regex(R"(AttentionLayer\((\w+)\))")),
                    "unknown function {}", item.function);
  run_layer_of(group, item, type, attention_kind(parts[1]));
}

TEST(GoldenFastTransformers, Layers) {
  static const std::map<std::string, void (*)(Group&, const Case&, at::ScalarType)> runs = {
      {"TransformerEncoder", run_encoder},
      {"RecurrentTransformerEncoder", run_recurrent_encoder},
      {"TransformerDecoder", run_decoder},
      {"RecurrentTransformerDecoder", run_recurrent_decoder}};
  run_group("layers", kSystem, [&](Group& group, const Case& item) {
    const auto run = runs.find(item.function);
    in_all_types(item, [&](at::ScalarType type) {
      (run == runs.end() ? run_attention_layer : run->second)(group, item, type);
    });
  });
}

// Masks of all ones are made from their sizes, others from their matrix.
ft::AttentionMask full_mask_of(const Case& item) {
  const nlohmann::json rows = item.options.value("N", nlohmann::json());
  const bool all = !item.has("bool_matrix") || item.tensor("bool_matrix").ne(0).all().item<bool>();
  if (!all || !rows.is_number()) return ft::FullMask(item.tensor("bool_matrix").ne(0));
  const auto columns = option_or<int64_t>(item.options, "M", 0);
  return ft::FullMask(rows.get<int64_t>(), columns > 0 ? columns : -1);
}

ft::AttentionMask mask_of(const Case& item) {
  const nlohmann::json& options = item.options;
  if (item.function == "LengthMask") {
    expect_known(item, {"lengths", "max_len"}, false);
    const auto lengths = options.at("lengths").get<std::vector<int64_t>>();
    const auto longest = option_or<int64_t>(options, "max_len", 0);
    return ft::LengthMask(at::tensor(lengths, at::kLong), longest > 0 ? longest : -1);
  }
  if (item.function == "TriangularCausalMask") {
    expect_known(item, {"N"}, false);
    return ft::TriangularCausalMask(options.at("N").get<int64_t>());
  }
  check<InputError>(item.function == "FullMask", "unknown mask {}", item.function);
  return full_mask_of(item);
}

TEST(GoldenFastTransformers, Masks) {
  run_group("masks", kSystem, [&](Group& group, const Case& item) {
    const ft::AttentionMask mask = mask_of(item);
    if (item.has("bool_matrix")) {
      EXPECT_TRUE(at::equal(mask.bool_matrix(), item.tensor("bool_matrix").ne(0))) << item.id;
    }
    for (const auto& [name, output] : item.outputs) {
      at::Tensor actual;
      if (name == "float_matrix") actual = mask.float_matrix();
      if (name == "bool_matrix") actual = mask.bool_matrix().to(at::kInt);
      if (name == "additive_matrix") actual = mask.additive_matrix();
      if (name == "additive_matrix_is_neg_inf") actual = mask.additive_matrix().isneginf().to(at::kInt);
      if (name == "additive_matrix_finite") actual = mask.additive_matrix_finite();
      if (name == "lengths") actual = mask.lengths().to(at::kInt);
      if (actual.defined()) {
        group.expect(item, name, actual);
      } else {
        ADD_FAILURE() << item.id << ": nothing is compared with output " << name;
      }
    }
    EXPECT_EQ(mask.all_ones(), item.entry.value("all_ones", mask.all_ones())) << item.id;
    EXPECT_EQ(mask.lower_triangular(), item.entry.value("lower_triangular", mask.lower_triangular()))
        << item.id;
    const ft::FullMask same(mask.bool_matrix());
    EXPECT_EQ(same.lower_triangular(),
              item.entry.value("fullmask_of_same_matrix_lower_triangular", same.lower_triangular()))
        << item.id;
  });
}

// What the reference refuses and we refuse too, by its description there.
const std::map<std::string, void (*)()>& refused_calls() {
  static const auto attend = [](const char* kind, const ft::AttentionMask& mask) {
    const at::Tensor x = at::ones({1, 3, 2, 4});
    ft::make_attention(kind, {}, {2, 4, 4, 0})
        ->forward({x, x, x, mask, ft::FullMask(1, 3), ft::FullMask(1, 3)});
  };
  static const std::map<std::string, void (*)()> calls = {
      {"LinearAttention with a triangular mask", [] { attend("linear", ft::TriangularCausalMask(3)); }},
      {"CausalLinearAttention with a full mask", [] { attend("causal-linear", ft::FullMask(3)); }},
      {"CausalLinearAttention with L > S",
       [] {
         ft::causal_linear_attention(at::ones({1, 3, 1, 4}), at::ones({1, 2, 1, 4}), at::ones({1, 2, 1, 4}));
       }},
      {"FullMask from a float tensor",
       [] {
         ft::FullMask(at::ones({2, 2}));
       }},
      {"recurrent: batch size changes",
       [] {
         ft::LinearState state;
         for (const int64_t batch : {2, 3}) {
           const at::Tensor x = at::ones({batch, 1, 4});
           ft::recurrent_linear_attention(x, x, x, state);
         }
       }},
  };
  return calls;
}

TEST(GoldenFastTransformers, WhatTheReferenceRefuses) {
  const std::vector<nlohmann::json> all = descriptions();
  if (all.empty()) GTEST_SKIP() << kMissing;
  for (const nlohmann::json& meta : all) {
    for (const auto& error : meta.value("errors", nlohmann::json::array())) {
      const auto call = refused_calls().find(error.at("what"));
      if (error.at("what") == "causal product in float64") continue;  // works here
      ASSERT_TRUE(call != refused_calls().end()) << "unknown refusal: " << error.at("what");
      EXPECT_THROW(call->second(), UsageError) << error.at("what");
    }
  }
}

}  // namespace
}  // namespace performer::golden::fast_transformers
