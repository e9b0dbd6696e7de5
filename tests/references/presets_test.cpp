// SPDX-License-Identifier: Apache-2.0
// Every preset: what it computes is the function that is held to the reference's recordings, in each
// direction that the reference has, with the mask and the prefix property that its traits state.
#include "performer/references/presets.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "performer/base/error.h"
#include "performer/references/darkformer/attention.h"
#include "performer/references/fast_transformers/attention.h"
#include "performer/references/jax/attention.h"
#include "performer/references/keras/attention.h"
#include "performer/references/performer_pytorch/fast_attention.h"
#include "performer/references/slim/attention.h"
#include "performer/references/tensorflow/attention.h"
#include "performer/references/trax/attention.h"

namespace performer::preset_tests {

using at::Tensor;
using references::KeyMask;

Tensor normal(at::IntArrayRef sizes, int64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(static_cast<uint64_t>(seed)), at::kDouble);
}

struct Inputs {
  Tensor q = normal({2, 6, 3, 8}, 1), k = normal({2, 6, 3, 8}, 2), v = normal({2, 6, 3, 5}, 3);
};

std::optional<Tensor> drawn(const std::string& preset, int64_t features = 0) {
  const Tensor w = references::preset_projection(preset, 3, features, 8, 7, 1, 0);
  return w.defined() ? std::optional<Tensor>(w.to(at::kDouble)) : std::nullopt;
}

// The same numbers by the functions that the presets stand for.
using Direct = std::function<Tensor(const Inputs&, const Tensor& w, bool causal)>;

Direct google_direct(bool nonnegative, references::jax::KeyShift shift) {
  return [=](const Inputs& in, const Tensor& w, bool causal) {
    references::jax::SoftmaxAttentionOptions options;
    options.head_size = 8;
    options.nonnegative = nonnegative;
    options.key_shift = shift;
    options.unidirectional = causal;
    return references::jax::make_fast_softmax_attention(options, w)(in.q, in.k, in.v);
  };
}

Direct keras_direct(const std::string& transform) {
  return [=](const Inputs& in, const Tensor& w, bool causal) {
    references::keras::AttentionOptions options;
    options.feature_transform = transform;
    options.scale = 1 / std::sqrt(8.0);
    if (causal) {
      options.window.emplace();
      options.window->window_length = 6;
    }
    return references::keras::compute_attention(in.q, in.k, in.v, options, w, {});
  };
}

Direct lucid_direct(bool generalized, bool no_projection) {
  return [=](const Inputs& in, const Tensor& w, bool causal) {
    return references::performer_pytorch::fast_attention(
        in.q, in.k, in.v, w, {.causal = causal, .generalized = generalized, .no_projection = no_projection});
  };
}

Direct tensorflow_direct(const std::string& kernel) {
  return [=](const Inputs& in, const Tensor& w, bool causal) {
    return references::tensorflow::favor_attention(in.q, in.k, in.v, w, {.kernel = kernel, .causal = causal})
        .output;
  };
}

Direct slim_direct(const std::string& type) {
  return [=](const Inputs& in, const Tensor& w, bool causal) {
    return references::slim::attention(in.q, in.k, in.v, type, w, causal);
  };
}

Tensor idiap_linear(references::fast_transformers::FeatureMap& map, const Inputs& in, bool causal) {
  const Tensor phi_q = map->forward(in.q), phi_k = map->forward(in.k);
  return causal ? references::fast_transformers::causal_linear_attention(phi_q, phi_k, in.v)
                : references::fast_transformers::linear_attention(phi_q, phi_k, in.v);
}

