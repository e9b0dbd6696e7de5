// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/state_messages.h"

#include <ATen/ATen.h>

#include <vector>

namespace performer::distributed {

at::Tensor joined(const ops::State& state) {
  std::vector<at::Tensor> flat = {state.kv.reshape({-1}), state.key_sum.reshape({-1})};
  if (state.log_scale.defined()) flat.push_back(state.log_scale.reshape({-1}));
  return at::cat(flat);
}

ops::State apart(const at::Tensor& numbers, const ops::State& like) {
  int64_t begin = 0;
  const auto next = [&](const at::Tensor& shape) {
    const at::Tensor part = numbers.narrow(0, begin, shape.numel()).view(shape.sizes());
    begin += shape.numel();
    return part;
  };
  ops::State state;
  state.kv = next(like.kv);
  state.key_sum = next(like.key_sum);
  if (like.log_scale.defined()) state.log_scale = next(like.log_scale);
  return state;
}

std::unique_ptr<Pending> begin_send(Communicator& ranks, const ops::State& state, int to) {
  const at::Tensor numbers = joined(state);
  return numbers.numel() == 0 ? nullptr : ranks.begin_send(numbers, to);
}

ops::State receive_state(Communicator& ranks, const ops::State& like, int from) {
  const int64_t scales = like.log_scale.defined() ? like.log_scale.numel() : 0;
  const at::Tensor numbers = at::empty({like.kv.numel() + like.key_sum.numel() + scales}, like.kv.options());
  if (numbers.numel() > 0) ranks.receive(numbers, from);
  return apart(numbers, like);
}

}  // namespace performer::distributed
