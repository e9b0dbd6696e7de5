// SPDX-License-Identifier: Apache-2.0
#include "performer/references/presets.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <cmath>
#include <functional>
#include <map>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/references/darkformer/attention.h"
#include "performer/references/fast_transformers/attention.h"
#include "performer/references/jax/attention.h"
#include "performer/references/keras/attention.h"
#include "performer/references/performer_pytorch/fast_attention.h"
#include "performer/references/slim/attention.h"
#include "performer/references/tensorflow/attention.h"
#include "performer/references/trax/attention.h"

namespace performer::references {

using at::Tensor;

namespace {

// A checked call. Values are masked already where that is what the reference does.
struct PresetCall {
  Tensor query, key, value;
  std::optional<Tensor> projection;
  bool causal = false;
  std::optional<Tensor> key_mask;  // bool [B, S], only for KeyMask::features
};

struct PresetDraw {
  int64_t heads, features, head_size;
  jax::DrawName name;
};

struct Preset {
  PresetTraits traits;
  std::function<int64_t(int64_t head_size)> features;
  std::function<Tensor(const PresetDraw&)> draw;
  std::function<Tensor(const PresetCall&)> attend;
};

constexpr const char* kUncorrectedRows =
    "blocks of orthogonal rows by QR without sign correction, lengths of Gaussian rows, "
    "one for all heads";
constexpr const char* kInsteadOfSoftmax =
    "favor-softmax: Haar-distributed rows for each head, and running log-scales in "
    "place of epsilon, shifts and guards";
constexpr const char* kInsteadOfRelu = "favor-relu: the same features in fused kernels, masked keys left out";
constexpr const char* kInsteadOfFunction =
    "ops::favor_attention of the same function: fused, masked keys left out";

int64_t no_features(int64_t) {
  return 0;
}
int64_t features_256(int64_t) {
  return 256;
}
int64_t features_of_head_size(int64_t head_size) {
  return head_size;
}

Tensor draw_uncorrected(const PresetDraw& draw) {
  return jax::draw_projection({draw.features, draw.head_size}, draw.name);
}

std::function<Tensor(const PresetCall&)> google_softmax(bool nonnegative, jax::KeyShift shift) {
  return [=](const PresetCall& call) {
    jax::SoftmaxAttentionOptions options;
    options.nonnegative = nonnegative;
    options.key_shift = shift;
    options.unidirectional = call.causal;
    return jax::fast_softmax_attention(call.query, call.key, call.value, *call.projection, options);
  };
}

Tensor google_relu(const PresetCall& call) {
  jax::GeneralizedAttentionOptions options;
  options.unidirectional = call.causal;
  return jax::fast_generalized_attention(call.query, call.key, call.value, call.projection, options);
}

std::function<Tensor(const PresetCall&)> tensorflow_favor(const char* kernel) {
  return [=](const PresetCall& call) {
    tensorflow::FavorOptions options;
    options.kernel = kernel;
    options.causal = call.causal;
    return tensorflow::favor_attention(call.query, call.key, call.value, call.projection, options).output;
  };
}

Tensor trax_relu(const PresetCall& call) {
  // The causal layer takes no mask, but the mask of its keys would be on the features too.
  if (!call.causal) return trax::favor_attention(call.query, call.key, call.value, {}, {}, call.key_mask);
  check<UsageError>(!call.key_mask, "trax-relu has no key mask when causal; leave out `key_mask`");
  return trax::causal_favor_attention(call.query, call.key, call.value);
}

Tensor trax_softmax(const PresetCall& call) {
  return trax::favor_attention(call.query, call.key, call.value, {.approximate_softmax = true},
                               call.projection, call.key_mask);
}

std::function<Tensor(const PresetCall&)> keras_transform(const char* transform) {
  return [=](const PresetCall& call) {
    keras::AttentionOptions options;
    options.feature_transform = transform;
    options.scale = 1 / std::sqrt(static_cast<double>(call.query.size(-1)));
    // Causal there are windows of chunks alone: single tokens, and a window of the whole sequence.
    if (call.causal) {
      options.window.emplace();
      options.window->window_length = call.query.size(1);
    }
    std::optional<Tensor> mask;
    if (call.key_mask) mask = call.key_mask->to(call.query.scalar_type());
    return keras::compute_attention(call.query, call.key, call.value, options, call.projection, mask);
  };
}

std::function<Tensor(const PresetCall&)> performer_pytorch_attention(bool generalized, bool no_projection) {
  return [=](const PresetCall& call) {
    performer_pytorch::FastAttentionOptions options;
    options.causal = call.causal;
    options.generalized = generalized;
    options.no_projection = no_projection;
    return performer_pytorch::fast_attention(call.query, call.key, call.value,
                                             call.projection.value_or(Tensor()), options);
  };
}

// A map of fast-transformers with the rows of `projection` as its directions; its n_dims from their number.
fast_transformers::FeatureMap fast_transformers_map(const char* name, const PresetCall& call) {
  const std::string map = name;
  fast_transformers::FeatureMapOptions options;
  options.map = map;
  if (call.projection) {
    const int64_t rows = call.projection->size(0);
    options.n_dims = map == "generalized" ? rows : map == "smoothed-random-fourier" ? 2 * rows + 2 : 2 * rows;
  }
  fast_transformers::FeatureMap made(options, call.query.size(-1));
  if (call.projection) {
    const at::NoGradGuard no_grad;
    made->to(call.query.scalar_type());
    made->named_buffers()["omega"].copy_(call.projection->t());
  }
  return made;
}

std::function<Tensor(const PresetCall&)> fast_transformers_attention(const char* name) {
  return [=](const PresetCall& call) {
    fast_transformers::FeatureMap map = fast_transformers_map(name, call);
    const Tensor phi_q = map->forward(call.query), phi_k = map->forward(call.key);
    return call.causal ? fast_transformers::causal_linear_attention(phi_q, phi_k, call.value, call.key_mask)
                       : fast_transformers::linear_attention(phi_q, phi_k, call.value, call.key_mask);
  };
}

PhiloxStream fast_transformers_stream(const PresetDraw& draw) {
  return PhiloxStream(static_cast<uint64_t>(draw.name.seed), static_cast<uint32_t>(draw.name.layer), 0,
                      static_cast<uint32_t>(draw.name.redraw));
}

// Columns whose lengths are those of the same block's rows, as rows.
Tensor fast_transformers_orthogonal(const PresetDraw& draw, int64_t rows) {
  PhiloxStream stream = fast_transformers_stream(draw);
  return fast_transformers::orthogonal_random_matrix(draw.head_size, rows, stream).t().contiguous();
}

Tensor fast_transformers_favor_rows(const PresetDraw& draw) {
  check<UsageError>(draw.features % 2 == 0, "fast-transformers-favor has pairs of features, found {}",
                    draw.features);
  return fast_transformers_orthogonal(draw, draw.features / 2);
}

Tensor fast_transformers_generalised_rows(const PresetDraw& draw) {
  return fast_transformers_orthogonal(draw, draw.features);
}

std::function<Tensor(const PresetDraw&)> fast_transformers_fourier_rows(int64_t fewer) {
  return [=](const PresetDraw& draw) {
    const int64_t rows = (draw.features - fewer) / 2;
    check<UsageError>(draw.features % 2 == 0 && rows >= 1,
                      "this preset needs an even number of features of at least {}, "
                      "found {}",
                      fewer + 2, draw.features);
    return jax::draw_projection({rows, draw.head_size, /*orthogonal=*/false}, draw.name);
  };
}

Tensor slim_rows(const PresetDraw& draw) {
  check<UsageError>(draw.features % draw.head_size == 0,
                    "slim-favor has a multiple of the head size as features, found {} "
                    "for head size {}",
                    draw.features, draw.head_size);
  return slim::draw_projection(draw.heads, draw.features / draw.head_size, draw.head_size, draw.name);
}

Tensor slim_favor(const PresetCall& call) {
  check<UsageError>(call.projection->dim() == 3 && call.projection->size(1) % call.query.size(-1) == 0,
                    "slim-favor needs a projection [heads, K head_size, head_size]");
  const std::string type = fmt::format("favor+_{}", call.projection->size(1) / call.query.size(-1));
  return slim::attention(call.query, call.key, call.value, type, call.projection, call.causal);
}

Tensor slim_relu(const PresetCall& call) {
  return slim::attention(call.query, call.key, call.value, "relu", {}, call.causal);
}

Tensor dark_rows(const PresetDraw& draw) {
  return darkformer::draw_projection(draw.features, draw.head_size, draw.name.seed, draw.name.layer,
                                     draw.name.redraw);
}

Tensor dark_attention(const PresetCall& call) {
  darkformer::AttentionOptions options;
  options.causal = call.causal;
  options.key_mask = call.key_mask;
  return darkformer::attention(call.query, call.key, call.value, {*call.projection, {}, {}}, options);
}

PresetTraits softmax_traits(const char* reproduces, KeyMask mask) {
  PresetTraits traits;
  traits.reproduces = reproduces;
  traits.instead = kInsteadOfSoftmax;
  traits.projection = kUncorrectedRows;
  traits.projected = true;
  traits.prefix_invariant = false;
  traits.key_mask = mask;
  return traits;
}

PresetTraits function_traits(const std::string& reproduces, const std::string& instead, bool projected,
                             bool optional, KeyMask mask) {
  PresetTraits traits;
  traits.reproduces = reproduces;
  traits.instead = instead;
  traits.projected = projected;
  traits.projection_optional = optional;
  if (projected || optional) traits.projection = kUncorrectedRows;
  traits.key_mask = mask;
  return traits;
}

void add_google(std::map<std::string, Preset>& presets) {
  presets["jax-softmax"] = {softmax_traits("google-research fast_attention (JAX), "
                                           "make_fast_softmax_attention: positive features, epsilon 1e-6 "
                                           "inside 1/sqrt(M), keys shifted by their largest u, denominator + "
                                           "2e-6 where at most 1e-6; a mask as "
                                           "MultiHeadDotProductFastAttention has it",
                                           KeyMask::values),
                            features_256, draw_uncorrected, google_softmax(true, jax::KeyShift::sequence)};
  presets["jax-trig"] = {
      softmax_traits(
          "the same with nonnegative_features=False: cosines and sines, whose denominators may vanish",
          KeyMask::values),
      features_256, draw_uncorrected, google_softmax(false, jax::KeyShift::sequence)};
  presets["jax-relu"] = {
      function_traits(
          "google-research fast_attention (JAX), make_fast_generalized_attention: relu + 1e-3, without a "
          "projection unless one is given (features_type ortho)",
          kInsteadOfRelu, false, true, KeyMask::values),
      no_features, draw_uncorrected, google_relu};
  presets["jax-2020-softmax"] = {softmax_traits("google-research fast_self_attention (2020), "
                                                "make_fast_softmax_attention: keys shifted by the largest "
                                                "u of the whole batch, so that sequences reach each other",
                                                KeyMask::none),
                                 features_256, draw_uncorrected, google_softmax(true, jax::KeyShift::tensor)};
  presets["tensorflow-softmax"] = {
      softmax_traits("google-research fast_attention (TensorFlow), softmax_kernel_transformation: as "
                     "jax-softmax without a guard of the denominator",
                     KeyMask::none),
      features_256, draw_uncorrected, tensorflow_favor("softmax")};
  presets["tensorflow-relu"] = {
      function_traits("google-research fast_attention (TensorFlow), relu_kernel_transformation: relu + "
                      "1e-3, with a projection relu(W x / sqrt(M)) + 1e-3",
                      kInsteadOfRelu, false, true, KeyMask::none),
      no_features, draw_uncorrected, tensorflow_favor("relu")};
  presets["trax-relu"] = {
      function_traits("Trax Favor and CausalFavor: relu + 1e-3; a key mask when bidirectional",
                      kInsteadOfRelu, false, false, KeyMask::features),
      no_features, nullptr, trax_relu};
  Preset trax_preset = {
      softmax_traits("Trax Favor with use_approximate_softmax: positive features of unscaled inputs, which "
                     "estimate exp(q k) without 1/sqrt(D), epsilon 1e-4",
                     KeyMask::features),
      features_256, draw_uncorrected, trax_softmax};
  trax_preset.traits.causal = false;
  presets["trax-softmax"] = trax_preset;
}

void add_keras(std::map<std::string, Preset>& presets) {
  const std::string layer = "Keras KernelAttention, feature_transform ";
  const auto exponential = [&](const char* transform, const char* what) {
    presets[std::string("keras-") + transform] = {
        softmax_traits((layer + transform + ": " + what).c_str(), KeyMask::features), features_256,
        draw_uncorrected, keras_transform(transform)};
  };
  exponential(
      "exp",
      "exp(u - max) exp(-|x|^2/2), one maximum for all heads of an example, denominator + 1e-6, under which "
      "outputs of ordinary inputs shrink to almost nothing");
  exponential("expmod",
              "exp(u - max) exp(-sqrt(D)/2), for inputs of squared norm sqrt(D); denominator + 1e-6");
  exponential("expplus",
              "optimal positive features with statistics of the whole sequence, masked keys included, inputs "
              "scaled twice (kernel exp(q k / D))");
  for (const char* transform : {"exp", "expmod"}) {
    presets[std::string("keras-") + transform].traits.projection_optional = true;
  }
  presets["keras-expplus"].traits.instead =
      "ops::mapped_attention with map oprf: masked statistics, scaled once";
  for (const char* transform : {"relu", "elu", "square", "identity"}) {
    presets[std::string("keras-") + transform] = {
        function_traits(
            layer + transform + ": f(W x)/sqrt(M) of x D^(-1/4) (relu + 1e-3, elu + 1), denominator + 1e-6",
            kInsteadOfFunction, true, true, KeyMask::features),
        features_256, draw_uncorrected, keras_transform(transform)};
  }
}

void add_pytorch(std::map<std::string, Preset>& presets) {
  presets["performer-pytorch-softmax"] = {
      softmax_traits("performer-pytorch 1.1.4 FastAttention: as jax-softmax with "
                     "epsilon 1e-4, no gradient through shifts, "
                     "no guard, causal key sums + 1e-6 a feature",
                     KeyMask::values),
      performer_pytorch::default_features, draw_uncorrected, performer_pytorch_attention(false, false)};
  presets["performer-pytorch-generalised"] = {
      function_traits(
          "performer-pytorch 1.1.4 FastAttention with generalized_attention: relu(W x) + 1e-3 of x D^(-1/4)",
          kInsteadOfRelu, true, false, KeyMask::values),
      performer_pytorch::default_features, draw_uncorrected, performer_pytorch_attention(true, false)};
  presets["performer-pytorch-no-projection"] = {
      function_traits("performer-pytorch 1.1.4 FastAttention with no_projection: queries softmaxed over "
                      "features, keys over "
                      "tokens (causal: exp, which overflows for large keys)",
                      "ops::favor_attention of the function exp, which is stable", false, false,
                      KeyMask::values),
      no_features, nullptr, performer_pytorch_attention(false, true)};
  const auto idiap = [&](const char* name, const char* reproduces, const char* instead,
                         const char* projection, std::function<Tensor(const PresetDraw&)> draw,
                         std::function<Tensor(const PresetCall&)> attend) {
    PresetTraits traits = function_traits(reproduces, instead, draw != nullptr, false, KeyMask::features);
    traits.projection = projection;
    presets[name] = {traits, draw ? features_of_head_size : no_features, std::move(draw), std::move(attend)};
  };
  const char* own_lengths =
      "columns of QR without sign correction, lengths of the rows of the same block, one for all heads";
  idiap("fast-transformers-favor",
        "fast-transformers 0.4.0 Favor: exp(u) and exp(-u), no shift, denominator + 1e-6",
        "ops::mapped_attention with map hyperbolic", own_lengths, fast_transformers_favor_rows,
        fast_transformers_attention("favor"));
  idiap("fast-transformers-elu",
        "fast-transformers 0.4.0 linear attention: elu + 1 of unscaled inputs, denominator + 1e-6",
        kInsteadOfFunction, "", nullptr, fast_transformers_attention("elu"));
  idiap("fast-transformers-rff",
        "fast-transformers 0.4.0 RandomFourierFeatures: the RBF kernel, not softmax; signed features",
        kInsteadOfSoftmax, "iid Gaussian rows, one for all heads", fast_transformers_fourier_rows(0),
        fast_transformers_attention("random-fourier"));
  idiap("fast-transformers-smoothed-rff",
        "fast-transformers 0.4.0 SmoothedRandomFourierFeatures: fast-transformers-rff of one feature fewer "
        "and a "
        "constant 1",
        kInsteadOfSoftmax, "iid Gaussian rows, one for all heads", fast_transformers_fourier_rows(2),
        fast_transformers_attention("smoothed-random-fourier"));
  idiap("fast-transformers-generalised",
        "fast-transformers 0.4.0 GeneralizedRandomFeatures: relu(W x) of unscaled inputs, no epsilon",
        kInsteadOfRelu, own_lengths, fast_transformers_generalised_rows,
        fast_transformers_attention("generalized"));
  PresetTraits favor = function_traits(
      "SLiM Performer favor+ (favor+_K by the size of the projection): exp(u - |x|^2/2) "
      "unshifted, denominator + 1e-16; causal only there",
      kInsteadOfSoftmax, true, false, KeyMask::none);
  favor.projection =
      "products of Householder reflections along raw Gaussians, far from Haar, rows of length sqrt(D), one "
      "for each head";
  favor.bidirectional = false;
  presets["slim-favor"] = {favor, features_of_head_size, slim_rows, slim_favor};
  presets["slim-relu"] = {
      function_traits("SLiM Performer relu: relu(x) without epsilon, denominator + 1e-16; causal only "
                      "there",
                      kInsteadOfRelu, false, false, KeyMask::none),
      no_features, nullptr, slim_relu};
  presets["slim-relu"].traits.bidirectional = false;
  PresetTraits dark = function_traits(
      "darkformer-pytorch with its geometry at the start, the identity: positive features, "
      "running shifts when causal, rows without weight zero",
      "ops::mapped_attention with map geometry, whose log-scales are of each feature", true, false,
      KeyMask::features);
  dark.projection = "blocks of Haar-distributed rows, lengths of Gaussian rows, one for all heads";
  presets["darkformer"] = {dark, darkformer::default_features, dark_rows, dark_attention};
}

const std::map<std::string, Preset>& all_presets() {
  static const std::map<std::string, Preset> presets = [] {
    std::map<std::string, Preset> made;
    add_google(made);
    add_keras(made);
    add_pytorch(made);
    return made;
  }();
  return presets;
}

const Preset& preset_of(const std::string& name) {
  const auto found = all_presets().find(name);
  check<UsageError>(found != all_presets().end(), "unknown preset '{}'; known: {}", name,
                    fmt::join(preset_names(), ", "));
  return found->second;
}

void check_call(const std::string& name, const Tensor& query, const Tensor& key, const Tensor& value) {
  check<UsageError>(
      query.dim() == 4 && key.dim() == 4 && value.dim() == 4,
      "{}: query, key and value must be [B, T, H, D], [B, S, H, D] and [B, S, H, E], found {}, {} and {} "
      "dimensions",
      name, query.dim(), key.dim(), value.dim());
  check<UsageError>(query.size(0) == key.size(0) && query.size(2) == key.size(2) &&
                        query.size(3) == key.size(3) && key.sizes().slice(0, 3) == value.sizes().slice(0, 3),
                    "{}: query [{}], key [{}] and value [{}] do not agree", name,
                    fmt::join(query.sizes(), ", "), fmt::join(key.sizes(), ", "),
                    fmt::join(value.sizes(), ", "));
}

void check_projection(const std::string& name, const PresetTraits& traits, const PresetCall& call) {
  if (!call.projection) {
    check<UsageError>(!traits.projected || traits.projection_optional,
                      "{} needs a projection: draw one with preset_projection", name);
    return;
  }
  check<UsageError>(traits.projected || traits.projection_optional, "{} has no projection; leave it out",
                    name);
  const Tensor& w = *call.projection;
  const bool each_head = name == "slim-favor";
  check<UsageError>(w.dim() == (each_head ? 3 : 2) && w.size(-1) == call.query.size(-1),
                    "{} needs a projection [{}rows, {}], found [{}]", name, each_head ? "heads, " : "",
                    call.query.size(-1), fmt::join(w.sizes(), ", "));
}

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& [name, preset] : all_presets()) names.push_back(name);
  return names;
}

