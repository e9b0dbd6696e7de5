// SPDX-License-Identifier: Apache-2.0
#include "performer/references/fast_transformers/layers_attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>

#include "performer/base/error.h"
#include "performer/nn/attention/exact.h"
#include "performer/ops/dropout.h"

namespace performer::references::fast_transformers {
namespace {

void check_lengths(const AttentionMask& lengths, const at::Tensor& tokens, const char* name) {
  check<UsageError>(lengths.rows() == tokens.size(0) && lengths.columns() == tokens.size(1),
                    "{} must be [{}, {}] (batch, tokens), found [{}, {}]", name, tokens.size(0),
                    tokens.size(1), lengths.rows(), lengths.columns());
}

void check_batch(const AttentionState& state, int64_t kept, int64_t found) {
  check<UsageError>(!state.defined() || kept == found,
                    "the batch size changed during iteration, from {} to {}; start with an empty state", kept,
                    found);
}

std::optional<at::Tensor> mask_unless_all(const AttentionMask& lengths) {
  if (lengths.all_ones()) return std::nullopt;
  return lengths.bool_matrix();
}

// linear and causal-linear: features of queries and keys, and their sums.
class LinearInner : public InnerAttention {
 public:
  LinearInner(const AttentionRequest& request, bool causal)
      : InnerAttention(causal ? "causal-linear" : "linear"), causal_(causal), eps_(request.options.eps) {
    auto shared = std::dynamic_pointer_cast<FeatureMapImpl>(request.shared);
    if (!shared) {
      shared = std::make_shared<FeatureMapImpl>(request.options.feature_map, request.sizes.query_dimensions,
                                                request.sizes.layer);
    }
    map_ = register_module("feature_map", std::move(shared));
  }

  at::Tensor forward(const InnerInputs& in) override {
    check<UsageError>(
        causal_ || in.mask.all_ones(),
        "attention 'linear' does not support arbitrary attention masks; use a full mask of ones, or "
        "causal-linear");
    check<UsageError>(
        !causal_ || in.mask.lower_triangular(),
        "attention 'causal-linear' only supports full lower triangular masks; use a TriangularCausalMask, or "
        "linear");
    check_lengths(in.key_lengths, in.key, "key lengths");
    map_->new_feature_map();
    const at::Tensor q = map_->forward(in.query), k = map_->forward(in.key);
    const auto keep = mask_unless_all(in.key_lengths);
    return causal_ ? causal_linear_attention(q, k, in.value, keep, eps_)
                   : linear_attention(q, k, in.value, keep, eps_);
  }

  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  AttentionState& state) override {
    if (!state.defined()) map_->new_feature_map();
    return recurrent_linear_attention(map_->forward(query), map_->forward(key), value, state.linear, eps_);
  }

  AttentionState summarize(const at::Tensor& key, const at::Tensor& value,
                           const AttentionMask& key_lengths) override {
    check_lengths(key_lengths, key, "key lengths");
    map_->new_feature_map();
    AttentionState state;
    state.linear = cross_linear_summary(map_->forward(key), value, mask_unless_all(key_lengths));
    return state;
  }

  at::Tensor cross_step(const at::Tensor& query, const AttentionState& memory) override {
    return recurrent_cross_linear_attention(map_->forward(query), memory.linear, eps_);
  }

  std::shared_ptr<torch::nn::Module> randomness() const override { return map_; }

 private:
  bool causal_;
  double eps_;
  std::shared_ptr<FeatureMapImpl> map_;
};

// Softmax attention; a query that sees no key gives NaN.
class FullInner : public InnerAttention {
 public:
  explicit FullInner(const AttentionRequest& request)
      : InnerAttention("full"),
        temperature_(softmax_temperature(request.options, request.sizes)),
        dropout_(request.options.attention_dropout) {}

  at::Tensor forward(const InnerInputs& in) override {
    at::Tensor scores = at::einsum("nlhe,nshe->nhls", {in.query, in.key}) * temperature_;
    const at::Tensor keep = visible_keys(in);
    if (keep.defined()) {  // added, so that the gradient of a row without keys is NaN where the row is
      scores = scores + at::zeros(keep.sizes(), scores.options())
                            .masked_fill(keep.logical_not(), -std::numeric_limits<double>::infinity());
    }
    at::Tensor weights = scores.softmax(-1);
    if (is_training() && dropout_ > 0) weights = ops::dropout(weights, dropout_);
    if (in.weights != nullptr) *in.weights = weights;
    return at::einsum("nhls,nshd->nlhd", {weights, in.value});
  }

  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  AttentionState& state) override {
    check_batch(state, state.keys.defined() ? state.keys.size(0) : 0, query.size(0));
    const at::NoGradGuard no_grad;
    // exact_step divides by sqrt(D) itself.
    const double factor = temperature_ * std::sqrt(static_cast<double>(query.size(-1)));
    nn::KeyValueCache cache{state.keys, state.values, state.length};
    const at::Tensor out = nn::exact_step(query * factor, key, value, cache);
    state.keys = cache.keys;
    state.values = cache.values;
    state.length = cache.length;
    return out;
  }

