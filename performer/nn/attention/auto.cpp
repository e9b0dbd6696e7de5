// SPDX-License-Identifier: Apache-2.0
// Exact softmax attention where few keys are seen and an estimate of it where many are:
//
//   a query that sees at most `break_even` keys attends to them exactly, one that sees more by the linear
//   kind.
//
// In a bidirectional model all queries of a sequence see the same keys, so the length of the sequence
// decides. In a causal one the place decides: the first queries are exact, and what follows a prefix never
// changes its outputs, which a choice by the length of the whole sequence would. Streaming keeps keys and
// values of the first tokens only, and then the linear kind's state alone.
#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "performer/base/error.h"
#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/rows.h"
#include "performer/nn/attention/segments.h"

namespace performer::nn {
namespace {

struct AutoOptions {
  std::string linear = "favor-softmax";
  int64_t break_even = 0;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("linear", self.linear,
          "the kind for queries that see many keys: one that estimates softmax attention");
    visit("break_even", self.break_even,
          "keys up to which a query attends exactly (`performer bench` measures where that is faster); 0: "
          "attention.features, twice that in causal models");
  }
};

int64_t break_even_of(const AttentionConfig& config, bool causal) {
  const auto own = read_options<AutoOptions>(config);
  if (own.break_even > 0) return own.break_even;
  const AttentionKind& kind = find_kind(config.kind);
  for (const FieldInfo& field : kind.options) {
    if (field.name != "features") continue;
    const auto set = config.options.find("features");
    const int64_t features = std::get<int64_t>(set != config.options.end() ? set->second : field.value);
    return causal ? 2 * features : features;
  }
  return 0;
}

// The configuration of the linear part: the same without what is ours alone.
AttentionConfig linear_config(const AttentionConfig& config) {
  AttentionConfig linear = config;
  linear.kind = read_options<AutoOptions>(config).linear;
  linear.options.erase("linear");
  linear.options.erase("break_even");
  return linear;
}

// chosen [B] or [B, T], yes and no [B, T, H, D].
at::Tensor per_row(const at::Tensor& chosen, const at::Tensor& yes, const at::Tensor& no) {
  const at::Tensor rows = chosen.dim() == 1 ? chosen.unsqueeze(1) : chosen;
  return at::where(rows.unsqueeze(-1).unsqueeze(-1), yes, no.to(yes.scalar_type()));
}

struct AutoCache final : Cache {
  std::unique_ptr<Cache> exact;  // null once queries see more keys than break_even
  std::unique_ptr<Cache> linear;
  int64_t length = 0;

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<AutoCache>();
    if (exact) selected->exact = exact->select(rows);
    selected->linear = linear->select(rows);
    selected->length = length;
    return selected;
  }
};

struct AutoContext final : Cache {
  std::unique_ptr<Cache> exact;  // null once all rows have more keys than break_even
  std::unique_ptr<Cache> linear;
  at::Tensor keys;  // int64 [B]: how many each row has
  at::Tensor few;   // bool [B]: whether that is at most break_even

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<AutoContext>();
    if (exact) selected->exact = exact->select(rows);
    selected->linear = linear->select(rows);
    selected->keys = keys.index_select(0, rows);
    selected->few = few.index_select(0, rows);
    return selected;
  }
};