const PresetTraits& preset_traits(const std::string& preset) {
  return preset_of(preset).traits;
}

int64_t preset_features(const std::string& preset, int64_t head_size) {
  return preset_of(preset).features(head_size);
}

Tensor preset_projection(const std::string& preset, int64_t heads, int64_t features, int64_t head_size,
                         int64_t seed, int64_t layer, int64_t redraw) {
  const Preset& of = preset_of(preset);
  const int64_t count = features > 0 ? features : of.features(head_size);
  check<UsageError>(features <= 0 || of.draw, "{} has no projection; ask for 0 features", preset);
  check<UsageError>(
      heads >= 1 && head_size >= 1 && features >= 0,
      "{}: heads and head size must be at least 1 and features not negative, found {}, {} and {}", preset,
      heads, head_size, features);
  if (!of.draw || count == 0) return {};
  return of.draw({heads, count, head_size, {seed, layer, 0, redraw}});
}

Tensor preset_attention(const std::string& preset, const Tensor& query, const Tensor& key,
                        const Tensor& value, const std::optional<Tensor>& projection, bool causal,
                        const std::optional<Tensor>& key_mask) {
  const Preset& of = preset_of(preset);
  check_call(preset, query, key, value);
  PresetCall call{query, key, value, {}, causal, {}};
  if (projection.has_value() && projection->defined()) call.projection = *projection;
  check_projection(preset, of.traits, call);
  check<UsageError>(!causal || of.traits.causal, "{} has no causal form; use it bidirectionally", preset);
  check<UsageError>(causal || of.traits.bidirectional, "{} has no bidirectional form; use it causally",
                    preset);
  check<UsageError>(!causal || query.size(1) == key.size(1),
                    "{}: causal attention needs as many keys as queries, found {} queries and {} keys",
                    preset, query.size(1), key.size(1));
  if (key_mask.has_value() && key_mask->defined()) {
    check<UsageError>(of.traits.key_mask != KeyMask::none, "{} has no key mask; leave out `key_mask`",
                      preset);
    check<UsageError>(key_mask->scalar_type() == at::kBool && key_mask->dim() == 2 &&
                          key_mask->size(0) == key.size(0) && key_mask->size(1) == key.size(1),
                      "{}: key_mask must be bool [{}, {}]", preset, key.size(0), key.size(1));
    if (of.traits.key_mask == KeyMask::values) {
      call.value = value.masked_fill(key_mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
    } else {
      call.key_mask = *key_mask;
    }
  }
  return of.attend(call);
}

}  // namespace performer::references
