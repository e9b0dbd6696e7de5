// SPDX-License-Identifier: Apache-2.0
// Attention replaced by its values: what remains of a model's time without attention is the upper bound of
// speed, called "X (OPT)" in the Performer paper (arXiv 2009.14794, figure 3).
#include <ATen/ATen.h>

#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/segments.h"

namespace performer::nn {
namespace {

struct IdentityCache final : Cache {
  std::unique_ptr<Cache> select(const at::Tensor&) const override {
    return std::make_unique<IdentityCache>();
  }
};

class IdentityAttention final : public Attention {
 public:
  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    return hide_rows(hide_rows(inputs.value, inputs.key_mask), inputs.query_mask);
  }
  std::unique_ptr<Cache> begin(int64_t) const override { return std::make_unique<IdentityCache>(); }
  at::Tensor step(const at::Tensor&, const at::Tensor&, const at::Tensor& value, Cache&) const override {
    return value;
  }
};

}  // namespace

AttentionKind identity_kind() {
  AttentionKind kind;
  kind.name = "identity";
  kind.summary = "attention replaced by its values: the upper bound of speed";
  kind.group = KindGroup::baseline;
  kind.capabilities.streams = true;
  kind.capabilities.reads_queries = false;
  kind.make = [](const AttentionConfig&, const AttentionShape&) {
    return std::make_shared<IdentityAttention>();
  };
  return kind;
}

}  // namespace performer::nn