  AttentionState summarize(const at::Tensor& key, const at::Tensor& value,
                           const AttentionMask& key_lengths) override {
    check_lengths(key_lengths, key, "key lengths");
    AttentionState state;
    state.keys = key;
    state.values = value;
    state.key_mask = key_lengths.bool_matrix();
    state.length = key.size(1);
    return state;
  }

  at::Tensor cross_step(const at::Tensor& query, const AttentionState& memory) override {
    check_batch(memory, memory.keys.size(0), query.size(0));
    InnerInputs in{query.unsqueeze(1),
                   memory.keys,
                   memory.values,
                   FullMask(1, memory.length),
                   FullMask(query.size(0), 1),
                   FullMask(query.size(0), memory.length)};
    // A FullMask of the key mask's shape serves as its lengths: only the matrix is read.
    if (!memory.key_mask.all().item<bool>()) in.key_lengths = FullMask(memory.key_mask);
    return forward(in).squeeze(1);
  }

 private:
  double temperature_, dropout_;
};

// Full attention up to a length, another kind beyond it.
class ConditionalFullInner : public InnerAttention {
 public:
  explicit ConditionalFullInner(const AttentionRequest& request)
      : InnerAttention("conditional-full"), limit_(request.options.length_limit) {
    check<UsageError>(
        request.decorated.size() == 1,
        "attention 'conditional-full' needs exactly one other attention for long sequences, as in "
        "conditional-full:linear, found {}",
        request.decorated.size());
    check<UsageError>(limit_ >= 0, "length_limit must be at least 0, found {}", limit_);
    full_ = register_module("full_attention", std::make_shared<FullInner>(request));
    other_ = register_module("other_attention", request.decorated.front());
  }

  at::Tensor forward(const InnerInputs& in) override {
    const bool is_long = in.query.size(1) > limit_ || in.value.size(1) > limit_;
    return is_long ? other_->forward(in) : full_->forward(in);
  }
  std::shared_ptr<torch::nn::Module> randomness() const override { return other_->randomness(); }

 private:
  int64_t limit_;
  InnerAttentionPtr full_, other_;
};

struct AttentionRegistry {
  std::mutex mutex;
  std::map<std::string, AttentionFactory> factories;
};

// For kinds that stand alone.
AttentionFactory plain(const std::string& kind, AttentionFactory factory) {
  return [kind, factory = std::move(factory)](const AttentionRequest& request) {
    check<UsageError>(request.decorated.empty(),
                      "attention '{}' takes no other attention; nothing may stand right of its colon", kind);
    return factory(request);
  };
}

template <class Inner, class... Args>
AttentionFactory factory_of(Args... args) {
  return [args...](const AttentionRequest& request) { return std::make_shared<Inner>(request, args...); };
}

AttentionRegistry& attention_registry() {
  static AttentionRegistry registry{{}, [] {
                                      std::map<std::string, AttentionFactory> kinds = {
                                          {"linear", factory_of<LinearInner>(false)},
                                          {"causal-linear", factory_of<LinearInner>(true)},
                                          {"full", factory_of<FullInner>()},
                                          {"aft-simple", make_aft_simple},
                                          {"aft-full", make_aft_full},
                                          {"local", make_local},
                                          {"exact-topk", make_exact_topk}};
                                      for (auto& [kind, factory] : kinds)
                                        factory = plain(kind, std::move(factory));
                                      kinds["conditional-full"] = factory_of<ConditionalFullInner>();
                                      return kinds;
                                    }()};
  return registry;
}

AttentionFactory find_attention(const std::string& kind) {
  const std::vector<std::string> known = attention_kinds();
  AttentionRegistry& registry = attention_registry();
  const std::lock_guard lock(registry.mutex);
  const auto found = registry.factories.find(kind);
  if (found != registry.factories.end()) return found->second;
  const std::string near = nearest(kind, known);
  throw UsageError(fmt::format("unknown attention '{}'{}; known: {}", kind,
                               near.empty() ? "" : fmt::format(", did you mean '{}'?", near),
                               fmt::join(known, ", ")));
}

