// SPDX-License-Identifier: Apache-2.0
#include "performer/references/register.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <mutex>
#include <vector>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "performer/nn/attention/segments.h"
#include "performer/references/fast_transformers/convert.h"
#include "performer/references/performer_pytorch/convert.h"
#include "performer/references/protein_lm/convert.h"
#include "performer/references/reference_kind.h"

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
  ReferenceAttention(const ReferenceKind& kind, const AttentionConfig& config,
                     const nn::AttentionShape& shape)
      : kind_(kind),
        features_(nn::read_options<ReferenceOptions>(config).features),
        seed_(config.seed),
        shape_(shape) {
    if (kind.projected) projection_ = register_buffer("projection", draw(0));
  }

  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    if (inputs.cu_query) {  // no reference knows packed sequences
      return nn::attend_segments(inputs,
                                 [&](const ops::AttentionInputs& segment) { return forward(segment); });
    }
    ReferenceCall call{inputs.query, inputs.key, inputs.value};
    if (projection_.defined()) call.projection = projection_;
    call.causal = inputs.causal;
    call.key_mask = inputs.key_mask;
    return attend(kind_, call);
  }

  void redraw(int64_t index) override {
    if (!projection_.defined()) return;
    const at::NoGradGuard no_grad;
    projection_.copy_(draw(index));
  }

 private:
  at::Tensor draw(int64_t index) const {
    return draw_projection(kind_, {shape_.heads, features_, shape_.head_size, seed_, shape_.layer, index});
  }

  const ReferenceKind& kind_;  // a row of reference_kinds(), which are never removed
  int64_t features_, seed_;
  nn::AttentionShape shape_;
  at::Tensor projection_;  // buffer, or undefined
};

void validate_features(const AttentionConfig& config, const nn::AttentionShape&) {
  const int64_t features = nn::read_options<ReferenceOptions>(config).features;
  check<UsageError>(features >= 1 && features <= kLargestSize,
                    "attention.features must be between 1 and {}, not {}", kLargestSize, features);
}

// A projection for each head at most. It is drawn in whole blocks of head_size rows, which decompositions
// hold several times.
double reference_numbers(const AttentionConfig& config, const nn::AttentionShape& shape) {
  const auto features = static_cast<double>(nn::read_options<ReferenceOptions>(config).features);
  const auto heads = static_cast<double>(shape.heads), size = static_cast<double>(shape.head_size);
  return 8 * heads * size * (features + size);
}

nn::AttentionKind attention_kind(const ReferenceKind& row) {
  nn::AttentionKind kind;
  kind.name = row.name;
  kind.summary = fmt::format("{}; for a new model: {}", row.summary, row.instead);
  kind.group = nn::KindGroup::reference;
  kind.capabilities.causal = row.causal;
  kind.capabilities.bidirectional = row.bidirectional;
  kind.capabilities.masks = row.key_mask != KeyMask::none;
  kind.capabilities.redraws = row.projected;
  kind.capabilities.linear = true;
  if (row.projected) {
    kind.options = nn::kind_options<ReferenceOptions>();
    kind.validate = validate_features;
    kind.numbers = reference_numbers;
  }
  kind.make = [&row](const AttentionConfig& config, const nn::AttentionShape& shape) {
    return std::make_shared<ReferenceAttention>(row, config, shape);
  };
  return kind;
}

}  // namespace

const std::vector<ReferenceKind>& reference_kinds() {
  static const std::vector<ReferenceKind> all = [] {
    std::vector<ReferenceKind> rows;
    for (const auto& kinds :
         {jax::kinds, tensorflow::kinds, trax::kinds, keras::kinds, performer_pytorch::kinds,
          fast_transformers::kinds, slim::kinds, darkformer::kinds}) {
      for (ReferenceKind& row : kinds()) rows.push_back(std::move(row));
    }
    return rows;
  }();
  return all;
}

const ReferenceKind& find_reference_kind(const std::string& name) {
  std::vector<std::string> names;
  for (const ReferenceKind& kind : reference_kinds()) {
    if (kind.name == name) return kind;
    names.push_back(kind.name);
  }
  throw UsageError(fmt::format("unknown reference kind '{}'; known: {}", name, fmt::join(names, ", ")));
}

void register_all() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (const ReferenceKind& row : reference_kinds()) nn::register_kind(attention_kind(row));
    convert::register_family(performer_pytorch::family());
    convert::register_family(fast_transformers::family());
    convert::register_family(protein_lm::family());
  });
}

}  // namespace performer::references
