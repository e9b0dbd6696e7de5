// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <deque>
#include <mutex>

#include "performer/base/error.h"
#include "performer/nn/attention/own_kinds.h"

namespace performer::nn {
namespace {

// Kinds are never removed, and a deque never moves them: references stay valid.
class Registry {
 public:
  Registry() {
    std::vector<AttentionKind> favor = favor_kinds();
    const std::vector<FieldInfo> options = favor.front().options;
    for (AttentionKind& kind : favor) add(std::move(kind));
    add(auto_kind(options));
    add(hybrid_kind(options));
    add(exact_kind());
    add(local_kind());
    add(sparse_kind());
    add(global_kind());
    add(lsh_kind());
    add(linformer_kind());
    add(windowed_kind());
    add(identity_kind());
  }

  void add(AttentionKind kind) {
    const std::lock_guard lock(mutex_);
    for (const AttentionKind& known : kinds_) {
      check<UsageError>(known.name != kind.name, "the attention kind {} is registered already", kind.name);
    }
    check<UsageError>(kind.make != nullptr, "the attention kind {} has no function that makes it", kind.name);
    kinds_.push_back(std::move(kind));
  }

  const AttentionKind* find(const std::string& name) const {
    const std::lock_guard lock(mutex_);
    for (const AttentionKind& kind : kinds_) {
      if (kind.name == name) return &kind;
    }
    return nullptr;
  }

  std::vector<std::string> names() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> names;
    for (const AttentionKind& kind : kinds_) names.push_back(kind.name);
    return names;
  }

 private:
  mutable std::mutex mutex_;
  std::deque<AttentionKind> kinds_;
};

Registry& registry() {
  static Registry all;
  return all;
}

[[noreturn]] void refuse(const char* what) {
  throw Error(fmt::format("this attention kind has no {}; its capabilities say so", what));
}

}  // namespace

std::unique_ptr<Cache> Attention::begin(int64_t) const {
  refuse("streaming");
}
at::Tensor Attention::step(const at::Tensor&, const at::Tensor&, const at::Tensor&, Cache&) const {
  refuse("streaming");
}
at::Tensor Attention::advance(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                              Cache& cache) const {
  const auto token = [](const at::Tensor& x, int64_t t) { return x.defined() ? x.select(1, t) : x; };
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < value.size(1); ++t) {
    rows.push_back(step(token(query, t), token(key, t), token(value, t), cache));
  }
  return rows.empty() ? value : at::stack(rows, 1);
}
std::tuple<at::Tensor, ops::State> Attention::continue_from(const ops::AttentionInputs&) {
  refuse("state to continue from");
}
ops::State Attention::key_state(const ops::KeyInputs&) {
  refuse("state to continue from");
}
std::unique_ptr<Cache> Attention::begin_cross(const at::Tensor&, const at::Tensor&,
                                              const std::optional<at::Tensor>&) const {
  refuse("cross-attention");
}
void Attention::extend(const at::Tensor&, const at::Tensor&, Cache&) const {
  refuse("context that grows");
}
at::Tensor Attention::read(const at::Tensor&, const Cache&) const {
  refuse("cross-attention");
}
at::Tensor Attention::rows(const ops::AttentionInputs&, const RowRange&) {
  refuse("rows of its matrix");
}

const char* group_name(KindGroup group) {
  switch (group) {
    case KindGroup::own:
      return "own";
    case KindGroup::baseline:
      return "baselines";
    case KindGroup::reference:
      break;
  }
  return "references";
}

void register_kind(AttentionKind kind) {
  registry().add(std::move(kind));
}

std::vector<std::string> kind_names() {
  return registry().names();
}

const AttentionKind& find_kind(const std::string& name) {
  if (const AttentionKind* kind = registry().find(name)) return *kind;
  const std::string near = nearest(name, kind_names());
  throw UsageError(
      fmt::format("attention.kind must be a known attention kind, but is '{}'{}; `performer info "
                  "--kinds` lists all",
                  name, near.empty() ? "" : fmt::format(" (did you mean {}?)", near)));
}

Capabilities capabilities_of(const AttentionConfig& config) {
  const AttentionKind& kind = find_kind(config.kind);
  return kind.configured ? kind.configured(config) : kind.capabilities;
}

std::vector<FieldInfo> fields_in_use(const std::string& section, const AttentionConfig& config) {
  const AttentionKind& kind = find_kind(config.kind);
  const Capabilities can = capabilities_of(config);
  const auto is_unused = [&](const FieldInfo& field) {
    if (field.name == "local_window") return config.local_heads == 0;
    if (field.name == "qk_norm" || field.name == "learned_temperature")
      return !can.reads_queries && config.local_heads == 0;
    if (field.name == "redraw_every") return !can.redraws;
    if (field.name == "seed") return kind.reads ? !kind.reads(config, field.name) : !can.redraws;
    const bool own =
        std::ranges::any_of(kind.options, [&](const FieldInfo& option) { return option.name == field.name; });
    return own && kind.reads && !kind.reads(config, field.name);
  };
  std::vector<FieldInfo> fields = list_fields(section, config);
  std::erase_if(fields, is_unused);
  return fields;
}

std::string notice_of(const ModelConfig& model, const AttentionConfig& attention) {
  const AttentionKind& kind = find_kind(attention.kind);
  if (!kind.notice) return "";
  return kind.notice(attention, {model.heads, head_size(model), model.objective == "causal", 0});
}

std::optional<int64_t> longest_of(const AttentionConfig& config) {
  const AttentionKind& kind = find_kind(config.kind);
  if (!kind.longest) return std::nullopt;
  return kind.longest(config);
}

bool has_option(const AttentionKind& kind, const std::string& name) {
  return std::any_of(kind.options.begin(), kind.options.end(),
                     [&](const FieldInfo& field) { return field.name == name; });
}

void require(const std::string& kind, bool has, const std::string& capability, const std::string& cure) {
  check<UsageError>(has, "attention.kind = {} has no {}: {}", kind, capability, cure);
}

std::shared_ptr<Attention> make_attention(const AttentionConfig& config, const AttentionShape& shape) {
  const AttentionKind& kind = find_kind(config.kind);
  require(kind.name, shape.causal ? kind.capabilities.causal : kind.capabilities.bidirectional,
          shape.causal ? "causal form" : "bidirectional form",
          shape.causal ? "choose another kind, or model.objective = masked"
                       : "choose another kind, or model.objective = causal");
  check_options(config);
  if (kind.validate) kind.validate(config, shape);
  return kind.make(config, shape);
}

}  // namespace performer::nn
