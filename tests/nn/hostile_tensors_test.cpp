// SPDX-License-Identifier: Apache-2.0
// Every attention kind of the project itself under tensors as nobody would choose them: what comes out is
// finite. PERFORMER_HOSTILE_DRAWS is their number, PERFORMER_HOSTILE_FIRST the first of them.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "tests/hostile_draws.h"

namespace performer::nn {
namespace {

using hostile::Draw;
using hostile::Laid;
using hostile::Limits;

std::vector<std::string> own_kind_names() {
  std::vector<std::string> names;
  for (const std::string& name : kind_names()) {
    if (find_kind(name).group != KindGroup::reference) names.push_back(name);
  }
  return names;
}

// Weighted means with weights that are positive and add up to 1 stay within the values.
struct Nature {
  bool softmax = true;    // the weights are exponentials, of any inputs
  bool positive = true;   // no weight is negative
  bool vanishes = false;  // features fall as exp(x)
};

Nature nature_of(const std::string& kind, const AttentionConfig& config) {
  std::string map;
  bool exponential = false, any_sign = false;
  if (kind == "favor-windowed") {
    const auto chosen = config.options.find("map");
    map = chosen == config.options.end() ? "softmax" : std::get<std::string>(chosen->second);
  } else if (const auto& map_of = find_kind(kind).feature_map) {
    map = map_of(config).map;
    exponential = ops::feature_map_traits(map).exponential;
    any_sign = ops::feature_map_traits(map).signed_features;
  }
  const auto is_one_of = [&](const std::vector<std::string>& names) {
    return std::count(names.begin(), names.end(), map) > 0;
  };
  Nature nature;
  nature.softmax = exponential || is_one_of({"", "softmax", "hedgehog", "exp"});
  if (kind == "linformer") {  // learned and random projections have signs
    const auto chosen = config.options.find("reduce");
    any_sign = chosen == config.options.end() || std::get<std::string>(chosen->second) != "mean";
  }
  nature.vanishes = is_one_of({"elu+1", "sigmoid"});
  nature.positive =
      !any_sign && (nature.softmax || nature.vanishes || is_one_of({"relu", "square", "abs", "requ", "t2r"}));
  return nature;
}

// A call, in one draw.
class Case {
 public:
  explicit Case(int64_t number) : draw_(number), number_(number) {
    static const std::vector<std::string> kinds = own_kind_names();
    kind_ = kinds[static_cast<size_t>(number) % kinds.size()];
    can_ = find_kind(kind_).capabilities;
    causal_ = can_.causal && (!can_.bidirectional || draw_.chance(0.5));
    type_ = draw_.type();
    shape_ = {.heads = draw_.pick<int64_t>({1, 1, 2, 3}),
              .head_size = draw_.size(),
              .causal = causal_,
              .layer = draw_.up_to(3)};
    configure();
    nature_ = nature_of(kind_, config_);
    limits_ = kind_ == "exact" || kind_ == "auto" || kind_ == "linformer" ? hostile::kExactLimits
              : nature_.softmax                                           ? hostile::kSoftmaxLimits
              : nature_.vanishes                                          ? hostile::kVanishingLimits
                                                                          : hostile::kElementwiseLimits;
    if (type_ == at::kHalf && draw_.chance(0.5)) {
      limits_ = hostile::kHalfLimits;
    } else if (type_ == at::kHalf) {
      gradients_fit_ = false;
    }
    wild_ = draw_.chance(0.1);
    if (wild_) limits_ = hostile::kNoLimits;
    make_inputs();
  }

  void run() {
    SCOPED_TRACE(text());
    try {
      check();
    } catch (const c10::ValueError& error) {
      EXPECT_TRUE(wild_) << error.what_without_backtrace();
    }
  }

 private:
  void check() {
    attention_ = make_attention(config_, shape_);
    if (type_ == at::kDouble) attention_->to(at::kDouble);
    attention_->train(draw_.chance(0.5));
    const at::Tensor out = forward();
    const std::vector<int64_t> shape = {inputs_.query.size(0), inputs_.query.size(1), shape_.heads,
                                        inputs_.value.size(3)};
    ASSERT_EQ(out.sizes(), at::IntArrayRef(shape));
    expect_result(out, "output");
    if (inputs_.query_mask) {
      const at::Tensor hidden = out.masked_fill(inputs_.query_mask->unsqueeze(-1).unsqueeze(-1), 0);
      EXPECT_EQ(hidden.count_nonzero().item<int64_t>(), 0) << "rows of masked queries must be zero";
    }
    expect_gradients(out);
    attention_->after_step();
    expect_stream();
    expect_context();
  }

