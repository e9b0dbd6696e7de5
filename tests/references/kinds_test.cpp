// SPDX-License-Identifier: Apache-2.0
// Every kind that reproduces a reference: what it computes is the function that is held to the reference's
// recordings, in each direction that the reference has, with the mask and the prefix property that its row
// states; and in a layer it behaves as any kind.
#include "performer/references/reference_kind.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "performer/references/darkformer/attention.h"
#include "performer/references/fast_transformers/attention.h"
#include "performer/references/jax/attention.h"
#include "performer/references/keras/attention.h"
#include "performer/references/performer_pytorch/fast_attention.h"
#include "performer/references/register.h"
#include "performer/references/slim/attention.h"
#include "performer/references/tensorflow/attention.h"
#include "performer/references/trax/attention.h"

namespace performer::references {
namespace {

using at::Tensor;

Tensor normal(at::IntArrayRef sizes, int64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(static_cast<uint64_t>(seed)), at::kDouble);
}

struct Inputs {
  Tensor q = normal({2, 6, 3, 8}, 1), k = normal({2, 6, 3, 8}, 2), v = normal({2, 6, 3, 5}, 3);
};

Tensor projection(const std::string& kind, int64_t heads, int64_t features, int64_t head_size, int64_t seed,
                  int64_t layer, int64_t redraw) {
  return draw_projection(find_reference_kind(kind), {heads, features, head_size, seed, layer, redraw});
}

Tensor call(const std::string& kind, const Tensor& q, const Tensor& k, const Tensor& v,
            const std::optional<Tensor>& w, bool causal, const std::optional<Tensor>& mask = {}) {
  return attend(find_reference_kind(kind), {q, k, v, w, causal, mask});
}

int64_t default_features(const std::string& kind, int64_t head_size) {
  const ReferenceKind& row = find_reference_kind(kind);
  return row.features ? row.features(head_size) : 0;
}

std::optional<Tensor> drawn(const std::string& kind, int64_t features = 0) {
  const Tensor w = projection(kind, 3, features, 8, 7, 1, 0);
  return w.defined() ? std::optional<Tensor>(w.to(at::kDouble)) : std::nullopt;
}

// The same numbers by the functions that the kinds stand for.
using Direct = std::function<Tensor(const Inputs&, const Tensor& w, bool causal)>;

Direct jax_direct(bool nonnegative, jax::KeyShift shift) {
  return [=](const Inputs& in, const Tensor& w, bool causal) {
    jax::SoftmaxAttentionOptions options;
    options.head_size = 8;
    options.nonnegative = nonnegative;
    options.key_shift = shift;
    options.unidirectional = causal;
    return jax::make_fast_softmax_attention(options, w)(in.q, in.k, in.v);
  };
}

Direct keras_direct(const std::string& transform) {
  return [=](const Inputs& in, const Tensor& w, bool causal) {
    keras::AttentionOptions options;
    options.feature_transform = transform;
    options.scale = 1 / std::sqrt(8.0);
    if (causal) {
      options.window.emplace();
      options.window->window_length = 6;
    }
    return keras::compute_attention(in.q, in.k, in.v, options, w, {});
  };
}

Direct performer_pytorch_direct(bool generalized, bool no_projection) {
  return [=](const Inputs& in, const Tensor& w, bool causal) {
    return performer_pytorch::fast_attention(
        in.q, in.k, in.v, w, {.causal = causal, .generalized = generalized, .no_projection = no_projection});
  };
}

Direct tensorflow_direct(const std::string& kernel) {
  return [=](const Inputs& in, const Tensor& w, bool causal) {
    return tensorflow::favor_attention(in.q, in.k, in.v, w, {.kernel = kernel, .causal = causal}).output;
  };
}

Direct slim_direct(const std::string& type) {
  return [=](const Inputs& in, const Tensor& w, bool causal) {
    return slim::attention(in.q, in.k, in.v, type, w, causal);
  };
}

Tensor linear_by_map(fast_transformers::FeatureMap& map, const Inputs& in, bool causal) {
  const Tensor phi_q = map->forward(in.q), phi_k = map->forward(in.k);
  return causal ? fast_transformers::causal_linear_attention(phi_q, phi_k, in.v)
                : fast_transformers::linear_attention(phi_q, phi_k, in.v);
}

std::map<std::string, Direct> direct_functions() {
  using jax::KeyShift;
  std::map<std::string, Direct> all = {
      {"jax-softmax", jax_direct(true, KeyShift::sequence)},
      {"jax-trig", jax_direct(false, KeyShift::sequence)},
      {"jax-2020-softmax", jax_direct(true, KeyShift::tensor)},
      {"jax-relu",
       [](const Inputs& in, const Tensor& w, bool causal) {
         jax::GeneralizedAttentionOptions options;
         options.head_size = 8;
         options.unidirectional = causal;
         return jax::make_fast_generalized_attention(options, w)(in.q, in.k, in.v);
       }},
      {"tensorflow-softmax", tensorflow_direct("softmax")},
      {"tensorflow-relu", tensorflow_direct("relu")},
      {"trax-relu",
       [](const Inputs& in, const Tensor&, bool causal) {
         return causal ? trax::causal_favor_attention(in.q, in.k, in.v)
                       : trax::favor_attention(in.q, in.k, in.v);
       }},
      {"trax-softmax",
       [](const Inputs& in, const Tensor& w, bool) {
         return trax::favor_attention(in.q, in.k, in.v, {.approximate_softmax = true}, w);
       }},
      {"performer-pytorch-softmax", performer_pytorch_direct(false, false)},
      {"performer-pytorch-generalised", performer_pytorch_direct(true, false)},
      {"performer-pytorch-no-projection", performer_pytorch_direct(false, true)},
      {"slim-favor", slim_direct("favor+")},
      {"slim-relu", slim_direct("relu")},
      {"darkformer", [](const Inputs& in, const Tensor& w, bool causal) {
         return darkformer::attention(in.q, in.k, in.v, {w, {}, {}}, {.causal = causal});
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
    // The map with its own draw, which the test hands to the kind as a projection.
    all["fast-transformers-" + name] = [map = map](const Inputs& in, const Tensor& w, bool causal) {
      fast_transformers::FeatureMapOptions options;
      options.map = map;
      fast_transformers::FeatureMap made(options, 8);
      made->to(at::kDouble);
      if (w.defined()) {
        const at::NoGradGuard no_grad;
        EXPECT_EQ(made->omega().sizes(), w.t().sizes());
        made->named_buffers()["omega"].copy_(w.t());
      }
      return linear_by_map(made, in, causal);
    };
  }
  return all;
}

std::vector<bool> directions(const std::string& kind) {
  const ReferenceKind& row = find_reference_kind(kind);
  std::vector<bool> all;
  if (row.bidirectional) all.push_back(false);
  if (row.causal) all.push_back(true);
  return all;
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const ReferenceKind& kind : reference_kinds()) all.push_back(kind.name);
  return all;
}

class ReferenceKinds : public ::testing::TestWithParam<std::string> {};

TEST_P(ReferenceKinds, AreTheFunctionsHeldToRecordings) {
  const Inputs in;
  const auto w = drawn(GetParam());
  const auto all = direct_functions();
  ASSERT_TRUE(all.contains(GetParam()));
  for (const bool causal : directions(GetParam())) {
    const Tensor expected = all.at(GetParam())(in, w.value_or(Tensor()), causal);
    const Tensor out = call(GetParam(), in.q, in.k, in.v, w, causal);
    EXPECT_TRUE(out.isfinite().all().item<bool>());
    EXPECT_TRUE(out.equal(expected)) << (out - expected).abs().max();
  }
}

TEST_P(ReferenceKinds, PrefixesAreWhatTheRowSays) {
  const ReferenceKind& row = find_reference_kind(GetParam());
  if (!row.causal) return;
  const Inputs in;
  const auto w = drawn(GetParam());
  Tensor later = in.k.clone();
  later.select(1, 5).mul_(4);
  const auto first = [&](const Tensor& k) {
    return call(GetParam(), in.q, k, in.v, w, true).narrow(1, 0, 5);
  };
  const double change = (first(in.k) - first(later)).abs().max().item<double>();
  if (row.prefix_invariant) {
    EXPECT_LT(change, 1e-10);
  } else {
    EXPECT_GT(change, 1e-9);
  }
}

TEST_P(ReferenceKinds, MasksAreWhatTheRowSays) {
  const ReferenceKind& row = find_reference_kind(GetParam());
  const Inputs in;
  const auto w = drawn(GetParam());
  const Tensor mask = at::tensor({1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0}).to(at::kBool).view({2, 6});
  const bool causal = directions(GetParam()).front();
  const Tensor q = in.q / 4, k = in.k / 4, ones = at::ones_like(in.v);
  const auto attend = [&](const Tensor& v) { return call(GetParam(), q, k, v, w, causal, mask); };
  if (row.key_mask == KeyMask::none) {
    EXPECT_THROW(attend(ones), UsageError);
    return;
  }
  Tensor hidden = in.v.clone();
  hidden.masked_fill_(mask.logical_not().unsqueeze(-1).unsqueeze(-1), 1e3);
  EXPECT_TRUE(attend(hidden).allclose(attend(in.v), 1e-10, 1e-12));
  // Values of 1 tell whether masked keys are in the denominator.
  const Tensor kept = attend(ones);
  if (row.key_mask == KeyMask::features) {
    EXPECT_TRUE(kept.allclose(at::ones_like(kept), 0.05)) << (kept - 1).abs().max();
  } else {
    EXPECT_FALSE(kept.allclose(at::ones_like(kept), 0.05));
  }
  EXPECT_THROW(call(GetParam(), q, k, ones, w, causal, mask.to(at::kFloat)), UsageError);
  EXPECT_THROW(call(GetParam(), q, k, ones, w, causal, mask.narrow(1, 0, 5)), UsageError);
}

TEST_P(ReferenceKinds, AreDifferentiableInFloat) {
  const Inputs in;
  auto w = drawn(GetParam());
  if (w) w = w->to(at::kFloat);
  const auto leaf = [](const Tensor& x) { return (x / 2).to(at::kFloat).set_requires_grad(true); };
  for (const bool causal : directions(GetParam())) {
    const Tensor q = leaf(in.q), k = leaf(in.k), v = leaf(in.v);
    const Tensor out = call(GetParam(), q, k, v, w, causal);
    EXPECT_EQ(out.scalar_type(), at::kFloat);
    out.square().sum().backward();
    for (const Tensor& x : {q, k, v}) {
      EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
      EXPECT_GT(x.grad().abs().sum().item<double>(), 0);
    }
  }
}

TEST_P(ReferenceKinds, RefuseWhatTheReferenceDoesNotHave) {
  const ReferenceKind& row = find_reference_kind(GetParam());
  const Inputs in;
  const auto w = drawn(GetParam());
  if (!row.causal) {
    EXPECT_THROW(call(GetParam(), in.q, in.k, in.v, w, true), UsageError);
  }
  if (!row.bidirectional) {
    EXPECT_THROW(call(GetParam(), in.q, in.k, in.v, w, false), UsageError);
  }
  const bool causal = directions(GetParam()).front();
  const auto attend = [&](const std::optional<Tensor>& projection) {
    return call(GetParam(), in.q, in.k, in.v, projection, causal);
  };
  if (row.projected && !row.projection_optional) {
    EXPECT_THROW(attend({}), UsageError);
  }
  if (row.projection_optional) {
    EXPECT_FALSE(attend({}).allclose(attend(drawn(GetParam(), 12)), 1e-3));
  }
  if (!row.projected && !row.projection_optional) {
    EXPECT_THROW(attend(normal({8, 8}, 5)), UsageError);
    EXPECT_THROW(projection(GetParam(), 3, 16, 8, 1, 0, 0), UsageError);
  } else {
    EXPECT_THROW(attend(normal({8, 7}, 5)), UsageError);
  }
  EXPECT_THROW(call(GetParam(), in.q[0], in.k, in.v, w, causal), UsageError);
  EXPECT_THROW(call(GetParam(), in.q, in.k.narrow(3, 0, 4), in.v, w, causal), UsageError);
}

TEST_P(ReferenceKinds, ProjectionsAreNamedDraws) {
  const ReferenceKind& row = find_reference_kind(GetParam());
  EXPECT_FALSE(row.summary.empty());
  EXPECT_EQ(row.projected, default_features(GetParam(), 64) > 0);
  EXPECT_EQ(row.draw == nullptr, !row.projected && !row.projection_optional);
  if (!row.projected && !row.projection_optional) {
    EXPECT_FALSE(projection(GetParam(), 3, 0, 8, 1, 2, 3).defined());
    return;
  }
  const auto draw = [&](int64_t seed, int64_t layer, int64_t redraw) {
    return projection(GetParam(), 3, 16, 8, seed, layer, redraw);
  };
  const Tensor w = draw(1, 2, 3);
  EXPECT_EQ(w.scalar_type(), at::kFloat);
  EXPECT_EQ(w.size(-1), 8);
  EXPECT_TRUE(w.equal(draw(1, 2, 3)));
  EXPECT_FALSE(w.equal(draw(2, 2, 3)));
  EXPECT_FALSE(w.equal(draw(1, 1, 3)));
  EXPECT_FALSE(w.equal(draw(1, 2, 4)));
}

// A layer of a kind, as a model makes it.
std::shared_ptr<nn::Attention> make_layer(const std::string& kind, bool causal) {
  register_all();
  AttentionConfig config;
  config.kind = kind;
  config.seed = 5;
  if (nn::has_option(nn::find_kind(kind), "features")) config.set("features", 12);
  return nn::make_attention(config, {2, 6, causal, 1});
}

TEST_P(ReferenceKinds, RunInALayerPackedAsAlone) {
  for (const bool causal : {true, false}) {
    if (!(causal ? find_reference_kind(GetParam()).causal : find_reference_kind(GetParam()).bidirectional)) {
      EXPECT_THROW(make_layer(GetParam(), causal), UsageError);
      continue;
    }
    const auto layer = make_layer(GetParam(), causal);
    const auto draw = [](int64_t seed) { return 0.7 * normal({1, 15, 2, 6}, seed).to(at::kFloat); };
    ops::AttentionInputs inputs;
    inputs.query = draw(1);
    inputs.key = draw(2);
    inputs.value = draw(3);
    inputs.causal = causal;
    const auto alone = [&](int64_t begin, int64_t length) {
      ops::AttentionInputs part = inputs;
      for (Tensor* x : {&part.query, &part.key, &part.value}) *x = x->narrow(1, begin, length);
      return layer->forward(part);
    };
    const Tensor expected = at::cat({alone(0, 6), alone(6, 9)}, 1);
    inputs.cu_query = at::tensor({0, 6, 6, 15}, at::kLong);
    const Tensor together = layer->forward(inputs);
    EXPECT_TRUE(together.allclose(expected, 1e-4, 1e-5));
    EXPECT_TRUE(together.isfinite().all().item<bool>());
  }
}

TEST_P(ReferenceKinds, HoldNoMoreNumbersThanTheySay) {
  const bool causal = find_reference_kind(GetParam()).causal;
  double held = 0;
  for (const Tensor& buffer : make_layer(GetParam(), causal)->buffers())
    held += static_cast<double>(buffer.numel());
  AttentionConfig config;
  config.kind = GetParam();
  const nn::AttentionKind& kind = nn::find_kind(GetParam());
  if (nn::has_option(kind, "features")) config.set("features", 12);
  EXPECT_LE(held, kind.numbers ? kind.numbers(config, {2, 6, causal, 1}) : 0);
}

TEST_P(ReferenceKinds, AreRegisteredWithWhatTheyCanDo) {
  register_all();
  const ReferenceKind& row = find_reference_kind(GetParam());
  const nn::AttentionKind& kind = nn::find_kind(GetParam());
  EXPECT_EQ(kind.group, nn::KindGroup::reference);
  EXPECT_FALSE(kind.capabilities.streams);
  EXPECT_EQ(kind.capabilities.masks, row.key_mask != KeyMask::none);
  EXPECT_EQ(kind.capabilities.redraws, row.projected);
  EXPECT_EQ(nn::has_option(kind, "features"), row.projected);
  EXPECT_EQ(nn::find_kind(row.instead).group, nn::KindGroup::own) << row.instead;
  EXPECT_THAT(kind.summary, ::testing::HasSubstr(row.instead));
  EXPECT_LE(kind.summary.size(), 140u) << "one line of `performer info --kinds`";
}

std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, ReferenceKinds, ::testing::ValuesIn(names()), test_name);

TEST(ReferenceTable, HasEveryReference) {
  const std::vector<std::string> listed = names();
  const std::set<std::string> all(listed.begin(), listed.end());
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

TEST(ReferenceTable, DefaultFeatureCountsAreTheReferences) {
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
  for (const auto& [kind, features] : expected) EXPECT_EQ(default_features(kind, 64), features) << kind;
  EXPECT_EQ(projection("fast-transformers-favor", 1, 0, 8, 0, 0, 0).size(0), 4);
  EXPECT_EQ(projection("fast-transformers-smoothed-rff", 1, 0, 8, 0, 0, 0).size(0), 3);
  EXPECT_EQ(projection("slim-favor", 3, 0, 8, 0, 0, 0).sizes(), (at::IntArrayRef{3, 8, 8}));
  EXPECT_EQ(projection("jax-relu", 1, 12, 8, 0, 0, 0).size(0), 12);
}

TEST(ReferenceTable, UnknownNamesAreAnsweredWithTheKnown) {
  EXPECT_THAT([] { find_reference_kind("jax-softmaxx"); },
              ::testing::ThrowsMessage<UsageError>(::testing::HasSubstr("performer-pytorch-softmax")));
  EXPECT_THROW(find_reference_kind("none"), UsageError);
  EXPECT_THROW(projection("fast-transformers-favor", 1, 7, 8, 0, 0, 0), UsageError);
  EXPECT_THROW(projection("slim-favor", 1, 12, 8, 0, 0, 0), UsageError);
  EXPECT_THROW(projection("fast-transformers-smoothed-rff", 1, 2, 8, 0, 0, 0), UsageError);
}

}  // namespace
}  // namespace performer::references
