// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/linear_attention.h"

#include <ATen/ATen.h>

#include <array>
#include <utility>
#include <vector>

#include "performer/base/error.h"
#include "performer/compat/presets.h"

namespace performer::nn {
namespace {

constexpr double kMomentDecay = 0.99;  // of the running moments, a training step

std::array<std::pair<const char*, at::Tensor ops::MapStatistics::*>, 4> moments() {
  return {{{"query_mean", &ops::MapStatistics::query_mean},
           {"key_mean", &ops::MapStatistics::key_mean},
           {"query_moment", &ops::MapStatistics::query_moment},
           {"key_moment", &ops::MapStatistics::key_moment}}};
}

}  // namespace

ops::FeatureMapOptions feature_map_options(const AttentionConfig& attention) {
  ops::FeatureMapOptions options;
  options.map = map_name(attention);
  options.features = attention.features;
  options.projection = attention.projection;
  options.row_norm = attention.row_norm;
  options.epsilon = attention.epsilon;
  options.shared_projection = attention.shared_projection;
  return options;
}

LinearAttentionImpl::LinearAttentionImpl(const AttentionConfig& attention, int64_t heads, int64_t head_size,
                                         bool causal, int64_t layer)
    : attention_(attention), heads_(heads), head_size_(head_size), layer_(layer), causal_(causal) {
  if (is_preset(attention)) {
    preset_ = attention.kind;
    const compat::PresetTraits& traits = compat::preset_traits(preset_);
    check<UsageError>(causal ? traits.causal : traits.bidirectional,
                      "attention.kind = {} has no {} form: choose another kind, or model.objective = {}",
                      preset_, causal ? "causal" : "bidirectional", causal ? "masked" : "causal");
  } else {
    options_ = feature_map_options(attention);
    ops::validate(options_, head_size);
    const ops::MapWeights learned = ops::initial_map_weights(options_, heads, head_size);
    if (learned.matrix.defined()) matrix_ = register_parameter("matrix", learned.matrix);
    if (learned.bias.defined()) bias_ = register_parameter("bias", learned.bias);
  }
  const at::Tensor projection = draw(0);
  if (projection.defined()) projection_ = register_buffer("projection", projection);
  // Causal models use what earlier steps measured; others measure each sequence on the way.
  if (causal && preset_.empty() && ops::feature_map_traits(options_.map).statistics) {
    for (const auto& [name, member] : moments()) {
      const bool mean = std::string(name).ends_with("mean");
      running_.*member = register_buffer(
          name, mean ? at::zeros({heads, head_size}) : at::zeros({heads, head_size, head_size}));
    }
  }
}

at::Tensor LinearAttentionImpl::draw(int64_t index) const {
  if (!preset_.empty()) {
    if (!compat::preset_traits(preset_).projected) return {};
    return compat::preset_projection(preset_, heads_, attention_.features, head_size_, attention_.seed,
                                     layer_, index);
  }
  return ops::draw_map_projection(options_, heads_, head_size_, attention_.seed, layer_, index);
}

void LinearAttentionImpl::redraw(int64_t index) {
  if (!projection_.defined()) return;
  const at::NoGradGuard no_grad;
  projection_.copy_(draw(index));
}

ops::MapWeights LinearAttentionImpl::weights() const {
  ops::MapWeights weights;
  if (projection_.defined()) weights.projection = projection_.to(at::kFloat);
  weights.matrix = matrix_;
  weights.bias = bias_;
  return weights;
}

void LinearAttentionImpl::note_statistics(const ops::AttentionInputs& inputs) {
  if (!running_.defined() || !is_training()) return;
  const ops::MapStatistics measured = ops::pool_statistics(ops::measure_statistics(inputs, options_));
  for (const auto& [name, member] : moments()) last_measured_.*member = (measured.*member).to(at::kFloat);
}

void LinearAttentionImpl::update_statistics() {
  if (!last_measured_.defined()) return;
  const at::NoGradGuard no_grad;
  const bool first = running_.key_moment.count_nonzero().item<int64_t>() == 0;
  for (const auto& [name, member] : moments()) {
    at::Tensor& running = running_.*member;
    if (first) {
      running.copy_(last_measured_.*member);
    } else {
      running.mul_(kMomentDecay).add_(last_measured_.*member, 1 - kMomentDecay);
    }
  }
  last_measured_ = {};
}

at::Tensor LinearAttentionImpl::preset_forward(const at::Tensor& query, const at::Tensor& key,
                                               const at::Tensor& value, const SequenceBatch& batch) const {
  const std::optional<at::Tensor> projection =
      projection_.defined() ? std::optional<at::Tensor>(projection_) : std::nullopt;
  if (!batch.cu_seqlens)
    return compat::preset_attention(preset_, query, key, value, projection, causal_, batch.key_mask);
  // No reference knows packed sequences: each is a call of its own.
  const at::Tensor bounds = batch.cu_seqlens->cpu();
  const int64_t* cu = bounds.data_ptr<int64_t>();
  std::vector<at::Tensor> parts = {value.narrow(1, 0, 0)};
  for (int64_t n = 0; n + 1 < bounds.numel(); ++n) {
    const int64_t length = cu[n + 1] - cu[n];
    if (length == 0) continue;
    const auto segment = [&](const at::Tensor& x) { return x.narrow(1, cu[n], length); };
    parts.push_back(compat::preset_attention(preset_, segment(query), segment(key), segment(value),
                                             projection, causal_, {}));
  }
  return at::cat(parts, 1);
}

at::Tensor LinearAttentionImpl::forward(const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value, const SequenceBatch& batch) {
  if (!preset_.empty()) return preset_forward(query, key, value, batch);
  ops::AttentionInputs inputs;
  inputs.query = query;
  inputs.key = key;
  inputs.value = value;
  inputs.causal = causal_;
  inputs.key_mask = batch.key_mask;
  inputs.query_mask = batch.key_mask;
  inputs.cu_query = batch.cu_seqlens;
  return std::get<0>(continue_from(inputs));
}

std::tuple<at::Tensor, ops::State> LinearAttentionImpl::continue_from(const ops::AttentionInputs& inputs) {
  check<UsageError>(
      preset_.empty(),
      "attention.kind = {} reproduces a reference that has no state to continue from; use a favor-* kind",
      preset_);
  note_statistics(inputs);
  return ops::mapped_attention(inputs, options_, weights(), running_);
}

at::Tensor LinearAttentionImpl::step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                     ops::State& state) {
  check<UsageError>(preset_.empty(),
                    "attention.kind = {} reproduces a reference that cannot be fed one token at a time; {}",
                    preset_, preset_.empty() ? "" : compat::preset_traits(preset_).instead);
  // A new sequence may come after an optimizer step, a redraw or other weights.
  if (!state.defined() || !streaming_) {
    streaming_ = ops::prepare_feature_map(options_, weights(), running_, heads_, head_size_);
  }
  return ops::mapped_step(query, key, value, state, *streaming_);
}

}  // namespace performer::nn