class AutoAttention final : public Attention {
 public:
  AutoAttention(const AttentionConfig& config, const AttentionShape& shape)
      : break_even_(break_even_of(config, shape.causal)) {
    AttentionConfig exact;
    exact.kind = "exact";
    exact_ = register_module("exact", make_attention(exact, shape));
    linear_ = register_module("linear", make_attention(linear_config(config), shape));
  }

  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    if (!inputs.cu_query) return attend(inputs);
    if (!inputs.key_mask) {
      const at::Tensor lengths = (inputs.cu_key ? *inputs.cu_key : *inputs.cu_query).diff();
      if (lengths.le(break_even_).all().item<bool>()) return exact_->forward(inputs);
      if (!inputs.causal && lengths.gt(break_even_).all().item<bool>()) return linear_->forward(inputs);
    }
    return attend_segments(inputs, [&](const ops::AttentionInputs& segment) { return attend(segment); });
  }

  at::Tensor rows(const ops::AttentionInputs& inputs, const RowRange& range) override {
    return rows_of_sequences(inputs, range, [&](const ops::AttentionInputs& one, const RowRange& some) {
      const at::Tensor few = visible_keys(one, some).sum(-1).le(break_even_);  // [B or 1, R]
      if (few.all().item<bool>()) return exact_->rows(one, some);
      const at::Tensor estimated = linear_->rows(one, some);
      if (!few.any().item<bool>()) return estimated;
      return at::where(few.unsqueeze(1).unsqueeze(-1), exact_->rows(one, some), estimated);
    });
  }

  std::unique_ptr<Cache> begin(int64_t batch) const override {
    auto cache = std::make_unique<AutoCache>();
    cache->exact = exact_->begin(batch);
    cache->linear = linear_->begin(batch);
    return cache;
  }

  // The linear state takes in the first tokens too, though nothing reads it yet.
  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  Cache& cache) const override {
    auto& own = dynamic_cast<AutoCache&>(cache);
    const at::Tensor estimate = linear_->step(query, key, value, *own.linear);
    ++own.length;
    if (own.length > break_even_) return estimate;
    const at::Tensor out = exact_->step(query, key, value, *own.exact);
    if (own.length == break_even_) own.exact.reset();
    return out;
  }

  at::Tensor advance(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     Cache& cache) const override {
    auto& own = dynamic_cast<AutoCache&>(cache);
    const at::Tensor estimate = linear_->advance(query, key, value, *own.linear);
    const int64_t length = value.size(1), few = std::clamp<int64_t>(break_even_ - own.length, 0, length);
    own.length += length;
    if (few == 0) return estimate;
    const at::Tensor out =
        exact_->advance(query.narrow(1, 0, few), key.narrow(1, 0, few), value.narrow(1, 0, few), *own.exact);
    if (own.length >= break_even_) own.exact.reset();
    return at::cat({out, estimate.narrow(1, few, length - few).to(out.scalar_type())}, 1);
  }

  std::unique_ptr<Cache> begin_cross(const at::Tensor& key, const at::Tensor& value,
                                     const std::optional<at::Tensor>& key_mask) const override {
    auto cache = std::make_unique<AutoContext>();
    cache->exact = exact_->begin_cross(key, value, key_mask);
    cache->linear = linear_->begin_cross(key, value, key_mask);
    cache->keys = key_mask ? key_mask->sum(1) : at::full({key.size(0)}, key.size(1), at::kLong);
    cache->few = cache->keys.le(break_even_);
    return cache;
  }

  void extend(const at::Tensor& key, const at::Tensor& value, Cache& cache) const override {
    auto& own = dynamic_cast<AutoContext&>(cache);
    own.keys = own.keys + key.size(1);
    own.few = own.keys.le(break_even_);
    linear_->extend(key, value, *own.linear);
    if (!own.few.any().item<bool>()) own.exact.reset();
    if (own.exact) exact_->extend(key, value, *own.exact);
  }

  at::Tensor read(const at::Tensor& query, const Cache& cache) const override {
    const auto& own = dynamic_cast<const AutoContext&>(cache);
    if (own.few.all().item<bool>()) return exact_->read(query, *own.exact);
    if (!own.few.any().item<bool>()) return linear_->read(query, *own.linear);
    return per_row(own.few, exact_->read(query, *own.exact), linear_->read(query, *own.linear));
  }

  void redraw(int64_t index) override { linear_->redraw(index); }
  void after_step() override { linear_->after_step(); }

 private:
  // Single sequences, a row each.
  at::Tensor attend(const ops::AttentionInputs& inputs) {
    const int64_t keys = inputs.key.size(1);
    if (keys == 0) return linear_->forward(inputs);
    if (keys <= break_even_) return exact_->forward(inputs);
    if (inputs.causal) return attend_causally(inputs);
    if (!inputs.key_mask) return linear_->forward(inputs);
    const at::Tensor few = inputs.key_mask->sum(1).le(break_even_);
    if (few.all().item<bool>()) return exact_->forward(inputs);
    if (!few.any().item<bool>()) return linear_->forward(inputs);
    const at::Tensor first = few.nonzero().flatten(), second = few.logical_not().nonzero().flatten();
    const at::Tensor order = at::cat({first, second}).argsort();
    return at::cat({exact_->forward(rows_of(inputs, first)), linear_->forward(rows_of(inputs, second))}, 0)
        .index_select(0, order);
  }

  // The first queries of each row exactly. Without masks these are break_even; masked keys are not seen.
  at::Tensor attend_causally(const ops::AttentionInputs& inputs) {
    int64_t width = break_even_;
    at::Tensor few;
    if (inputs.key_mask) {
      few = inputs.key_mask->cumsum(1).le(break_even_);
      width = few.any(0).sum().item<int64_t>();
    }
    ops::AttentionInputs first = inputs;
    for (at::Tensor* each : {&first.query, &first.key, &first.value}) *each = each->narrow(1, 0, width);
    if (inputs.key_mask) first.key_mask = inputs.key_mask->narrow(1, 0, width);
    if (inputs.query_mask) first.query_mask = inputs.query_mask->narrow(1, 0, width);
    const at::Tensor exact = exact_->forward(first);
    if (width == inputs.key.size(1) && few.all().item<bool>()) return exact;
    const at::Tensor all = linear_->forward(inputs);
    const at::Tensor rest = all.narrow(1, width, all.size(1) - width);
    if (!few.defined()) return at::cat({exact, rest}, 1);
    const at::Tensor chosen = few.narrow(1, 0, width);
    return at::cat({per_row(chosen, exact, all.narrow(1, 0, width)), rest}, 1);
  }

  static ops::AttentionInputs rows_of(const ops::AttentionInputs& inputs, const at::Tensor& rows) {
    ops::AttentionInputs some = inputs;
    for (at::Tensor* each : {&some.query, &some.key, &some.value}) *each = each->index_select(0, rows);
    if (inputs.key_mask) some.key_mask = inputs.key_mask->index_select(0, rows);
    if (inputs.query_mask) some.query_mask = inputs.query_mask->index_select(0, rows);
    return some;
  }

  int64_t break_even_;
  std::shared_ptr<Attention> exact_, linear_;
};

