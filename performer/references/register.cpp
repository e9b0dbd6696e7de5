// SPDX-License-Identifier: Apache-2.0
#include "performer/references/register.h"

#include <ATen/ATen.h>

#include <mutex>
#include <vector>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "performer/references/presets.h"

namespace performer::references {
namespace {

struct ReferenceOptions {
  int64_t features = 256;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("features", self.features, "random features M");
  }
};

// A reference's attention with its defaults. It has no state: whoever generates reads the prefix again.
class ReferenceAttention final : public nn::Attention {
 public:
  ReferenceAttention(const AttentionConfig& config, const nn::AttentionShape& shape)
      : kind_(config.kind),
        features_(nn::read_options<ReferenceOptions>(config).features),
        seed_(config.seed),
        shape_(shape) {
    if (preset_traits(kind_).projected) projection_ = register_buffer("projection", draw(0));
  }

  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    if (!inputs.cu_query)
      return attend(inputs.query, inputs.key, inputs.value, inputs.causal, inputs.key_mask);
    // No reference knows packed sequences: each is a call of its own.
    const auto bounds = inputs.cu_query->accessor<int64_t, 1>();
    std::vector<at::Tensor> parts = {inputs.value.narrow(1, 0, 0)};
    for (int64_t n = 0; n + 1 < bounds.size(0); ++n) {
      const int64_t length = bounds[n + 1] - bounds[n];
      if (length == 0) continue;
      const auto segment = [&](const at::Tensor& x) { return x.narrow(1, bounds[n], length); };
      parts.push_back(
          attend(segment(inputs.query), segment(inputs.key), segment(inputs.value), inputs.causal, {}));
    }
    return at::cat(parts, 1);
  }

  void redraw(int64_t index) override {
    if (!projection_.defined()) return;
    const at::NoGradGuard no_grad;
    projection_.copy_(draw(index));
  }

 private:
  at::Tensor draw(int64_t index) const {
    return preset_projection(kind_, shape_.heads, features_, shape_.head_size, seed_, shape_.layer, index);
  }

  at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, bool causal,
                    const std::optional<at::Tensor>& key_mask) const {
    const std::optional<at::Tensor> projection =
        projection_.defined() ? std::optional<at::Tensor>(projection_) : std::nullopt;
    return preset_attention(kind_, query, key, value, projection, causal, key_mask);
  }

  std::string kind_;
  int64_t features_, seed_;
  nn::AttentionShape shape_;
  at::Tensor projection_;  // buffer, or undefined
};

void validate_features(const AttentionConfig& config, const nn::AttentionShape&) {
  const int64_t features = nn::read_options<ReferenceOptions>(config).features;
  check<UsageError>(features >= 1 && features <= kLargestSize,
                    "attention.features must be between 1 and {}, not {}", kLargestSize, features);
}

nn::AttentionKind kind_of(const std::string& name) {
  const PresetTraits& traits = preset_traits(name);
  nn::AttentionKind kind;
  kind.name = name;
  kind.summary = traits.reproduces;
  kind.group = nn::KindGroup::reference;
  kind.capabilities.causal = traits.causal;
  kind.capabilities.bidirectional = traits.bidirectional;
  kind.capabilities.masks = traits.key_mask != KeyMask::none;
  kind.capabilities.redraws = traits.projected;
  kind.capabilities.linear = true;
  if (traits.projected) {
    kind.options = nn::kind_options<ReferenceOptions>();
    kind.validate = validate_features;
  }
  kind.make = [](const AttentionConfig& config, const nn::AttentionShape& shape) {
    return std::make_shared<ReferenceAttention>(config, shape);
  };
  return kind;
}

}  // namespace

void register_all() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (const std::string& name : preset_names()) nn::register_kind(kind_of(name));
  });
}

}  // namespace performer::references
