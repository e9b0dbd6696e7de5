// SPDX-License-Identifier: Apache-2.0
// Options, weights and errors of the KernelAttention module.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include "performer/base/error.h"
#include "performer/references/keras/kernel_attention.h"

namespace performer::nn::kernel_attention_options_test {
namespace {

using at::Tensor;

KernelAttentionOptions small() {
  KernelAttentionOptions o;
  o.query_width = 6;
  o.num_heads = 2;
  o.key_dim = 4;
  o.num_random_features = 10;
  return o;
}

template <class Change>
void expect_refused(const Change& change, bool also_compatible = true) {
  KernelAttentionOptions o = small();
  change(o);
  EXPECT_THROW(validate(o), UsageError);
  o.compatible = true;
  if (also_compatible) {
    EXPECT_THROW(validate(o), UsageError);
  } else {
    EXPECT_NO_THROW(validate(o));
  }
}

TEST(KernelAttentionOptionsTest, ImpossibleOnesAreRefused) {
  EXPECT_NO_THROW(validate(small()));
  expect_refused([](auto& o) { o.query_width = 0; });
  expect_refused([](auto& o) { o.num_heads = 0; });
  expect_refused([](auto& o) { o.key_dim = -1; });
  expect_refused([](auto& o) { o.output_shape = {3, 0}; });
  expect_refused([](auto& o) { o.dropout = 1; });
  expect_refused([](auto& o) { o.feature_transform = "leakyrelu"; });
  expect_refused([](auto& o) { o.redraw = true, o.num_random_features = 0; });
  expect_refused([](auto& o) { o.use_causal_windowed = o.is_short_seq = true; });
  expect_refused([](auto& o) { o.use_causal_windowed = true, o.causal_chunk_length = 0; });
  expect_refused([](auto& o) { o.use_causal_windowed = true, o.causal_window_length = -1; });
  expect_refused([](auto& o) { o.use_causal_windowed = true, o.causal_padding = "both"; });
  expect_refused([](auto& o) { o.use_causal_windowed = true, o.causal_window_decay = 1.5; }, false);
  expect_refused([](auto& o) { o.scale = -1; }, false);
  expect_refused([](auto& o) { o.begin_kernel = -1; }, false);
  KernelAttentionOptions o = small();
  o.use_causal_windowed = true;
  o.causal_window_length = 0;
  EXPECT_NO_THROW(validate(o));
  o.compatible = true;
  EXPECT_THROW(validate(o), UsageError);
}

KernelAttentionInputs inputs_of(int64_t tokens) {
  KernelAttentionInputs inputs;
  inputs.query = inputs.value = at::randn({2, tokens, 6});
  return inputs;
}

TEST(KernelAttentionCalls, ThatDoNotFitAreRefused) {
  KernelAttention layer(small());
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
  inputs.attention_mask = at::ones({2, 4}, at::kBool);
  EXPECT_THROW(layer(inputs), UsageError);
  inputs = inputs_of(5);
  inputs.query_mask = at::ones({2, 5});
  EXPECT_THROW(layer(inputs), UsageError);
  KernelCache cache;
  inputs = inputs_of(5);
  inputs.cache = &cache;
  EXPECT_THROW(layer(inputs), UsageError);                            // no windows
  EXPECT_THROW(layer->measure_statistics(inputs_of(5)), UsageError);  // not expplus
}

TEST(KernelAttentionCalls, CompatibleCachesAreAsRestrictedAsTheReference) {
  const auto refused = [](auto change, bool training = false) {
    KernelAttentionOptions o = small();
    o.compatible = o.use_causal_windowed = true;
    o.causal_window_decay = 0.9;
    o.feature_transform = "relu";
    change(o);
    KernelAttention layer(o);
    KernelCache cache;
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

TEST(KernelAttentionCalls, SequencesEndWithAnIncompleteChunk) {
  KernelAttentionOptions o = small();
  o.use_causal_windowed = true;
  o.causal_chunk_length = 4;
  EXPECT_THROW(KernelAttention{o}(inputs_of(5)), UsageError);
  o.causal_padding = "right";
  KernelAttention layer(o);
  KernelCache cache;
  KernelAttentionInputs inputs = inputs_of(5);
  inputs.cache = &cache;
  layer(inputs);
  EXPECT_TRUE(cache.closed);
  inputs.query = inputs.value = at::randn({2, 4, 6});
  EXPECT_THROW(layer(inputs), UsageError);
  o.causal_padding = "left";
  KernelAttention left(o);
  cache = {};
  inputs = inputs_of(5);
  inputs.cache = &cache;
  left(inputs);
  EXPECT_EQ(cache.tokens, 5);
  EXPECT_EQ(cache.chunks, 2);
  EXPECT_THROW(left(inputs), UsageError);
}

TEST(KernelAttentionCalls, CachesStaySmall) {
  KernelAttentionOptions o = small();
  o.use_causal_windowed = true;
  for (const int64_t window : {0, 2, 30}) {
    o.causal_window_length = window;
    KernelAttention layer(o);
    KernelCache cache;
    for (int i = 0; i < 50; ++i) {
      KernelAttentionInputs inputs = inputs_of(1);
      inputs.cache = &cache;
      layer(inputs);
    }
    const int64_t sums = cache.sums.defined() ? cache.sums.kv.size(1) : 0,
                  keys = cache.key.defined() ? cache.key.size(1) : 0;
    EXPECT_EQ(sums + keys, window == 0 ? 1 : window - 1) << window;
  }
}

TEST(KernelAttentionCalls, DropoutIsForTrainingOnly) {
  KernelAttentionOptions o = small();
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
  for (const bool compatible : {false, true}) {
    KernelAttentionOptions o = small();
    o.compatible = compatible;
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
    const Tensor projection = to->projection();
    EXPECT_TRUE(at::equal(projection, compatible ? w : w.unsqueeze(0).expand_as(projection)));
    weights.erase("w.query.kernel");
    EXPECT_THROW(import_kernel_attention(to, weights), InputError);
  }
}

TEST(KernelAttentionTypes, HalfPrecisionIsComputedInFloat) {
  for (const auto& change : std::vector<std::function<void(KernelAttentionOptions&)>>{
           [](auto&) {}, [](auto& o) { o.is_short_seq = true; }, [](auto& o) { o.begin_kernel = 2; },
           [](auto& o) { o.use_causal_windowed = true; },
           [](auto& o) { o.use_causal_windowed = true, o.causal_window_length = 0; },
           [](auto& o) { o.use_causal_windowed = true, o.causal_window_length = 9; }}) {
    KernelAttentionOptions o = small();
    change(o);
    KernelAttention layer(o);
    const KernelAttentionInputs inputs = inputs_of(6);
    const Tensor full = layer(inputs);
    layer->to(at::kBFloat16);
    KernelAttentionInputs rounded;
    rounded.query = rounded.value = inputs.query.to(at::kBFloat16);
    const Tensor out = layer(rounded);
    EXPECT_EQ(out.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(at::allclose(out.to(at::kFloat), full, 0.1, 0.1)) << (out - full).abs().max();
  }
}

// Denominators of either sign (identity features) can magnify the rounding of heads without limit.
TEST(KernelAttentionOptionsTest, CompatibleResultsAreRoundedOnce) {
  KernelAttentionOptions o = small();
  o.compatible = true;
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
}  // namespace performer::nn::kernel_attention_options_test
