// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/state_scan.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <utility>

#include "performer/distributed/state_messages.h"

namespace performer::distributed {
namespace {

namespace autograd = torch::autograd;

constexpr int kNobody = -1;

// Between whom a state moves.
struct Move : torch::CustomClassHolder {
  std::shared_ptr<Communicator> ranks;
  int to = kNobody, from = kNobody;
};

// Sends one state and receives another of the same shape, where there is somebody to send to or to receive
// from. The gradient takes the way back.
ops::State moved(const Move& move, const ops::State& own, int to, int from) {
  const std::unique_ptr<Pending> sent = to == kNobody ? nullptr : begin_send(*move.ranks, own, to);
  const ops::State found = from == kNobody ? ops::State{} : receive_state(*move.ranks, own, from);
  if (sent) sent->wait();
  return found;
}

// The anchor, and the state that came (empty tensors where none did).
class MoveState : public autograd::Function<MoveState> {
 public:
  static autograd::variable_list forward(autograd::AutogradContext* context, const at::Tensor& anchor,
                                         const at::Tensor& kv, const at::Tensor& key_sum,
                                         const at::Tensor& log_scale, const c10::intrusive_ptr<Move>& move) {
    context->saved_data["move"] = c10::IValue::make_capsule(move);
    context->saved_data["kv"] = kv.sizes().vec();
    context->saved_data["key_sum"] = key_sum.sizes().vec();
    ops::State found = moved(*move, {kv, key_sum, log_scale}, move->to, move->from);
    if (!found.defined()) found = {kv.new_empty({0}), kv.new_empty({0}), kv.new_empty({0})};
    context->mark_non_differentiable({found.log_scale});
    return {anchor.view_as(anchor), found.kv, found.key_sum, found.log_scale};
  }

  static autograd::variable_list backward(autograd::AutogradContext* context,
                                          autograd::variable_list gradients) {
    const auto move = c10::static_intrusive_pointer_cast<Move>(context->saved_data["move"].toCapsule());
    ops::State gradient{gradients[1], gradients[2], {}};
    if (move->from == kNobody) {  // none is sent, but it says the shape of the one that comes
      gradient.kv = gradients[1].new_empty(context->saved_data["kv"].toIntVector());
      gradient.key_sum = gradients[1].new_empty(context->saved_data["key_sum"].toIntVector());
    }
    const ops::State own = moved(*move, gradient, move->from, move->to);
    return {gradients[0], own.kv, own.key_sum, {}, {}};
  }
};

}  // namespace

ops::State ScannedStates::scan(const ops::State& own, const std::vector<int64_t>& end, bool down,
                               at::Tensor& anchor) {
  const int64_t size = ranks_->size();
  const auto place_of = [&](int64_t rank) { return down ? size - 1 - rank : rank; };  // its own inverse
  const int64_t place = place_of(rank());
  const auto end_of = [&](int64_t other) { return place_of(end[static_cast<size_t>(place_of(other))]); };
  // What the place `distance` before this one has, where the sum of this one, over `there` places so far,
  // goes further back; undefined elsewhere.
  const auto move = [&](const ops::State& state, int64_t distance, int64_t there) -> ops::State {
    const auto wants = [&](int64_t other) { return other < size && end_of(other) < other - there; };
    const auto step = c10::make_intrusive<Move>();
    step->ranks = ranks_;
    if (wants(place + distance)) step->to = static_cast<int>(place_of(place + distance));
    if (wants(place)) step->from = static_cast<int>(place_of(place - distance));
    if (step->to == kNobody && step->from == kNobody) return {};
    const autograd::variable_list found =
        MoveState::apply(anchor, state.kv, state.key_sum, state.log_scale, step);
    anchor = found[0];
    return step->from == kNobody ? ops::State{} : ops::State{found[1], found[2], found[3]};
  };
  ops::State sum = move(own, 1, 0);
  for (int64_t there = 1; there < size; there *= 2) {
    // A rank without a sum has nobody to give it to: who wants it looks past this rank, which then does too.
    const ops::State further = move(sum, there, there);
    sum = down ? nn::merged(sum, further) : nn::merged(further, sum);
  }
  return sum;
}

nn::Neighbours ScannedStates::exchange(const ops::State& last, const ops::State* first,
                                       const nn::Reach& reach, at::Tensor& anchor) {
  nn::Neighbours found;
  found.before = scan(last, reach.earliest, false, anchor);
  if (first != nullptr) found.behind = scan(*first, reach.latest, true, anchor);
  return found;
}

}  // namespace performer::distributed
