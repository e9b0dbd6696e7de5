// SPDX-License-Identifier: Apache-2.0
// Attention replaced by its values: what remains of a model's time without attention is the upper bound of
// speed, called "X (OPT)" in the Performer paper (arXiv 2009.14794, figure 3).
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/rows.h"
#include "performer/nn/attention/segments.h"

namespace performer::nn {
namespace {

struct IdentityOptions {
  bool projections = false;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("projections", self.projections,
          "compute queries and keys and the gradients of their weights, which are zero, though nothing reads "
          "them: "
          "the time of a model whose attention costs nothing but is attention");
  }
};

struct IdentityCache final : Cache {
  std::unique_ptr<Cache> select(const at::Tensor&) const override {
    return std::make_unique<IdentityCache>();
  }
};

// The values; queries and keys get gradients of zero, so that their projections have a backward pass.
class UnreadQueries final : public torch::autograd::Function<UnreadQueries> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& query,
                            const at::Tensor& key, const at::Tensor& value) {
    context->save_for_backward({query, key});
    return value.alias();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    return {at::zeros_like(saved[0]), at::zeros_like(saved[1]), gradients[0]};
  }
};

class IdentityAttention final : public Attention {
 public:
  explicit IdentityAttention(const IdentityOptions& options) : projections_(options.projections) {}

  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    const bool unread = projections_ && at::GradMode::is_enabled() && inputs.query.defined();
    const at::Tensor value =
        unread ? UnreadQueries::apply(inputs.query, inputs.key, inputs.value) : inputs.value;
    return hide_rows(hide_rows(value, inputs.key_mask), inputs.query_mask);
  }
  at::Tensor rows(const ops::AttentionInputs& inputs, const RowRange& range) override {
    return rows_of_sequences(inputs, range, [](const ops::AttentionInputs& one, const RowRange& some) {
      const at::Tensor own = at::eye(one.value.size(1), at::kDouble).narrow(0, some.first, some.count);
      const at::Tensor seen = one.key_mask ? one.key_mask->unsqueeze(1).unsqueeze(1).to(at::kDouble)
                                           : at::ones({1, 1, 1, 1}, at::kDouble);
      return (own * seen).expand({one.value.size(0), one.value.size(2), -1, -1});
    });
  }
  std::unique_ptr<Cache> begin(int64_t) const override { return std::make_unique<IdentityCache>(); }
  at::Tensor step(const at::Tensor&, const at::Tensor&, const at::Tensor& value, Cache&) const override {
    return value;
  }
  at::Tensor advance(const at::Tensor&, const at::Tensor&, const at::Tensor& value, Cache&) const override {
    return value;
  }

 private:
  bool projections_;
};

}  // namespace

AttentionKind identity_kind() {
  AttentionKind kind;
  kind.name = "identity";
  kind.summary = "attention replaced by its values: the upper bound of speed";
  kind.cost = "nothing: neither time nor memory";
  kind.group = KindGroup::baseline;
  kind.capabilities.streams = true;
  kind.capabilities.rows = true;
  kind.capabilities.reads_queries = false;
  kind.configured = [capabilities = kind.capabilities](const AttentionConfig& config) {
    Capabilities can = capabilities;
    can.reads_queries = read_options<IdentityOptions>(config).projections;
    return can;
  };
  kind.options = kind_options<IdentityOptions>();
  kind.make = [](const AttentionConfig& config, const AttentionShape&) {
    return std::make_shared<IdentityAttention>(read_options<IdentityOptions>(config));
  };
  return kind;
}

}  // namespace performer::nn