std::map<std::string, Direct> direct_functions() {
  using references::jax::KeyShift;
  std::map<std::string, Direct> all = {
      {"jax-softmax", google_direct(true, KeyShift::sequence)},
      {"jax-trig", google_direct(false, KeyShift::sequence)},
      {"jax-2020-softmax", google_direct(true, KeyShift::tensor)},
      {"jax-relu",
       [](const Inputs& in, const Tensor& w, bool causal) {
         references::jax::GeneralizedAttentionOptions options;
         options.head_size = 8;
         options.unidirectional = causal;
         return references::jax::make_fast_generalized_attention(options, w)(in.q, in.k, in.v);
       }},
      {"tensorflow-softmax", tensorflow_direct("softmax")},
      {"tensorflow-relu", tensorflow_direct("relu")},
      {"trax-relu",
       [](const Inputs& in, const Tensor&, bool causal) {
         return causal ? references::trax::causal_favor_attention(in.q, in.k, in.v)
                       : references::trax::favor_attention(in.q, in.k, in.v);
       }},
      {"trax-softmax",
       [](const Inputs& in, const Tensor& w, bool) {
         return references::trax::favor_attention(in.q, in.k, in.v, {.approximate_softmax = true}, w);
       }},
      {"performer-pytorch-softmax", lucid_direct(false, false)},
      {"performer-pytorch-generalised", lucid_direct(true, false)},
      {"performer-pytorch-no-projection", lucid_direct(false, true)},
      {"slim-favor", slim_direct("favor+")},
      {"slim-relu", slim_direct("relu")},
      {"darkformer", [](const Inputs& in, const Tensor& w, bool causal) {
         return references::darkformer::attention(in.q, in.k, in.v, {w, {}, {}}, {.causal = causal});
       }}};
  for (const char* transform : {"exp", "expmod", "relu", "elu", "square", "identity", "expplus"}) {
    all[std::string("keras-") + transform] = keras_direct(transform);
  }
  for (const auto& [name, map] :
       std::map<std::string, std::string>{{"favor", "favor"},
                                          {"elu", "elu"},
                                          {"rff", "random-fourier"},
                                          {"smoothed-rff", "smoothed-random-fourier"},
                                          {"generalised", "generalized"}}) {
    // The map with its own draw, which the test hands to the preset as a projection.
    all["idiap-" + name] = [map = map](const Inputs& in, const Tensor& w, bool causal) {
      references::fast_transformers::FeatureMapOptions options;
      options.map = map;
      references::fast_transformers::FeatureMap made(options, 8);
      made->to(at::kDouble);
      if (w.defined()) {
        const at::NoGradGuard no_grad;
        EXPECT_EQ(made->omega().sizes(), w.t().sizes());
        made->named_buffers()["omega"].copy_(w.t());
      }
      return idiap_linear(made, in, causal);
    };
  }
  return all;
}

std::vector<bool> directions(const std::string& preset) {
  const references::PresetTraits& traits = references::preset_traits(preset);
  std::vector<bool> all;
  if (traits.bidirectional) all.push_back(false);
  if (traits.causal) all.push_back(true);
  return all;
}

class Presets : public ::testing::TestWithParam<std::string> {};

TEST_P(Presets, AreTheFunctionsHeldToRecordings) {
  const Inputs in;
  const auto w = drawn(GetParam());
  const auto all = direct_functions();
  ASSERT_TRUE(all.contains(GetParam()));
  for (const bool causal : directions(GetParam())) {
    const Tensor expected = all.at(GetParam())(in, w.value_or(Tensor()), causal);
    const Tensor out = references::preset_attention(GetParam(), in.q, in.k, in.v, w, causal);
    EXPECT_TRUE(out.isfinite().all().item<bool>());
    EXPECT_TRUE(out.equal(expected)) << (out - expected).abs().max();
  }
}

TEST_P(Presets, PrefixesAreWhatTheTraitsSay) {
  const references::PresetTraits& traits = references::preset_traits(GetParam());
  if (!traits.causal) return;
  const Inputs in;
  const auto w = drawn(GetParam());
  Tensor later = in.k.clone();
  later.select(1, 5).mul_(4);
  const auto first = [&](const Tensor& k) {
    return references::preset_attention(GetParam(), in.q, k, in.v, w, true).narrow(1, 0, 5);
  };
  const double change = (first(in.k) - first(later)).abs().max().item<double>();
  if (traits.prefix_invariant) {
    EXPECT_LT(change, 1e-10);
  } else {
    EXPECT_GT(change, 1e-9);
  }
}

