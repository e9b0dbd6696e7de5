// SPDX-License-Identifier: Apache-2.0
// Models over every attention kind: batch and recurrent forms agree, padding changes nothing, mirrors share,
// observers see.
#include "performer/references/fast_transformers/layers.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/transformercoder.h>
#include <torch/nn/modules/transformerlayer.h>
#include <torch/types.h>

#include <gmock/gmock.h>

#include "performer/base/error.h"
#include "performer/models/import_weights.h"
#include "performer/references/fast_transformers/layers_weights.h"
#include "tests/references/fast_transformers_layers.h"

namespace performer::references::fast_transformers {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

NamedTensors named(const torch::nn::Module& module) {
  NamedTensors tensors;
  for (const auto& item : module.named_parameters()) tensors[item.key()] = item.value().detach();
  for (const auto& item : module.named_buffers()) tensors[item.key()] = item.value();
  return tensors;
}

TEST(TransformerLayers, HaveTheLibrarysDefaults) {
  const TransformerEncoder model = make_transformer_encoder({});
  EXPECT_EQ(model->layers().size(), 4);
  const auto parameters = named(*model);
  EXPECT_EQ(parameters.at("layers.3.attention.query_projection.weight").sizes(), at::IntArrayRef({256, 256}));
  EXPECT_EQ(parameters.at("layers.0.linear1.weight").sizes(), at::IntArrayRef({1024, 256}));
  EXPECT_TRUE(parameters.contains("norm.weight"));
  EXPECT_EQ(model->layers()[0]->attention()->attention()->kind(), "full");
  EXPECT_DOUBLE_EQ(model->layers()[0]->parts().dropout, 0.1);
  EXPECT_FALSE(model->layers()[0]->parts().gelu);
}

// LibTorch's own encoder and decoder are the same functions of the same weights.
TEST(TransformerLayers, AreLibTorchsOnItsWeights) {
  for (const bool gelu : {false, true}) {
    torch::nn::TransformerEncoderLayerOptions layer(12, 2);
    layer.dim_feedforward(20).dropout(0);
    gelu ? layer.activation(torch::kGELU) : layer.activation(torch::kReLU);
    torch::nn::TransformerEncoder theirs(torch::nn::TransformerEncoderOptions(layer, 2));
    TransformerOptions options = small_options("full");
    options.activation = gelu ? "gelu" : "relu";
    options.final_normalization = false;
    TransformerEncoder ours = ready(make_transformer_encoder(options));
    theirs->to(at::kDouble);
    theirs->eval();
    import_weights(*ours, from_torch_transformer(named(*theirs)));
    const at::Tensor x = normal({3, 5, 12}, 1);
    const LengthMask valid = lengths({5, 2, 4}, 5);
    const at::Tensor expected =
        theirs(x.transpose(0, 1), TriangularCausalMask(5).additive_matrix(at::kDouble),
               valid.bool_matrix().logical_not());
    EXPECT_LT(largest_error(ours(x, TriangularCausalMask(5), valid), expected.transpose(0, 1)), 1e-12);
  }
}

TEST(TransformerLayers, DecodersAreLibTorchsOnItsWeights) {
  torch::nn::TransformerDecoderLayerOptions layer(12, 2);
  layer.dim_feedforward(20).dropout(0);
  torch::nn::TransformerDecoder theirs(torch::nn::TransformerDecoderOptions(layer, 2).norm(
      torch::nn::AnyModule(torch::nn::LayerNorm(torch::nn::LayerNormOptions({12})))));
  TransformerDecoder ours = ready(make_transformer_decoder(small_options("full")));
  theirs->to(at::kDouble);
  theirs->eval();
  import_weights(*ours, from_torch_transformer(named(*theirs)));
  const at::Tensor x = normal({2, 5, 12}, 1), memory = normal({2, 7, 12}, 2);
  const LengthMask there = lengths({7, 3}, 7);
  const at::Tensor expected =
      theirs(x.transpose(0, 1), memory.transpose(0, 1), TriangularCausalMask(5).additive_matrix(at::kDouble),
             at::Tensor(), at::Tensor(), there.bool_matrix().logical_not());
  EXPECT_LT(largest_error(ours->forward(x, memory, TriangularCausalMask(5), {}, {}, there),
                          expected.transpose(0, 1)),
            1e-12);
}

struct Variant {
  std::string type, map = "favor";
};

TEST(TransformerLayers, StateFedBackIsOnePass) {
  for (const Variant& variant : std::vector<Variant>{{"causal-linear"},
                                                     {"causal-linear", "elu"},
                                                     {"causal-linear", "generalized"},
                                                     {"full"},
                                                     {"aft-simple"}}) {
    TransformerOptions options = small_options(variant.type);
    options.attention.feature_map.map = variant.map;
    TransformerEncoder model = ready(make_transformer_encoder(options));
    const at::NoGradGuard no_grad;
    const at::Tensor x = normal({2, 37, 12}, 1);
    const at::Tensor expected = model(x, TriangularCausalMask(37));
    std::vector<AttentionState> state;
    std::vector<at::Tensor> outs;
    for (int64_t i = 0; i < 37; ++i) outs.push_back(model->step(x.select(1, i), state));
    EXPECT_LT(largest_error(at::stack(outs, 1), expected), 1e-9) << variant.type << " " << variant.map;
    EXPECT_GT(largest_error(outs.back(), outs.front()), 1e-2);
  }
}

TEST(TransformerLayers, DecoderStateFedBackIsOnePass) {
  for (const std::string cross : {"linear", "full", "aft-simple"}) {
    for (const std::string self : {"causal-linear", "full"}) {
      TransformerOptions options = small_options(self);
      options.cross_attention_type = cross;
      TransformerDecoder model = ready(make_transformer_decoder(options));
      const at::NoGradGuard no_grad;
      const at::Tensor x = normal({2, 6, 12}, 1), memory = normal({2, 9, 12}, 2);
      const LengthMask there = lengths({9, 4}, 9);
      const at::Tensor expected = model->forward(x, memory, TriangularCausalMask(6), {}, {}, there);
      std::vector<DecoderLayerState> state;
      for (int64_t i = 0; i < 6; ++i) {
        // Only the first step may need the memory.
        const at::Tensor out = model->step(x.select(1, i), i == 0 ? memory : at::Tensor(), state, there);
        EXPECT_LT(largest_error(out, expected.select(1, i)), 1e-9) << self << " " << cross << " " << i;
      }
    }
  }
}

TEST(TransformerLayers, PaddingChangesNothing) {
  for (const std::string type : {"linear", "causal-linear", "full", "aft-simple", "aft-full", "local",
                                 "exact-topk", "conditional-full:linear"}) {
    TransformerEncoder model = ready(make_transformer_encoder(small_options(type)));
    const at::NoGradGuard no_grad;
    const at::Tensor x = normal({2, 8, 12}, 1);
    for (const bool causal : {false, true}) {
      if ((causal && type == "linear") || (!causal && type == "causal-linear")) continue;
      const auto mask = [&](int64_t length) {
        return causal ? AttentionMask(TriangularCausalMask(length)) : AttentionMask(FullMask(length));
      };
      const at::Tensor padded = model(x, mask(8), lengths({8, 5}, 8));
      const at::Tensor alone = model(x.narrow(0, 1, 1).narrow(1, 0, 5), mask(5));
      EXPECT_LT(largest_error(padded.narrow(0, 1, 1).narrow(1, 0, 5), alone), 1e-12) << type << " " << causal;
      if (!causal) continue;
      at::Tensor changed = x.clone();
      changed.narrow(1, 5, 3).fill_(2);
      EXPECT_LT(largest_error(model(changed, mask(8)).narrow(1, 0, 5), model(x, mask(8)).narrow(1, 0, 5)),
                1e-12)
          << type;
    }
  }
}

TEST(TransformerLayers, RefuseMasksTheyCannotFollow) {
  const at::Tensor x = normal({1, 4, 12}, 1);
  const at::Tensor scattered = at::tensor({1, 0, 1, 1}).to(at::kBool).expand({4, 4});
  for (const std::string type : {"linear", "causal-linear", "aft-simple"}) {
    TransformerEncoder model = ready(make_transformer_encoder(small_options(type)));
    EXPECT_THROW(model(x, FullMask(scattered)), UsageError) << type;
    EXPECT_THROW(
        model(x,
              type == "causal-linear" ? AttentionMask(TriangularCausalMask(4)) : AttentionMask(FullMask(4)),
              lengths({4}, 5)),
        UsageError)
        << type;
  }
  EXPECT_THROW(ready(make_transformer_encoder(small_options("linear")))->forward(x, TriangularCausalMask(4)),
               UsageError);
  EXPECT_THROW(ready(make_transformer_encoder(small_options("causal-linear")))->forward(x), UsageError);
  for (const std::string type : {"full", "aft-full", "local", "exact-topk"}) {
    TransformerEncoder model = ready(make_transformer_encoder(small_options(type)));
    EXPECT_NO_THROW(model(x, FullMask(scattered))) << type;
    EXPECT_THROW(model(x, FullMask(3)), UsageError) << type;
  }
  for (const std::string type : {"conditional-full:linear", "aft-full", "local", "exact-topk"}) {
    TransformerEncoder model = ready(make_transformer_encoder(small_options(type)));
    std::vector<AttentionState> state;
    EXPECT_THROW(model->step(x.select(1, 0), state), UsageError) << type;
  }
}

TEST(TransformerLayers, StepsRefuseAnotherBatchSize) {
  for (const std::string type : {"linear", "full", "aft-simple"}) {
    TransformerEncoder model = ready(make_transformer_encoder(small_options(type)));
    std::vector<AttentionState> state;
    model->step(normal({2, 12}, 1), state);
    EXPECT_THROW(model->step(normal({3, 12}, 1), state), UsageError) << type;
  }
}

TEST(TransformerLayers, ConditionalFullChangesKindBeyondItsLimit) {
  TransformerOptions options = small_options("conditional-full:linear");
  options.attention.length_limit = 5;
  TransformerEncoder both = ready(make_transformer_encoder(options));
  options.attention_type = "full";
  TransformerEncoder full = mirror(both, options);
  options.attention_type = "linear";
  TransformerEncoder linear = mirror(both, options);
  const at::Tensor x = normal({2, 6, 12}, 1), shorter = x.narrow(1, 0, 5);
  EXPECT_EQ(largest_error(both(shorter), full(shorter)), 0);
  EXPECT_EQ(largest_error(both(x), linear(x)), 0);
  EXPECT_GT(largest_error(both(x), full(x)), 1e-3);
  EXPECT_TRUE(named(*both).contains("layers.1.attention.inner_attention.other_attention.feature_map.omega"));
}

TEST(TransformerLayers, MirrorsShareParametersGradientsAndProjections) {
  TransformerOptions options = small_options("causal-linear");
  TransformerEncoder model = ready(make_transformer_encoder(options));
  options.attention_type = "linear";
  TransformerEncoder other = mirror(model, options);
  const auto ours = named(*model), theirs = named(*other);
  ASSERT_EQ(ours.size(), theirs.size());
  for (const auto& [name, tensor] : ours) EXPECT_EQ(tensor.data_ptr(), theirs.at(name).data_ptr()) << name;
  EXPECT_TRUE(ours.contains("layers.0.attention.inner_attention.feature_map.omega"));
  other(normal({1, 4, 12}, 1)).sum().backward();
  EXPECT_TRUE(model->parameters().front().grad().defined());
  options = small_options("conditional-full:linear");
  TransformerEncoder random = ready(make_transformer_encoder(options));
  options.attention_type = "linear";
  const auto mirrored = named(*mirror(random, options));
  EXPECT_EQ(
      named(*random).at("layers.0.attention.inner_attention.other_attention.feature_map.omega").data_ptr(),
      mirrored.at("layers.0.attention.inner_attention.feature_map.omega").data_ptr());
}

TEST(TransformerLayers, DecodersMirrorToo) {
  TransformerOptions options = small_options("full");
  TransformerDecoder model = ready(make_transformer_decoder(options));
  options.attention_type = "causal-linear";
  options.cross_attention_type = "linear";
  TransformerDecoder other = mirror(model, options);
  const auto ours = named(*model), theirs = named(*other);
  for (const auto& [name, tensor] : ours) EXPECT_EQ(tensor.data_ptr(), theirs.at(name).data_ptr()) << name;
  EXPECT_EQ(other->layers()[0]->cross_attention()->attention()->kind(), "linear");
  EXPECT_FALSE(other->is_training());
}

TEST(TransformerLayers, ObserversSeeEveryAttention) {
  TransformerDecoder model = ready(make_transformer_decoder(small_options("full")));
  std::vector<AttentionEvent> events;
  model->observe([&](const AttentionEvent& event) { events.push_back(event); });
  const at::Tensor x = normal({2, 5, 12}, 1), memory = normal({2, 7, 12}, 2);
  model->forward(x, memory, TriangularCausalMask(5));
  ASSERT_EQ(events.size(), 4);
  EXPECT_EQ(events[0].layer, "layers.0.self_attention");
  EXPECT_EQ(events[3].layer, "layers.1.cross_attention");
  const AttentionEvent& cross = events[3];
  EXPECT_EQ(cross.query.sizes(), at::IntArrayRef({2, 5, 2, 6}));
  EXPECT_EQ(cross.key.sizes(), at::IntArrayRef({2, 7, 2, 6}));
  EXPECT_LT(largest_error(at::einsum("nhls,nshd->nlhd", {cross.weights, cross.value}), cross.output), 1e-12);
  EXPECT_EQ(events[0].weights[0][0][0][1].item<double>(), 0);  // causal
  events.clear();
  std::vector<DecoderLayerState> state;
  model->step(x.select(1, 0), memory, state);
  ASSERT_EQ(events.size(), 4);
  EXPECT_TRUE(events[0].recurrent);
  EXPECT_FALSE(events[1].key.defined());
  events.clear();
  model->observe({});
  model->forward(x, memory, TriangularCausalMask(5));
  EXPECT_TRUE(events.empty());
}

TEST(TransformerLayers, DropoutOnlyInTraining) {
  TransformerOptions options = small_options("full");
  options.dropout = 0;
  options.attention.attention_dropout = 0.5;
  for (const bool of_layer : {false, true}) {
    if (of_layer) std::swap(options.dropout, options.attention.attention_dropout);
    TransformerEncoder model = make_transformer_encoder(options);
    const at::Tensor x = normal({2, 6, 12}, 1).to(at::kFloat);
    EXPECT_GT(largest_error(model(x), model(x)), 1e-3);
    model->eval();
    EXPECT_EQ(largest_error(model(x), model(x)), 0);
  }
}

TEST(TransformerLayers, OptionsByName) {
  TransformerOptions options;
  set_field("transformer", options, "attention_type", "exact-topk");
  set_field("attention", options.attention, "topk", "3");
  EXPECT_EQ(make_transformer_encoder(options)->layers()[0]->attention()->attention()->kind(), "exact-topk");
  EXPECT_THROW(set_field("transformer", options, "n_layer", "3"), UsageError);
  options.n_heads = 0;
  EXPECT_THROW(make_transformer_encoder(options), UsageError);
  options = {};
  options.activation = "tanh";
  EXPECT_THROW(make_transformer_encoder(options), UsageError);
  options = small_options("linear");
  options.attention.feature_map.map = "hexagonal";
  EXPECT_THROW(make_transformer_encoder(options), UsageError);
}

TEST(TransformerLayers, UnknownKindsAreNamed) {
  EXPECT_THAT([] { make_transformer_encoder(small_options("casual-linear")); },
              ThrowsMessage<UsageError>(HasSubstr("did you mean 'causal-linear'")));
  EXPECT_THROW(make_attention("linear:full", {}, {}), UsageError);
  EXPECT_THROW(make_attention("conditional-full", {}, {}), UsageError);
  EXPECT_THROW(make_attention("full,linear", {}, {}), UsageError);
  EXPECT_THROW(make_attention("conditional-full:full,linear", {}, {}), UsageError);
}

// The first value, whatever the query.
class FirstValue : public InnerAttention {
 public:
  FirstValue() : InnerAttention("first-value") {}
  at::Tensor forward(const InnerInputs& in) override {
    return in.value.narrow(1, 0, 1).expand({-1, in.query.size(1), -1, -1});
  }
};

TEST(TransformerLayers, KindsCanBeAdded) {
  register_attention("first-value", [](const AttentionRequest&) { return std::make_shared<FirstValue>(); });
  TransformerOptions options = small_options("conditional-full:first-value");
  options.attention.length_limit = 0;
  TransformerEncoder model = ready(make_transformer_encoder(options));
  at::Tensor x = normal({1, 4, 12}, 1);
  const at::Tensor before = model(x).select(1, 3).clone();
  x.select(1, 1).fill_(3);
  EXPECT_EQ(largest_error(model(x).select(1, 3), before), 0);
  EXPECT_THROW(register_attention("a:b", {}), UsageError);
}

TEST(TransformerLayers, OtherLibrariesNames) {
  const at::Tensor one = at::ones({6, 2});
  const NamedTensors merged =
      from_torch_transformer({{"layers.0.self_attn.in_proj_weight", at::arange(6).unsqueeze(1)},
                              {"layers.0.self_attn.out_proj.bias", one},
                              {"layers.0.norm1.weight", one},
                              {"layers.0.self_attn.softmax_temp", one}});
  EXPECT_EQ(merged.size(), 5);
  EXPECT_TRUE(at::equal(merged.at("layers.0.attention.key_projection.weight").flatten(),
                        at::tensor({2, 3}, at::kLong)));
  EXPECT_TRUE(merged.contains("layers.0.attention.out_projection.bias"));
  EXPECT_THROW(from_torch_transformer({{"layers.0.self_attn.in_proj_bias", at::ones({7})}}), InputError);
  EXPECT_TRUE(from_torch_transformer(
                  {{"layers.0.self_attn.q_proj_weight", one}, {"layers.0.multihead_attn.v_proj_weight", one}})
                  .contains("layers.0.cross_attention.value_projection.weight"));

  const NamedTensors bert = {{"layer.10.attention.self.query.weight", one},
                             {"layer.10.attention.output.dense.bias", one},
                             {"layer.10.attention.output.LayerNorm.bias", one},
                             {"layer.10.intermediate.dense.weight", one},
                             {"layer.10.output.dense.weight", one},
                             {"layer.10.output.LayerNorm.weight", one}};
  std::vector<std::string> names;
  for (const auto& [name, tensor] : from_bert_encoder(bert)) names.push_back(name);
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("layers.10.attention.query_projection.weight",
                                                     "layers.10.attention.out_projection.bias",
                                                     "layers.10.norm1.bias", "layers.10.linear1.weight",
                                                     "layers.10.linear2.weight", "layers.10.norm2.weight"));
  NamedTensors global = bert;
  global["layer.10.attention.self.query_global.weight"] = one;
  EXPECT_EQ(from_longformer_encoder(global).size(), bert.size());
}

}  // namespace
}  // namespace performer::references::fast_transformers
