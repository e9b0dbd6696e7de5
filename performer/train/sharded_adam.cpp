// SPDX-License-Identifier: Apache-2.0
#include "performer/train/sharded_adam.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "performer/base/error.h"

namespace performer::train {
namespace {

// The largest parameter goes to the rank with the least so far.
std::vector<int> assign(const std::vector<NamedParameter>& parameters, int ranks) {
  std::vector<size_t> order(parameters.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(
      order, [&](size_t a, size_t b) { return parameters[a].value.numel() > parameters[b].value.numel(); });
  std::vector<int> owners(parameters.size());
  std::vector<int64_t> load(static_cast<size_t>(ranks), 0);
  for (const size_t i : order) {
    const auto least = std::ranges::min_element(load);
    owners[i] = static_cast<int>(least - load.begin());
    *least += parameters[i].value.numel();
  }
  return owners;
}

}  // namespace

ShardedAdam::ShardedAdam(const std::vector<NamedParameter>& parameters, const AdamOptions& options,
                         distributed::Communicator& ranks, bool sharded)
    : ranks_(ranks),
      sharded_(sharded && ranks.size() > 1),
      parameters_(parameters),
      owners_(sharded_ ? assign(parameters, ranks.size())
                       : std::vector<int>(parameters.size(), ranks.rank())),
      own_(owned_by(ranks.rank()), options) {}

std::vector<NamedParameter> ShardedAdam::owned_by(int rank) const {
  std::vector<NamedParameter> owned;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (owners_[i] == rank) owned.push_back(parameters_[i]);
  }
  return owned;
}

void ShardedAdam::broadcast(const std::vector<at::Tensor>& tensors, int owner) {
  const at::NoGradGuard no_grad;
  std::map<at::ScalarType, std::vector<at::Tensor>> by_type;
  for (const at::Tensor& tensor : tensors) by_type[tensor.scalar_type()].push_back(tensor);
  for (auto& [type, group] : by_type) {
    std::vector<at::Tensor> flat;
    for (const at::Tensor& tensor : group) flat.push_back(tensor.detach().reshape({-1}));
    const at::Tensor all = at::cat(flat);
    ranks_.broadcast(all, owner);
    int64_t begin = 0;
    for (at::Tensor& tensor : group) {
      tensor.copy_(all.narrow(0, begin, tensor.numel()).view(tensor.sizes()));
      begin += tensor.numel();
    }
  }
}

void ShardedAdam::step(double learning_rate, double gradient_scale) {
  own_.step(learning_rate, gradient_scale);
  if (!sharded_) return;
  for (int rank = 0; rank < ranks_.size(); ++rank) {
    std::vector<at::Tensor> values;
    for (const NamedParameter& parameter : owned_by(rank)) values.push_back(parameter.value);
    broadcast(values, rank);
  }
}

void ShardedAdam::zero_gradients() {
  for (const NamedParameter& parameter : parameters_) parameter.value.mutable_grad().reset();
}

std::vector<at::Tensor> ShardedAdam::gradients() const {
  std::vector<at::Tensor> gradients;
  for (const NamedParameter& parameter : parameters_) {
    if (parameter.value.grad().defined()) gradients.push_back(parameter.value.grad());
  }
  return gradients;
}

std::map<std::string, at::Tensor> ShardedAdam::state() {
  std::map<std::string, at::Tensor> state = own_.state();
  if (!sharded_) return state;
  for (int rank = 0; rank < ranks_.size(); ++rank) {
    std::vector<at::Tensor> moments;
    for (const NamedParameter& parameter : owned_by(rank)) {
      for (const char* moment : {".m", ".v"}) {
        at::Tensor& entry = state[parameter.name + moment];
        if (!entry.defined()) entry = at::empty_like(parameter.value.detach(), at::MemoryFormat::Contiguous);
        moments.push_back(entry);
      }
    }
    broadcast(moments, rank);
  }
  return state;
}

void ShardedAdam::set_state(const std::map<std::string, at::Tensor>& state, const std::string& source) {
  if (!sharded_) return own_.set_state(state, source);
  check<InputError>(state.size() == 2 * parameters_.size() + 1,
                    "{}: the optimizer state has {} entries, expected {}: it belongs to another model",
                    source, state.size(), 2 * parameters_.size() + 1);
  std::map<std::string, at::Tensor> mine;
  const auto take = [&](const std::string& name) {
    if (const auto found = state.find(name); found != state.end()) mine.insert(*found);
  };
  take("steps");
  for (const NamedParameter& parameter : owned_by(ranks_.rank())) {
    take(parameter.name + ".m");
    take(parameter.name + ".v");
  }
  own_.set_state(mine, source);
}

}  // namespace performer::train