  void configure() {
    config_.kind = kind_;
    config_.seed = 3;
    const auto set = [&](const char* name, auto value) {
      if (has_option(find_kind(kind_), name)) config_.set(name, value);
    };
    set("features", draw_.pick<int64_t>({2, 4, 12, 16, 34}));
    set("window", draw_.pick<int64_t>({1, 2, 3, 16}));
    set("chunk", draw_.pick<int64_t>({1, 3, 16}));
    set("decay", draw_.pick<double>({0.0, 1e-3, 0.5, 1.0}));
    set("shared_projection", draw_.chance(0.3));
    set("buckets", draw_.pick<int64_t>({2, 4, 16}));
    set("rounds", draw_.pick<int64_t>({1, 2, 5}));
    set("stride", draw_.pick<int64_t>({2, 3, 16}));
    set("summary", draw_.pick<int64_t>({1, 2}));
    set("pattern", draw_.pick<std::string>({"strided", "fixed"}));
    set("global_tokens", draw_.pick<int64_t>({0, 1, 5, 40}));
    set("random_blocks", draw_.pick<int64_t>({0, 1, 3}));
    set("length", int64_t{193});
    set("rank", draw_.pick<int64_t>({1, 3, 50, 193}));
    set("reduce", draw_.pick<std::string>({"learned", "mean", "convolution", "random"}));
    set("sharing", draw_.pick<std::string>({"none", "heads", "kv", "layers"}));
    set("map", draw_.pick<std::string>({"softmax", "relu", "elu+1"}));
    if (kind_ == "favor-windowed" || draw_.chance(0.5)) return;
    set("projection", draw_.pick<std::string>({"auto", "iid", "hadamard", "none"}));
    try {
      make_attention(config_, shape_);
    } catch (const UsageError&) {  // not with this map
      config_.options.erase("projection");
    }
  }

  void make_inputs() {
    const bool cross = !causal_ && can_.cross && draw_.chance(0.5), packed = can_.packed && draw_.chance(0.4);
    const int64_t batch = packed ? 1 : draw_.pick<int64_t>({0, 1, 2, 3});
    const int64_t queries = draw_.tokens(), keys = cross ? draw_.tokens() : queries;
    const auto reduce = config_.options.find("reduce");
    const bool convolves =
        reduce != config_.options.end() && std::get<std::string>(reduce->second) == "convolution";
    const int64_t value_size =
        can_.reads_queries && !convolves && draw_.chance(0.2) ? draw_.size() : shape_.head_size;
    const auto make = [&](Laid& laid, int64_t tokens, int64_t size, double largest) {
      laid = draw_.laid({batch, tokens, shape_.heads, size}, type_, limits_.smallest, largest);
      return laid.view;
    };
    inputs_.query = make(query_, queries, shape_.head_size, limits_.inputs);
    inputs_.key = make(key_, keys, shape_.head_size, limits_.inputs);
    value_limit_ = std::min(hostile::largest_of(type_), draw_.pick<double>({limits_.values, 1.0}));
    inputs_.value = make(value_, keys, value_size, value_limit_);
    inputs_.causal = causal_;
    if (can_.masks) {
      inputs_.key_mask = draw_.mask(batch, keys);
      inputs_.query_mask =
          keys == queries && draw_.chance(0.5) ? inputs_.key_mask : draw_.mask(batch, queries);
    }
    if (!packed) return;
    const int64_t segments = draw_.pick<int64_t>({1, 2, 3, 5});
    inputs_.cu_query = draw_.bounds(queries, segments);
    if (cross) inputs_.cu_key = draw_.bounds(keys, segments);
  }

