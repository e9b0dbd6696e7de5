// SPDX-License-Identifier: Apache-2.0
#include "performer/train/slim_link.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <array>
#include <deque>
#include <utility>
#include <vector>

#include "performer/distributed/state_messages.h"

namespace performer::train {
namespace {

namespace autograd = torch::autograd;

ops::State take_first(std::deque<ops::State>& from) {
  ops::State first = std::move(from.front());
  from.pop_front();
  return first;
}

class MemoryLink final : public ChunkLink {
 public:
  int64_t rank() const override { return 0; }
  int64_t ranks() const override { return 1; }
  void settle_states() override {}
  void settle_gradients() override {}
  void send_state(const ops::State& state) override { states_.push_back(state); }
  ops::State receive_state() override { return take_first(states_); }
  void send_gradient(const ops::State& gradient) override { gradients_.push_back(gradient); }
  ops::State receive_gradient() override { return take_first(gradients_); }

 private:
  std::deque<ops::State> states_, gradients_;
};

// Messages round the ring of ranks. What is sent is announced by its kind and shape: on two ranks both kinds
// come from the same neighbour, and in another order than they are wanted in.
class RingLink final : public ChunkLink {
 public:
  explicit RingLink(distributed::Communicator& ranks) : ranks_(ranks) {}
  int64_t rank() const override { return ranks_.rank(); }
  int64_t ranks() const override { return ranks_.size(); }

  void settle_states() override { settle(kState); }
  void settle_gradients() override { settle(kGradient); }
  void send_state(const ops::State& state) override { send(kState, state, next()); }
  ops::State receive_state() override { return receive(kState, previous()); }
  void send_gradient(const ops::State& gradient) override { send(kGradient, gradient, previous()); }
  ops::State receive_gradient() override { return receive(kGradient, next()); }

 private:
  enum Kind { kState, kGradient };
  static constexpr size_t kKinds = 2;
  // Kind, whether the numbers are double, and the shape of kv.
  static constexpr int64_t kAnnounced = 6;

  int next() const { return (ranks_.rank() + 1) % ranks_.size(); }
  int previous() const { return (ranks_.rank() + ranks_.size() - 1) % ranks_.size(); }

  void settle(Kind kind) {
    for (const auto& message : sent_[kind]) message->wait();
    sent_[kind].clear();
  }

  void send(Kind kind, const ops::State& state, int to) {
    const at::IntArrayRef shape = state.kv.sizes();
    const int64_t is_double = state.kv.scalar_type() == at::kDouble;
    sent_[kind].push_back(ranks_.begin_send(
        at::tensor({int64_t{kind}, is_double, shape[0], shape[1], shape[2], shape[3]}, at::kLong), to));
    if (auto message = distributed::begin_send(ranks_, state, to)) sent_[kind].push_back(std::move(message));
  }

  ops::State receive(Kind kind, int from) {
    while (arrived_[kind].empty()) receive_any(from);
    return take_first(arrived_[kind]);
  }

  void receive_any(int from) {
    const at::Tensor announced = at::empty({kAnnounced}, at::kLong);
    ranks_.receive(announced, from);
    const int64_t* words = announced.const_data_ptr<int64_t>();
    const Kind kind = words[0] == kState ? kState : kGradient;
    const at::TensorOptions options(words[1] != 0 ? at::kDouble : at::kFloat);
    const at::Tensor sums = at::empty({words[2], words[3], words[4]}, options);
    const at::Tensor kv = at::empty({words[2], words[3], words[4], words[5]}, options);
    arrived_[kind].push_back(
        distributed::receive_state(ranks_, {kv, sums, kind == kState ? sums : at::Tensor()}, from));
  }

  distributed::Communicator& ranks_;
  std::array<std::vector<std::unique_ptr<distributed::Pending>>, kKinds> sent_;
  std::array<std::deque<ops::State>, kKinds> arrived_;
};

struct Exchange : torch::CustomClassHolder {
  std::function<void(const ops::State&)> take;
  std::function<ops::State()> give;
};

c10::intrusive_ptr<Exchange> exchange_of(autograd::AutogradContext* context) {
  return c10::static_intrusive_pointer_cast<Exchange>(context->saved_data["exchange"].toCapsule());
}

class GradientTo : public autograd::Function<GradientTo> {
 public:
  static autograd::variable_list forward(autograd::AutogradContext* context, const at::Tensor& kv,
                                         const at::Tensor& key_sum,
                                         const c10::intrusive_ptr<Exchange>& exchange) {
    context->saved_data["exchange"] = c10::IValue::make_capsule(exchange);
    return {kv.view_as(kv), key_sum.view_as(key_sum)};
  }
  static autograd::variable_list backward(autograd::AutogradContext* context,
                                          autograd::variable_list gradients) {
    exchange_of(context)->take({gradients[0], gradients[1], {}});
    return {{}, {}, {}};
  }
};

class GradientFrom : public autograd::Function<GradientFrom> {
 public:
  static at::Tensor forward(autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& /*kv*/,
                            const at::Tensor& /*key_sum*/, const c10::intrusive_ptr<Exchange>& exchange) {
    context->saved_data["exchange"] = c10::IValue::make_capsule(exchange);
    return x.view_as(x);
  }
  static autograd::variable_list backward(autograd::AutogradContext* context,
                                          autograd::variable_list gradients) {
    const ops::State gradient = exchange_of(context)->give();
    return {gradients[0], gradient.kv, gradient.key_sum, {}};
  }
};

}  // namespace

std::unique_ptr<ChunkLink> chunk_link(distributed::Communicator* ranks) {
  if (ranks == nullptr || ranks->size() == 1) return std::make_unique<MemoryLink>();
  return std::make_unique<RingLink>(*ranks);
}

ops::State with_gradient_to(const ops::State& state, std::function<void(const ops::State&)> take) {
  const auto exchange = c10::make_intrusive<Exchange>();
  exchange->take = std::move(take);
  const autograd::variable_list sums = GradientTo::apply(state.kv.detach().requires_grad_(),
                                                         state.key_sum.detach().requires_grad_(), exchange);
  return {sums[0], sums[1], state.log_scale.detach()};
}

at::Tensor with_gradient_from(const at::Tensor& x, const ops::State& state,
                              std::function<ops::State()> give) {
  const auto exchange = c10::make_intrusive<Exchange>();
  exchange->give = std::move(give);
  return GradientFrom::apply(x, state.kv, state.key_sum, exchange);
}

}  // namespace performer::train