void validate_auto(const AttentionConfig& config, const AttentionShape& shape) {
  const auto own = read_options<AutoOptions>(config);
  check<UsageError>(own.break_even >= 0 && own.break_even <= kLargestSize,
                    "attention.break_even must be between 0 and {}, not {}", kLargestSize, own.break_even);
  const AttentionKind& linear = find_kind(own.linear);
  const AttentionConfig inner = linear_config(config);
  const bool estimates = [&] {
    if (!linear.feature_map) return false;
    check_options(inner);
    const ops::FeatureMapTraits traits = ops::feature_map_traits(linear.feature_map(inner).map);
    return traits.exponential && !traits.learned && !traits.statistics;
  }();
  check<UsageError>(
      estimates,
      "attention.linear must be a kind that estimates softmax attention by a fixed map, since both are to "
      "be the same function: favor-softmax, favor-hyperbolic, favor-expmod or favor-trigonometric, but is {}",
      own.linear);
  if (linear.validate) linear.validate(inner, shape);
}

}  // namespace

AttentionKind auto_kind(const std::vector<FieldInfo>& linear_options) {
  AttentionKind kind;
  kind.name = "auto";
  kind.summary =
      "exact softmax attention for queries that see few keys, a linear estimate of it for the others";
  kind.cost = "as its linear kind, beyond the first break_even tokens";
  kind.capabilities = {.streams = true, .cross = true, .grows = true, .redraws = true, .rows = true};
  kind.options = kind_options<AutoOptions>();
  kind.options.insert(kind.options.end(), linear_options.begin(), linear_options.end());
  kind.validate = validate_auto;
  kind.make = [](const AttentionConfig& config, const AttentionShape& shape) {
    return std::make_shared<AutoAttention>(config, shape);
  };
  kind.numbers = [](const AttentionConfig& config, const AttentionShape& shape) {
    const AttentionKind& linear = find_kind(read_options<AutoOptions>(config).linear);
    return linear.numbers ? linear.numbers(linear_config(config), shape) : 0.0;
  };
  kind.notice = [](const AttentionConfig& config, const AttentionShape& shape) {
    const int64_t keys = break_even_of(config, shape.causal);
    const std::string linear = read_options<AutoOptions>(config).linear;
    return shape.causal
               ? fmt::format(
                     "attention.kind = auto: the first {} tokens of a sequence attend exactly, later ones "
                     "by {} (attention.break_even)",
                     keys, linear)
               : fmt::format(
                     "attention.kind = auto: sequences of at most {} tokens attend exactly, longer ones by "
                     "{} (attention.break_even)",
                     keys, linear);
  };
  return kind;
}

}  // namespace performer::nn