  std::string text() const {
    return fmt::format(
        "draw {}: {} {} {} B{} T{} S{} H{} D{} E{}{}{}{} features {}", number_, kind_, at::toString(type_),
        causal_ ? "causal" : "bidirectional", inputs_.query.size(0), inputs_.query.size(1),
        inputs_.key.size(1), shape_.heads, shape_.head_size, inputs_.value.size(3),
        inputs_.key_mask ? " key mask" : "", inputs_.query_mask ? " query mask" : "",
        inputs_.cu_query ? " packed" : "",
        config_.options.contains("features") ? std::get<int64_t>(config_.options.at("features")) : 0);
  }

  at::Tensor forward() {
    if (!can_.chunks || !causal_ || inputs_.cu_query || draw_.chance(0.5))
      return attention_->forward(inputs_);
    inputs_.return_state = true;
    const auto [out, state] = attention_->continue_from(inputs_);
    for (const at::Tensor& part : {state.kv, state.key_sum, state.log_scale})
      EXPECT_TRUE(wild_ || hostile::finite(part));
    return out;
  }

  // Finite, and within the values where it is their mean.
  void expect_result(const at::Tensor& out, const char* what) const {
    // Denominators of signed features may cancel; what comes out may be more than float16 has numbers for.
    if (wild_ || (!nature_.positive && type_ == at::kHalf)) return;
    ASSERT_TRUE(hostile::finite(out)) << what;
    if (!nature_.positive || out.numel() == 0) return;
    const double largest = inputs_.value.numel() == 0 ? 0 : inputs_.value.detach().abs().max().item<double>();
    EXPECT_LE(out.detach().abs().max().item<double>(), 1.02 * largest + hostile::tiniest_of(type_))
        << what << " is a mean of values";
  }

  void expect_gradients(const at::Tensor& out) {
    if (!out.requires_grad() || (!wild_ && (!gradients_fit_ || !hostile::finite(out)))) return;
    const double largest = limits_.gradients / std::max(1.0, value_limit_);
    const at::Tensor gradient = draw_.values(out.sizes(), out.scalar_type(), 0, largest);
    std::vector<at::Tensor> leaves = {inputs_.query, inputs_.key, inputs_.value};
    for (const at::Tensor& parameter : attention_->parameters()) leaves.push_back(parameter);
    const auto gradients =
        torch::autograd::grad({out}, leaves, {gradient}, false, false, /*allow_unused=*/true);
    for (size_t i = 0; i < gradients.size(); ++i) {
      EXPECT_TRUE(wild_ || !nature_.positive || hostile::finite(gradients[i])) << "gradient of leaf " << i;
    }
  }

  void expect_stream() {
    if (!can_.streams || !causal_ || inputs_.query.size(0) == 0) return;
    const at::NoGradGuard no_grad;
    const auto cache = attention_->begin(inputs_.query.size(0));
    for (int64_t t = 0; t < std::min<int64_t>(inputs_.query.size(1), 4); ++t) {
      expect_result(attention_->step(inputs_.query.select(1, t), inputs_.key.select(1, t),
                                     inputs_.value.select(1, t), *cache),
                    "step");
    }
  }

  void expect_context() {
    if (!can_.cross || causal_ || inputs_.cu_query || draw_.chance(0.5)) return;
    const at::NoGradGuard no_grad;
    const auto cache = attention_->begin_cross(inputs_.key, inputs_.value, inputs_.key_mask);
    expect_result(attention_->read(inputs_.query, *cache), "kept context");
  }

  Draw draw_;
  int64_t number_;
  std::string kind_;
  Capabilities can_;
  bool causal_ = false;
  at::ScalarType type_ = at::kFloat;
  AttentionShape shape_;
  AttentionConfig config_;
  Nature nature_;
  Limits limits_;
  bool gradients_fit_ = true, wild_ = false;
  double value_limit_ = 1;
  ops::AttentionInputs inputs_;
  Laid query_, key_, value_;
  std::shared_ptr<Attention> attention_;
};

TEST(HostileTensors, OutputsAndGradientsOfAllKindsAreFinite) {
  const int64_t first = hostile::first_draw(), count = hostile::draws(1500);
  const hostile::OneThread one_thread;
  for (int64_t number = first; number < first + count; ++number) {
    try {
      Case(number).run();
    } catch (const std::exception& error) {
      ADD_FAILURE() << "draw " << number << ": " << error.what();
    }
  }
}

}  // namespace
}  // namespace performer::nn
