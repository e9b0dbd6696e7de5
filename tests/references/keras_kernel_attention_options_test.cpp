// SPDX-License-Identifier: Apache-2.0
// Options, weights and errors of the KernelAttention module.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include "performer/base/error.h"
#include "performer/references/keras/kernel_attention.h"

namespace performer::references::keras {
namespace {

using at::Tensor;

KernelAttentionOptions small_layer() {
  KernelAttentionOptions o;
  o.query_width = 6;
  o.num_heads = 2;
  o.key_dim = 4;
  o.num_random_features = 10;
  return o;
}

template <class Change>
void expect_refused(const Change& change) {
  KernelAttentionOptions o = small_layer();
  change(o);
  EXPECT_THROW(validate(o), UsageError);
}

TEST(KernelAttentionOptionsTest, ImpossibleOnesAreRefused) {
  EXPECT_NO_THROW(validate(small_layer()));
  expect_refused([](auto& o) { o.query_width = 0; });
  expect_refused([](auto& o) { o.num_heads = 0; });
  expect_refused([](auto& o) { o.key_dim = -1; });
  expect_refused([](auto& o) { o.output_shape = {3, 0}; });
  expect_refused([](auto& o) { o.dropout = 1; });
  expect_refused([](auto& o) { o.feature_transform = "leakyrelu"; });
  expect_refused([](auto& o) { o.redraw = true, o.num_random_features = 0; });
  expect_refused([](auto& o) { o.use_causal_windowed = o.is_short_seq = true; });
  expect_refused([](auto& o) { o.use_causal_windowed = true, o.causal_chunk_length = 0; });
  expect_refused([](auto& o) { o.use_causal_windowed = true, o.causal_window_length = 0; });
  expect_refused([](auto& o) { o.use_causal_windowed = true, o.causal_padding = "both"; });
  expect_refused([](auto& o) { o.seed = int64_t{1} << 31; });
}

KernelAttentionInputs inputs_of(int64_t tokens) {
  KernelAttentionInputs inputs;
  inputs.query = inputs.value = at::randn({2, tokens, 6});
  return inputs;
}

TEST(KernelAttentionCalls, ThatDoNotFitAreRefused) {
  KernelAttention layer(small_layer());
  KernelAttentionInputs inputs = inputs_of(5);
  EXPECT_NO_THROW(layer(inputs));
  inputs.value = at::randn({2, 5, 7});
  EXPECT_THROW(layer(inputs), UsageError);
  inputs.value = at::randn({1, 5, 6});
  EXPECT_THROW(layer(inputs), UsageError);
  inputs = inputs_of(5);
  inputs.key = at::randn({2, 4, 6});
  EXPECT_THROW(layer(inputs), UsageError);
  inputs = inputs_of(5);
  inputs.attention_mask = at::ones({2, 4});
  EXPECT_THROW(layer(inputs), UsageError);
  Cache cache;
  inputs = inputs_of(5);
  inputs.cache = &cache;
  EXPECT_THROW(layer(inputs), UsageError);  // no windows
}

TEST(KernelAttentionCalls, CachesAreRestricted) {
  const auto refused = [](auto change, bool training = false) {
    KernelAttentionOptions o = small_layer();
    o.use_causal_windowed = true;
    o.causal_window_decay = 0.9;
    o.feature_transform = "relu";
    change(o);
    KernelAttention layer(o);
    Cache cache;
    KernelAttentionInputs inputs = inputs_of(5);
    inputs.cache = &cache;
    inputs.training = training;
    try {
      layer(inputs);
      return false;
    } catch (const UsageError&) {
      return true;
    }
  };
  EXPECT_FALSE(refused([](auto&) {}));
  EXPECT_TRUE(refused([](auto&) {}, true));
  EXPECT_TRUE(refused([](auto& o) { o.use_causal_windowed = false; }));
  EXPECT_TRUE(refused([](auto& o) { o.begin_kernel = 2; }));
  EXPECT_TRUE(refused([](auto& o) { o.feature_transform = "expplus"; }));
  EXPECT_TRUE(refused([](auto& o) { o.causal_window_decay = std::nullopt; }));
  EXPECT_TRUE(refused([](auto& o) { o.causal_window_decay = 1.5; }));
}

TEST(KernelAttentionCalls, IncompleteChunksNeedPadding) {
  KernelAttentionOptions o = small_layer();
  o.use_causal_windowed = true;
  o.causal_chunk_length = 4;
  EXPECT_THROW(KernelAttention{o}(inputs_of(5)), UsageError);
  for (const char* padding : {"left", "right"}) {
    o.causal_padding = padding;
    EXPECT_NO_THROW(KernelAttention{o}(inputs_of(5))) << padding;
  }
}

TEST(KernelAttentionCalls, DropoutIsForTrainingOnly) {
  KernelAttentionOptions o = small_layer();
  o.dropout = 0.5;
  o.begin_kernel = 2;
  KernelAttention layer(o);
  KernelAttentionInputs inputs = inputs_of(5);
  EXPECT_FALSE(at::equal(layer(inputs), layer(inputs)));
  inputs.training = false;
  const Tensor still = layer(inputs);
  EXPECT_TRUE(at::equal(layer(inputs), still));
  layer->eval();
  inputs.training = {};
  EXPECT_TRUE(at::equal(layer(inputs), still));
}

TEST(KernelAttentionWeights, ComeByTheReferencesNames) {
  const KernelAttentionOptions o = small_layer();
  KernelAttention from(o), to(o);
  std::map<std::string, Tensor> weights;
  int number = 0;
  for (const auto& item : from->named_parameters()) {  // both ways of writing a name
    std::string name = item.key();
    if (++number % 2 == 0) std::replace(name.begin(), name.end(), '.', '/');
    weights[(number % 2 == 0 ? "encoder/kernel_attention/" : "w.") + name + (number % 2 == 0 ? ":0" : "")] =
        item.value().detach();
  }
  const Tensor w = at::randn({10, 4});
  weights["W"] = w;
  import_kernel_attention(to, weights);
  for (const auto& item : from->named_parameters()) {
    EXPECT_TRUE(at::equal(item.value(), to->named_parameters()[item.key()])) << item.key();
  }
  EXPECT_TRUE(at::equal(to->projection(), w));
  weights.erase("w.query.kernel");
  EXPECT_THROW(import_kernel_attention(to, weights), InputError);
}

// Denominators of either sign (identity features) can magnify the rounding of heads without limit.
TEST(KernelAttentionOptionsTest, ResultsAreRoundedOnce) {
  KernelAttentionOptions o = small_layer();
  o.feature_transform = "identity";
  KernelAttention layer(o);
  KernelAttentionInputs inputs;
  inputs.query = at::randn({2, 5, 6});
  inputs.value = at::randn({2, 7, 6});
  inputs.attention_mask = at::ones({2, 7});
  const at::NoGradGuard no_grad;
  const Tensor single = layer(inputs);
  EXPECT_EQ(single.scalar_type(), at::kFloat);
  layer->to(at::kDouble);
  for (Tensor* x : {&inputs.query, &inputs.value, &*inputs.attention_mask}) *x = x->to(at::kDouble);
  EXPECT_TRUE(at::equal(single, layer(inputs).to(at::kFloat)));
}

}  // namespace
}  // namespace performer::references::keras
