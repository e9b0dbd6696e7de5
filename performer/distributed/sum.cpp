// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/sum.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace performer::distributed {
namespace {

struct SummingRanks : torch::CustomClassHolder {
  std::shared_ptr<Communicator> ranks;
};

class SumOverRanks : public torch::autograd::Function<SumOverRanks> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& own,
                            const c10::intrusive_ptr<SummingRanks>& group) {
    context->saved_data["group"] = c10::IValue::make_capsule(group);
    return summed(own, *group->ranks);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto group =
        c10::static_intrusive_pointer_cast<SummingRanks>(context->saved_data["group"].toCapsule());
    return {summed(gradients[0], *group->ranks), {}};
  }

 private:
  static at::Tensor summed(const at::Tensor& own, Communicator& ranks) {
    const at::Tensor all = own.clone(at::MemoryFormat::Contiguous);
    ranks.sum(all);
    return all;
  }
};

}  // namespace

at::Tensor differentiable_sum(const at::Tensor& own, const std::shared_ptr<Communicator>& ranks) {
  const auto group = c10::make_intrusive<SummingRanks>();
  group->ranks = ranks;
  return SumOverRanks::apply(own, group);
}

}  // namespace performer::distributed