TEST_P(Presets, MasksAreWhatTheTraitsSay) {
  const references::PresetTraits& traits = references::preset_traits(GetParam());
  const Inputs in;
  const auto w = drawn(GetParam());
  const Tensor mask = at::tensor({1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0}).to(at::kBool).view({2, 6});
  const bool causal = directions(GetParam()).front();
  const Tensor q = in.q / 4, k = in.k / 4, ones = at::ones_like(in.v);
  const auto attend = [&](const Tensor& v) {
    return references::preset_attention(GetParam(), q, k, v, w, causal, mask);
  };
  if (traits.key_mask == KeyMask::none) {
    EXPECT_THROW(attend(ones), UsageError);
    return;
  }
  Tensor hidden = in.v.clone();
  hidden.masked_fill_(mask.logical_not().unsqueeze(-1).unsqueeze(-1), 1e3);
  EXPECT_TRUE(attend(hidden).allclose(attend(in.v), 1e-10, 1e-12));
  // Values of 1 tell whether masked keys are in the denominator.
  const Tensor kept = attend(ones);
  if (traits.key_mask == KeyMask::features) {
    EXPECT_TRUE(kept.allclose(at::ones_like(kept), 0.05)) << (kept - 1).abs().max();
  } else {
    EXPECT_FALSE(kept.allclose(at::ones_like(kept), 0.05));
  }
  EXPECT_THROW(references::preset_attention(GetParam(), q, k, ones, w, causal, mask.to(at::kFloat)),
               UsageError);
  EXPECT_THROW(references::preset_attention(GetParam(), q, k, ones, w, causal, mask.narrow(1, 0, 5)),
               UsageError);
}

TEST_P(Presets, AreDifferentiableInFloat) {
  const Inputs in;
  auto w = drawn(GetParam());
  if (w) w = w->to(at::kFloat);
  const auto leaf = [](const Tensor& x) { return (x / 2).to(at::kFloat).set_requires_grad(true); };
  for (const bool causal : directions(GetParam())) {
    const Tensor q = leaf(in.q), k = leaf(in.k), v = leaf(in.v);
    const Tensor out = references::preset_attention(GetParam(), q, k, v, w, causal);
    EXPECT_EQ(out.scalar_type(), at::kFloat);
    out.square().sum().backward();
    for (const Tensor& x : {q, k, v}) {
      EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
      EXPECT_GT(x.grad().abs().sum().item<double>(), 0);
    }
  }
}

TEST_P(Presets, RefuseWhatTheReferenceDoesNotHave) {
  const references::PresetTraits& traits = references::preset_traits(GetParam());
  const Inputs in;
  const auto w = drawn(GetParam());
  if (!traits.causal) {
    EXPECT_THROW(references::preset_attention(GetParam(), in.q, in.k, in.v, w, true), UsageError);
  }
  if (!traits.bidirectional) {
    EXPECT_THROW(references::preset_attention(GetParam(), in.q, in.k, in.v, w, false), UsageError);
  }
  const bool causal = directions(GetParam()).front();
  const auto attend = [&](const std::optional<Tensor>& projection) {
    return references::preset_attention(GetParam(), in.q, in.k, in.v, projection, causal);
  };
  if (traits.projected && !traits.projection_optional) {
    EXPECT_THROW(attend({}), UsageError);
  }
  if (traits.projection_optional) {
    EXPECT_FALSE(attend({}).allclose(attend(drawn(GetParam(), 12)), 1e-3));
  }
  if (!traits.projected && !traits.projection_optional) {
    EXPECT_THROW(attend(normal({8, 8}, 5)), UsageError);
    EXPECT_THROW(references::preset_projection(GetParam(), 3, 16, 8, 1, 0, 0), UsageError);
  } else {
    EXPECT_THROW(attend(normal({8, 7}, 5)), UsageError);
  }
  EXPECT_THROW(references::preset_attention(GetParam(), in.q[0], in.k, in.v, w, causal), UsageError);
  EXPECT_THROW(references::preset_attention(GetParam(), in.q, in.k.narrow(3, 0, 4), in.v, w, causal),
               UsageError);
}

