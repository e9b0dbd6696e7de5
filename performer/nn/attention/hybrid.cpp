// SPDX-License-Identifier: Apache-2.0
// Exact softmax attention of some heads beside linear attention of the others.
//
// A model whose attention is replaced head by head keeps the heads that no linear kind reproduces (performer
// convert --transfer finds them). Which these are is written down for each layer, since layers differ.
#include <ATen/ATen.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "performer/base/error.h"
#include "performer/base/numbers.h"
#include "performer/nn/attention/own_kinds.h"

namespace performer::nn {
namespace {

struct HybridOptions {
  std::string linear = "favor-softmax";
  std::string exact_heads;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("linear", self.linear, "the kind of the other heads: a favor-* kind");
    visit("exact_heads", self.exact_heads,
          "heads that attend exactly, LAYER:HEAD,HEAD ... with * for all heads of a layer, counted from 0: "
          "\"0:* 3:1,5\"");
  }
};

// The exact heads of a layer, in order. Throws UsageError for a text that is not as the option's help says.
std::vector<int64_t> exact_heads_of(const AttentionConfig& config, const AttentionShape& shape) {
  const std::string text = read_options<HybridOptions>(config).exact_heads;
  std::vector<int64_t> heads;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    const std::string_view part = std::string_view(text).substr(at, end - at);
    at = end + 1;
    if (part.empty()) continue;
    const size_t colon = part.find(':');
    check<UsageError>(colon != std::string_view::npos, "attention.exact_heads: \"{}\" is not LAYER:HEAD,HEAD",
                      part);
    const int64_t layer = parse_whole("attention.exact_heads", part.substr(0, colon), {0, kLargestSize});
    for (size_t begin = colon + 1; begin <= part.size();) {
      const size_t comma = std::min(part.find(',', begin), part.size());
      const std::string_view word = part.substr(begin, comma - begin);
      begin = comma + 1;
      if (word == "*") {
        for (int64_t head = 0; layer == shape.layer && head < shape.heads; ++head) heads.push_back(head);
        continue;
      }
      const int64_t head = parse_whole("attention.exact_heads", word, {0, shape.heads - 1});
      if (layer == shape.layer) heads.push_back(head);
    }
  }
  std::sort(heads.begin(), heads.end());
  heads.erase(std::unique(heads.begin(), heads.end()), heads.end());
  return heads;
}

// The configuration of the linear part: the same without what is ours alone.
AttentionConfig hybrid_linear_config(const AttentionConfig& config) {
  AttentionConfig linear = config;
  linear.kind = read_options<HybridOptions>(config).linear;
  linear.options.erase("linear");
  linear.options.erase("exact_heads");
  return linear;
}

struct HybridCache final : Cache {
  std::unique_ptr<Cache> exact, linear;  // null without such heads

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<HybridCache>();
    if (exact) selected->exact = exact->select(rows);
    if (linear) selected->linear = linear->select(rows);
    return selected;
  }
};

class HybridAttention final : public Attention {
 public:
  HybridAttention(const AttentionConfig& config, const AttentionShape& shape) {
    const std::vector<int64_t> chosen = exact_heads_of(config, shape);
    std::vector<int64_t> others;
    for (int64_t head = 0; head < shape.heads; ++head) {
      if (!std::binary_search(chosen.begin(), chosen.end(), head)) others.push_back(head);
    }
    exact_heads_ = at::tensor(chosen, at::kLong);
    linear_heads_ = at::tensor(others, at::kLong);
    std::vector<int64_t> order = chosen;
    order.insert(order.end(), others.begin(), others.end());
    order_ = at::tensor(order, at::kLong).argsort();
    AttentionShape part = shape;
    if (!chosen.empty()) {
      AttentionConfig exact;
      exact.kind = "exact";
      part.heads = std::ssize(chosen);
      exact_ = register_module("exact", make_attention(exact, part));
    }
    if (!others.empty()) {
      part.heads = std::ssize(others);
      linear_ = register_module("linear", make_attention(hybrid_linear_config(config), part));
    }
  }

  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    if (!exact_) return linear_->forward(inputs);
    if (!linear_) return exact_->forward(inputs);
    return joined(exact_->forward(part(inputs, exact_heads_)), linear_->forward(part(inputs, linear_heads_)));
  }

  std::unique_ptr<Cache> begin(int64_t batch) const override {
    auto cache = std::make_unique<HybridCache>();
    if (exact_) cache->exact = exact_->begin(batch);
    if (linear_) cache->linear = linear_->begin(batch);
    return cache;
  }

  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  Cache& cache) const override {
    auto& own = dynamic_cast<HybridCache&>(cache);
    if (!exact_) return linear_->step(query, key, value, *own.linear);
    if (!linear_) return exact_->step(query, key, value, *own.exact);
    const auto of = [](const at::Tensor& x, const at::Tensor& heads) { return x.index_select(-2, heads); };
    return joined(
        exact_->step(of(query, exact_heads_), of(key, exact_heads_), of(value, exact_heads_), *own.exact),
        linear_->step(of(query, linear_heads_), of(key, linear_heads_), of(value, linear_heads_),
                      *own.linear));
  }

  void redraw(int64_t index) override {
    if (linear_) linear_->redraw(index);
  }
  void after_step() override {
    if (linear_) linear_->after_step();
  }

 private:
  static ops::AttentionInputs part(const ops::AttentionInputs& inputs, const at::Tensor& heads) {
    ops::AttentionInputs some = inputs;
    for (at::Tensor* each : {&some.query, &some.key, &some.value}) *each = each->index_select(-2, heads);
    return some;
  }
  at::Tensor joined(const at::Tensor& exact, const at::Tensor& linear) const {
    return at::cat({exact, linear.to(exact.scalar_type())}, -2).index_select(-2, order_);
  }

  at::Tensor exact_heads_, linear_heads_, order_;  // heads, and the places of heads behind each other
  std::shared_ptr<Attention> exact_, linear_;      // null without such heads
};

void validate_hybrid(const AttentionConfig& config, const AttentionShape& shape) {
  exact_heads_of(config, shape);
  const AttentionKind& linear = find_kind(read_options<HybridOptions>(config).linear);
  check<UsageError>(linear.feature_map != nullptr, "attention.linear must be a favor-* kind, but is {}",
                    linear.name);
  const AttentionConfig inner = hybrid_linear_config(config);
  check_options(inner);
  if (linear.validate) linear.validate(inner, shape);
}

}  // namespace

AttentionKind hybrid_kind(const std::vector<FieldInfo>& linear_options) {
  AttentionKind kind;
  kind.name = "hybrid";
  kind.summary = "exact softmax attention of chosen heads beside linear attention of the others";
  kind.cost = "of chosen heads as exact, of the others as the linear kind";
  kind.capabilities = {.streams = true, .redraws = true};
  kind.options = kind_options<HybridOptions>();
  kind.options.insert(kind.options.end(), linear_options.begin(), linear_options.end());
  kind.validate = validate_hybrid;
  kind.make = [](const AttentionConfig& config, const AttentionShape& shape) {
    return std::make_shared<HybridAttention>(config, shape);
  };
  kind.numbers = [](const AttentionConfig& config, const AttentionShape& shape) {
    const AttentionKind& linear = find_kind(read_options<HybridOptions>(config).linear);
    return linear.numbers ? linear.numbers(hybrid_linear_config(config), shape) : 0.0;
  };
  return kind;
}

}  // namespace performer::nn