std::vector<std::string> split_at(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text + separator);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

}  // namespace

at::Tensor InnerAttention::step(const at::Tensor&, const at::Tensor&, const at::Tensor&, AttentionState&) {
  throw UsageError(fmt::format(
      "attention '{}' has no recurrent form; mirror the model to linear, full or aft-simple", kind_));
}
AttentionState InnerAttention::summarize(const at::Tensor&, const at::Tensor&, const AttentionMask&) {
  throw UsageError(fmt::format(
      "attention '{}' has no recurrent form for cross-attention; mirror the model to linear, full "
      "or aft-simple",
      kind_));
}
at::Tensor InnerAttention::cross_step(const at::Tensor&, const AttentionState&) {
  throw UsageError(fmt::format("attention '{}' has no recurrent form for cross-attention", kind_));
}

double softmax_temperature(const InnerAttentionOptions& options, const AttentionSizes& sizes) {
  check<UsageError>(options.softmax_temp >= 0 && std::isfinite(options.softmax_temp),
                    "softmax_temp must be above 0, or 0 for the default, found {}", options.softmax_temp);
  return options.softmax_temp > 0 ? options.softmax_temp
                                  : 1 / std::sqrt(static_cast<double>(sizes.query_dimensions));
}

at::Tensor visible_keys(const InnerInputs& in) {
  check_lengths(in.key_lengths, in.key, "key lengths");
  check<UsageError>(in.mask.rows() == in.query.size(1) && in.mask.columns() == in.key.size(1),
                    "the attention mask must be [{}, {}] (queries, keys), found [{}, {}]", in.query.size(1),
                    in.key.size(1), in.mask.rows(), in.mask.columns());
  at::Tensor keep;
  if (!in.key_lengths.all_ones()) keep = in.key_lengths.bool_matrix().unsqueeze(1).unsqueeze(1);
  if (in.mask.all_ones()) return keep;
  const at::Tensor matrix = in.mask.bool_matrix();
  check<UsageError>(matrix.dim() == 2, "an attention mask must be [queries, keys], found {} dimensions",
                    matrix.dim());
  return keep.defined() ? keep.logical_and(matrix) : matrix.unsqueeze(0).unsqueeze(0);
}

std::vector<std::string> attention_kinds() {
  AttentionRegistry& registry = attention_registry();
  const std::lock_guard lock(registry.mutex);
  std::vector<std::string> names;
  for (const auto& [name, factory] : registry.factories) names.push_back(name);
  return names;
}

void register_attention(const std::string& kind, AttentionFactory factory) {
  check<UsageError>(!kind.empty() && kind.find_first_of(":,") == std::string::npos,
                    "an attention's name cannot be empty or have ':' or ',' in it, found '{}'", kind);
  AttentionRegistry& registry = attention_registry();
  const std::lock_guard lock(registry.mutex);
  registry.factories[kind] = std::move(factory);
}

InnerAttentionPtr make_attention(const std::string& type, const InnerAttentionOptions& options,
                                 const AttentionSizes& sizes, std::shared_ptr<torch::nn::Module> shared) {
  for (const FieldInfo& field : list_fields("attention", options)) parse_field(field, to_text(field.value));
  check<UsageError>(
      sizes.heads >= 1 && sizes.query_dimensions >= 1 && sizes.value_dimensions >= 1,
      "attention needs at least 1 head, query dimension and value dimension, found {}, {} and {}",
      sizes.heads, sizes.query_dimensions, sizes.value_dimensions);
  check<UsageError>(options.attention_dropout >= 0 && options.attention_dropout < 1,
                    "attention_dropout must be at least 0 and below 1, found {}", options.attention_dropout);
  std::vector<std::string> levels = split_at(type, ':');
  std::vector<InnerAttentionPtr> made;
  for (auto level = levels.rbegin(); level != levels.rend(); ++level) {
    std::vector<InnerAttentionPtr> outer;
    for (const std::string& kind : split_at(*level, ',')) {
      outer.push_back(find_attention(kind)({options, sizes, made, shared}));
    }
    made = std::move(outer);
  }
  check<UsageError>(made.size() == 1, "attention '{}' names {} attentions; the leftmost must be one", type,
                    made.size());
  return made.front();
}

}  // namespace performer::references::fast_transformers