TEST_P(Presets, ProjectionsAreNamedDraws) {
  const references::PresetTraits& traits = references::preset_traits(GetParam());
  EXPECT_FALSE(traits.reproduces.empty());
  EXPECT_FALSE(traits.instead.empty());
  EXPECT_EQ(traits.projected, references::preset_features(GetParam(), 64) > 0);
  EXPECT_EQ(traits.projection.empty(), !traits.projected && !traits.projection_optional);
  if (!traits.projected && !traits.projection_optional) {
    EXPECT_FALSE(references::preset_projection(GetParam(), 3, 0, 8, 1, 2, 3).defined());
    return;
  }
  const auto draw = [&](int64_t seed, int64_t layer, int64_t redraw) {
    return references::preset_projection(GetParam(), 3, 16, 8, seed, layer, redraw);
  };
  const Tensor w = draw(1, 2, 3);
  EXPECT_EQ(w.scalar_type(), at::kFloat);
  EXPECT_EQ(w.size(-1), 8);
  EXPECT_TRUE(w.equal(draw(1, 2, 3)));
  EXPECT_FALSE(w.equal(draw(2, 2, 3)));
  EXPECT_FALSE(w.equal(draw(1, 1, 3)));
  EXPECT_FALSE(w.equal(draw(1, 2, 4)));
}

std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, Presets, ::testing::ValuesIn(references::preset_names()), test_name);

TEST(PresetTable, HasEveryReference) {
  const std::vector<std::string> names = references::preset_names();
  const std::set<std::string> all(names.begin(), names.end());
  const std::set<std::string> expected = {"jax-softmax",
                                          "jax-trig",
                                          "jax-relu",
                                          "jax-2020-softmax",
                                          "tensorflow-softmax",
                                          "tensorflow-relu",
                                          "trax-relu",
                                          "trax-softmax",
                                          "keras-exp",
                                          "keras-expmod",
                                          "keras-relu",
                                          "keras-elu",
                                          "keras-square",
                                          "keras-identity",
                                          "keras-expplus",
                                          "performer-pytorch-softmax",
                                          "performer-pytorch-generalised",
                                          "performer-pytorch-no-projection",
                                          "fast-transformers-favor",
                                          "fast-transformers-elu",
                                          "fast-transformers-rff",
                                          "fast-transformers-smoothed-rff",
                                          "fast-transformers-generalised",
                                          "slim-favor",
                                          "slim-relu",
                                          "darkformer"};
  EXPECT_EQ(all, expected);
}

TEST(PresetTable, DefaultFeatureCountsAreTheReferences) {
  const std::map<std::string, int64_t> expected = {{"jax-softmax", 256},
                                                   {"jax-relu", 0},
                                                   {"tensorflow-relu", 0},
                                                   {"trax-softmax", 256},
                                                   {"keras-relu", 256},
                                                   {"performer-pytorch-softmax", 266},
                                                   {"fast-transformers-favor", 64},
                                                   {"fast-transformers-elu", 0},
                                                   {"slim-favor", 64},
                                                   {"darkformer", 266}};
  for (const auto& [preset, features] : expected)
    EXPECT_EQ(references::preset_features(preset, 64), features) << preset;
  EXPECT_EQ(references::preset_projection("fast-transformers-favor", 1, 0, 8, 0, 0, 0).size(0), 4);
  EXPECT_EQ(references::preset_projection("fast-transformers-smoothed-rff", 1, 0, 8, 0, 0, 0).size(0), 3);
  EXPECT_EQ(references::preset_projection("slim-favor", 3, 0, 8, 0, 0, 0).sizes(),
            (at::IntArrayRef{3, 8, 8}));
  EXPECT_EQ(references::preset_projection("jax-relu", 1, 12, 8, 0, 0, 0).size(0), 12);
}

TEST(PresetTable, UnknownNamesAreAnsweredWithTheKnown) {
  EXPECT_THAT([] { references::preset_traits("jax-softmaxx"); },
              ::testing::ThrowsMessage<UsageError>(::testing::HasSubstr("performer-pytorch-softmax")));
  EXPECT_THROW(references::preset_features("none", 8), UsageError);
  EXPECT_THROW(references::preset_projection("fast-transformers-favor", 1, 7, 8, 0, 0, 0), UsageError);
  EXPECT_THROW(references::preset_projection("slim-favor", 1, 12, 8, 0, 0, 0), UsageError);
  EXPECT_THROW(references::preset_projection("fast-transformers-smoothed-rff", 1, 2, 8, 0, 0, 0), UsageError);
}

}  // namespace performer::preset_tests
