// SPDX-License-Identifier: Apache-2.0
// The attention module against plain dense formulas of each kind, computed in double from the module's own
// weights.
#include "performer/nn/attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <map>

#include "performer/base/error.h"
#include "performer/nn/positions.h"

namespace performer::nn {
namespace {

struct Variant {
  std::string kind;
  std::string projection = "auto";
  bool causal = true;
  std::string positions = "rotary";
  bool options = false;  // qk_norm and learned_temperature
};

std::string name_of(const ::testing::TestParamInfo<Variant>& info) {
  std::string name = info.param.kind + "_" + info.param.projection +
                     (info.param.causal ? "_causal_" : "_both_") + info.param.positions +
                     (info.param.options ? "_options" : "");
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

ModelConfig model_config(const Variant& variant) {
  ModelConfig model;
  model.width = 24;
  model.heads = 3;
  model.head_size = 10;
  model.positions = variant.positions;
  model.objective = variant.causal ? "causal" : "masked";
  return model;
}

AttentionConfig attention_config(const Variant& variant) {
  AttentionConfig attention;
  attention.kind = variant.kind;
  if (has_option(find_kind(variant.kind), "features")) {
    attention.set("projection", variant.projection).set("features", 20);
  }
  attention.seed = 3;
  attention.qk_norm = attention.learned_temperature = variant.options;
  return attention;
}

// Weights of attention from row i to key j, [B, H, T, T] before masks and normalisation.
at::Tensor scores(const Variant& variant, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& projection) {
  const double d = static_cast<double>(q.size(-1));
  if (variant.kind == "exact") return at::exp(at::einsum("bihd,bjhd->bhij", {q, k}) / std::sqrt(d));
  const auto features = [&](const at::Tensor& x) {
    if (variant.kind == "favor-relu") {
      return at::relu(projection.defined() ? at::einsum("bthd,hmd->bthm", {x, projection}) : x) + 1e-3;
    }
    const at::Tensor scaled = x * std::pow(d, -0.25);
    const at::Tensor u = at::einsum("bthd,hmd->bthm", {scaled, projection});
    return at::exp(u - scaled.square().sum(-1, true) / 2);
  };
  return at::einsum("bihm,bjhm->bhij", {features(q), features(k)});
}

// The whole layer in double. key_mask [B, T] bool.
at::Tensor expected_output(MultiHeadAttention& layer, const Variant& variant, const at::Tensor& x,
                           const at::Tensor& positions, const at::Tensor& key_mask) {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> weights;
  for (const auto& item : layer->named_parameters()) weights[item.key()] = item.value().to(at::kDouble);
  for (const auto& item : layer->named_buffers()) weights[item.key()] = item.value().to(at::kDouble);
  const auto heads = [&](const char* name) {
    return at::matmul(x.to(at::kDouble), weights[std::string(name) + ".weight"].t()).unflatten(-1, {3, 10});
  };
  at::Tensor q = heads("query"), k = heads("key"), v = heads("value");
  if (variant.options) {
    q = q / (q.square().mean(-1, true) + 1e-6).sqrt() * weights["query_gain"] *
        weights["temperature"].unsqueeze(-1);
    k = k / (k.square().mean(-1, true) + 1e-6).sqrt() * weights["key_gain"];
  }
  if (variant.positions == "rotary") {
    const at::Tensor table = rotary_table(positions, 10, at::kDouble);
    q = rotate(q, table);
    k = rotate(k, table);
  }
  at::Tensor mixed = v;
  if (variant.kind != "identity") {
    at::Tensor weight =
        scores(variant, q, k, weights["kind.projection"]) * key_mask.unsqueeze(1).unsqueeze(1);
    if (variant.causal) weight = weight.tril();
    mixed = at::einsum("bhij,bjhe->bihe", {weight / weight.sum(-1, true), v});
  }
  mixed = mixed.masked_fill(~key_mask.unsqueeze(-1).unsqueeze(-1), 0);
  return at::matmul(mixed.flatten(-2), weights["out.weight"].t());
}

MultiHeadAttention make_layer(const Variant& variant) {
  torch::manual_seed(1);
  MultiHeadAttention layer(model_config(variant), attention_config(variant), 2);
  const at::NoGradGuard no_grad;
  for (auto& item : layer->named_parameters()) {  // gains and temperatures that matter
    if (item.value().dim() <= 2 && item.key().find('.') == std::string::npos) item.value().uniform_(0.5, 1.5);
  }
  return layer;
}

class AttentionKinds : public ::testing::TestWithParam<Variant> {};

TEST_P(AttentionKinds, PaddedRowsFollowTheFormula) {
  MultiHeadAttention layer = make_layer(GetParam());
  const at::Tensor x = at::randn({2, 13, 24});
  SequenceBatch batch;
  batch.positions = at::arange(13).expand({2, 13});
  batch.key_mask = at::ones({2, 13}, at::kBool);
  batch.key_mask->index_put_({1, at::indexing::Slice(9, at::indexing::None)}, false);
  batch.key_mask->index_put_({0, 4}, false);  // a hole, not only padding at the end
  const at::Tensor y = layer(x, batch);
  const at::Tensor expected = expected_output(layer, GetParam(), x, batch.positions, *batch.key_mask);
  EXPECT_TRUE(at::allclose(y.to(at::kDouble), expected, 1e-4, 1e-5)) << (y - expected).abs().max();
  y.sum().backward();
  for (const auto& item : layer->named_parameters()) {
    if (item.value().grad().defined()) {
      EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
    }
  }
}

TEST_P(AttentionKinds, PackedSegmentsFollowTheFormula) {
  MultiHeadAttention layer = make_layer(GetParam());
  const std::vector<int64_t> bounds = {0, 5, 5, 6, 17};  // an empty segment among them
  const at::Tensor x = at::randn({1, 17, 24});
  SequenceBatch batch;
  std::vector<at::Tensor> positions, expected;
  for (size_t i = 0; i + 1 < bounds.size(); ++i) positions.push_back(at::arange(bounds[i + 1] - bounds[i]));
  batch.positions = at::cat(positions).unsqueeze(0);
  batch.cu_seqlens = at::tensor(bounds, at::kLong);
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    const int64_t length = bounds[i + 1] - bounds[i];
    if (length == 0) continue;
    expected.push_back(expected_output(layer, GetParam(), x.narrow(1, bounds[i], length),
                                       positions[i].unsqueeze(0), at::ones({1, length}, at::kBool)));
  }
  const at::Tensor y = layer(x, batch);
  EXPECT_TRUE(at::allclose(y.to(at::kDouble), at::cat(expected, 1), 1e-4, 1e-5));
}

class CausalAttentionKinds : public AttentionKinds {};

TEST_P(CausalAttentionKinds, StepsEqualTheFullForward) {
  MultiHeadAttention layer = make_layer(GetParam());
  const at::NoGradGuard no_grad;
  const int64_t length = 40;  // beyond the first capacity of the exact kind's cache, twice
  const at::Tensor x = at::randn({2, length, 24});
  SequenceBatch batch;
  batch.positions = at::arange(length).expand({2, length});
  const at::Tensor full = layer(x, batch);
  const std::unique_ptr<Cache> cache = layer->begin(2);
  for (int64_t t = 0; t < length; ++t) {
    const at::Tensor y = layer->step(x.select(1, t), at::full({2}, t, at::kLong), *cache);
    EXPECT_TRUE(at::allclose(y, full.select(1, t), 1e-4, 1e-5)) << "token " << t;
  }
}

const std::vector<Variant> kCausal = {
    {"favor-softmax"}, {"favor-softmax", "orthogonal", true, "rotary", true},
    {"favor-relu"},    {"favor-relu", "orthogonal", true, "none", true},
    {"exact"},         {"identity"}};
INSTANTIATE_TEST_SUITE_P(Causal, AttentionKinds, ::testing::ValuesIn(kCausal), name_of);
INSTANTIATE_TEST_SUITE_P(Causal, CausalAttentionKinds, ::testing::ValuesIn(kCausal), name_of);
INSTANTIATE_TEST_SUITE_P(Bidirectional, AttentionKinds,
                         ::testing::Values(Variant{"favor-softmax", "iid", false, "none"},
                                           Variant{"favor-relu", "none", false},
                                           Variant{"exact", "auto", false, "none", true},
                                           Variant{"identity", "auto", false}),
                         name_of);

TEST(Attention, RedrawIsReproducibleAndNamedByLayer) {
  const Variant variant{"favor-softmax"};
  MultiHeadAttention layer(model_config(variant), attention_config(variant), 2);
  MultiHeadAttention other(model_config(variant), attention_config(variant), 3);
  const at::Tensor buffer = layer->named_buffers()["kind.projection"];
  ASSERT_EQ(buffer.sizes(), (at::IntArrayRef{3, 20, 10}));
  const at::Tensor first = buffer.clone();
  EXPECT_FALSE(at::equal(first, other->named_buffers()["kind.projection"]));
  EXPECT_FALSE(at::equal(first[0], first[1])) << "heads share a projection";
  layer->redraw(1);
  EXPECT_FALSE(at::equal(first, buffer)) << "redraw happens in place";
  layer->redraw(0);
  EXPECT_TRUE(at::equal(first, buffer));
}

TEST(Attention, KindsWithoutProjectionHaveNoBuffer) {
  for (const char* kind : {"favor-relu", "exact", "identity"}) {
    const Variant variant{kind};
    MultiHeadAttention layer(model_config(variant), attention_config(variant), 0);
    EXPECT_EQ(layer->buffers().size(), 0u) << kind;
    EXPECT_NO_THROW(layer->redraw(4));
  }
}

TEST(Attention, SoftmaxConvergesToExactWithMoreFeatures) {
  const Variant exact{"exact", "auto", false, "none"};
  Variant favor = exact;
  favor.kind = "favor-softmax";
  torch::manual_seed(1);
  MultiHeadAttention reference(model_config(exact), attention_config(exact), 0);
  // Half the usual size: the error grows like exp(norm(q + k)^2), and unit queries and keys would need far
  // more features.
  const at::Tensor x = 0.5 * at::randn({1, 50, 24});
  SequenceBatch batch;
  batch.positions = at::arange(50).unsqueeze(0);
  const at::NoGradGuard no_grad;
  const at::Tensor expected = reference(x, batch);
  const auto error = [&](int64_t features) {
    AttentionConfig attention = attention_config(favor);
    attention.set("features", features);
    MultiHeadAttention layer(model_config(favor), attention, 0);
    auto targets = layer->named_parameters();
    for (const auto& item : reference->named_parameters()) targets[item.key()].copy_(item.value());
    return (layer(x, batch) - expected).norm().item<double>() / expected.norm().item<double>();
  };
  const double few = error(16), many = error(4096);
  EXPECT_LT(many, 0.05);
  EXPECT_LT(many, few / 4);  // the error falls with the root of the number: 16 times here
}

TEST(Attention, MaskedModelsRefuseToStep) {
  const Variant variant{"favor-relu", "auto", false};
  MultiHeadAttention layer(model_config(variant), attention_config(variant), 0);
  EXPECT_THROW(layer->begin(1), UsageError);
}

// So many tokens take one product of the joined weights in float32, and three in double.
TEST(Attention, OneProductOfManyTokensIsThatOfThree) {
  for (const char* positions : {"rotary", "none"}) {
    for (const bool bias : {false, true}) {
      ModelConfig model = model_config({"favor-relu", "auto", true, positions});
      model.attention_bias = bias;
      torch::manual_seed(2);
      MultiHeadAttention layer(model, AttentionConfig{}, 0);
      SequenceBatch batch;
      batch.positions = at::arange(350).expand({2, 350});
      const at::Tensor x = at::randn({2, 350, 24}), gradient = at::randn({2, 350, 24});
      const auto run = [&](at::ScalarType type) {
        layer->to(type);
        layer->zero_grad();
        const at::Tensor input = x.to(type).requires_grad_();
        const at::Tensor out = layer(input, batch);
        out.backward(gradient.to(type));
        std::map<std::string, at::Tensor> all{{"output", out.detach()}, {"input", input.grad()}};
        for (const auto& item : layer->named_parameters()) all[item.key()] = item.value().grad().clone();
        return all;
      };
      const auto exact = run(at::kDouble), found = run(at::kFloat);
      for (const auto& [name, expected] : exact) {
        const double error = (found.at(name).to(at::kDouble) - expected).abs().max().item<double>();
        EXPECT_LE(error, 1e-5 * (1 + expected.abs().max().item<double>())) << positions << " " << name;
      }
    }
  }
}

}  // namespace
}  // namespace performer::nn
