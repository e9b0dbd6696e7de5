// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/states.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <utility>

#include "performer/distributed/state_messages.h"
#include "performer/distributed/state_scan.h"

namespace performer::distributed {
namespace {

namespace autograd = torch::autograd;

struct Group : torch::CustomClassHolder {
  std::shared_ptr<Communicator> ranks;
};

// The anchor, and for each of kv, key_sum and log_scale all ranks' one above the other: [size, ...].
class GatherStates : public autograd::Function<GatherStates> {
 public:
  static autograd::variable_list forward(autograd::AutogradContext* context, const at::Tensor& anchor,
                                         const at::Tensor& kv, const at::Tensor& key_sum,
                                         const at::Tensor& log_scale,
                                         const c10::intrusive_ptr<Group>& group) {
    context->saved_data["group"] = c10::IValue::make_capsule(group);
    context->saved_data["kv"] = kv.sizes().vec();
    context->saved_data["key_sum"] = key_sum.sizes().vec();
    const at::Tensor all = group->ranks->gather(joined({kv, key_sum, log_scale}));
    const auto parts = all.split_with_sizes({kv.numel(), key_sum.numel(), log_scale.numel()}, 1);
    const auto shaped = [&](const at::Tensor& part, const at::Tensor& like) {
      std::vector<int64_t> sizes = like.sizes().vec();
      sizes.insert(sizes.begin(), all.size(0));
      return part.reshape(sizes);
    };
    const at::Tensor scales = shaped(parts[2], log_scale);
    context->mark_non_differentiable({scales});
    return {anchor.view_as(anchor), shaped(parts[0], kv), shaped(parts[1], key_sum), scales};
  }

  static autograd::variable_list backward(autograd::AutogradContext* context,
                                          autograd::variable_list gradients) {
    const auto group = c10::static_intrusive_pointer_cast<Group>(context->saved_data["group"].toCapsule());
    const std::vector<int64_t> kv = context->saved_data["kv"].toIntVector(),
                               key_sum = context->saved_data["key_sum"].toIntVector();
    const int64_t ranks = group->ranks->size();
    const at::Tensor parts =
        at::cat({gradients[1].reshape({ranks, -1}), gradients[2].reshape({ranks, -1})}, 1).contiguous();
    const at::Tensor own = group->ranks->sum_of_own_part(parts);
    const int64_t kv_numbers = gradients[1].numel() / ranks;
    return {gradients[0],
            own.narrow(0, 0, kv_numbers).view(kv),
            own.narrow(0, kv_numbers, own.numel() - kv_numbers).view(key_sum),
            {},
            {}};
  }
};

// Rows of both states: those of `a`, then those of `b`.
ops::State both(const ops::State& a, const ops::State& b) {
  return {at::cat({a.kv, b.kv}), at::cat({a.key_sum, b.key_sum}), at::cat({a.log_scale, b.log_scale})};
}

class GatheredStates final : public nn::StateExchange {
 public:
  explicit GatheredStates(std::shared_ptr<Communicator> ranks) : group_(c10::make_intrusive<Group>()) {
    group_->ranks = std::move(ranks);
  }
  int64_t rank() const override { return group_->ranks->rank(); }

  nn::Neighbours exchange(const ops::State& last, const ops::State* first, const nn::Reach& reach,
                          at::Tensor& anchor) override {
    const bool two = first != nullptr && first != &last;
    const ops::State own = two ? both(last, *first) : last;
    const autograd::variable_list all =
        GatherStates::apply(anchor, own.kv, own.key_sum, own.log_scale, group_);
    anchor = all[0];
    const int64_t rows = last.kv.size(0);
    const auto state_of = [&](int64_t rank, int64_t row) -> ops::State {
      const auto take = [&](const at::Tensor& tensor) { return tensor[rank].narrow(0, row, rows); };
      return {take(all[1]), take(all[2]), take(all[3])};
    };
    const auto own_rank = static_cast<size_t>(rank());
    nn::Neighbours found;
    for (int64_t r = reach.earliest[own_rank]; r < rank(); ++r)
      found.before = nn::merged(found.before, state_of(r, 0));
    for (int64_t r = rank() + 1; first != nullptr && r <= reach.latest[own_rank]; ++r)
      found.behind = nn::merged(found.behind, state_of(r, two ? rows : 0));
    return found;
  }

 private:
  c10::intrusive_ptr<Group> group_;
};

}  // namespace

std::shared_ptr<nn::StateExchange> state_exchange(std::shared_ptr<Communicator> group,
                                                  int64_t most_gathered) {
  if (group->size() > most_gathered) return std::make_shared<ScannedStates>(std::move(group));
  return std::make_shared<GatheredStates>(std::move(group));
}

}  // namespace performer::distributed
