// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/gradients.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

#include "performer/base/error.h"

namespace performer::distributed {

struct GradientSum::State {
  struct Bucket {
    std::vector<size_t> parameters;
    int64_t numbers = 0;
    size_t missing = 0;  // gradients that are still to come
    at::Tensor sums;     // what travels
    std::unique_ptr<Pending> pending;
  };

  Communicator* ranks = nullptr;
  std::vector<at::Tensor> parameters;
  std::vector<Bucket> buckets;    // in the order in which they are sent
  std::vector<size_t> bucket_of;  // each parameter
  std::vector<bool> arrived;      // since begin()
  bool listening = false;
  size_t sent = 0;  // buckets

  static at::ScalarType travels_as(const at::Tensor& parameter) {
    return parameter.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  }

  void divide(int64_t bucket_bytes) {
    bucket_of.resize(parameters.size());
    for (size_t i = parameters.size(); i-- > 0;) {
      const at::Tensor& parameter = parameters[i];
      const bool fits = !buckets.empty() && buckets.back().numbers * 4 < bucket_bytes &&
                        travels_as(parameters[buckets.back().parameters[0]]) == travels_as(parameter);
      if (!fits) buckets.emplace_back();
      buckets.back().parameters.push_back(i);
      buckets.back().numbers += parameter.numel();
      bucket_of[i] = buckets.size() - 1;
    }
  }

  void reset() {
    arrived.assign(parameters.size(), false);
    for (Bucket& bucket : buckets) bucket.missing = bucket.parameters.size();
    sent = 0;
  }

  void arrive(size_t parameter) {
    if (!listening) return;
    check(!arrived[parameter],
          "a parameter got its gradient in two parts of one backward pass, of which the first was already "
          "summed over the ranks");
    arrived[parameter] = true;
    --buckets[bucket_of[parameter]].missing;
    // In order: all ranks must send the same buckets one after the other.
    while (sent < buckets.size() && buckets[sent].missing == 0) send(buckets[sent++]);
  }

  void send(Bucket& bucket) {
    const at::NoGradGuard no_grad;
    const at::Tensor& first = parameters[bucket.parameters[0]];
    at::Tensor& gradient = first.mutable_grad();
    const bool alone = bucket.parameters.size() == 1 && gradient.defined() && gradient.is_contiguous() &&
                       gradient.scalar_type() == travels_as(first);
    if (alone) {
      bucket.sums = gradient.view({-1});
    } else {
      bucket.sums = at::zeros({bucket.numbers}, at::TensorOptions(travels_as(first)));
      for_each(bucket, [](const at::Tensor& parameter, const at::Tensor& part) {
        if (parameter.grad().defined()) part.copy_(parameter.grad().reshape({-1}));
      });
    }
    bucket.pending = ranks->begin_sum(bucket.sums);
  }

  template <class Body>
  void for_each(const Bucket& bucket, const Body& body) {
    int64_t begin = 0;
    for (const size_t i : bucket.parameters) {
      body(parameters[i], bucket.sums.narrow(0, begin, parameters[i].numel()));
      begin += parameters[i].numel();
    }
  }

  // Which parameters have a gradient on some rank.
  std::vector<bool> present() {
    at::Tensor counts = at::zeros({static_cast<int64_t>(parameters.size())}, at::kLong);
    auto* own = counts.mutable_data_ptr<int64_t>();
    for (size_t i = 0; i < parameters.size(); ++i) own[i] = parameters[i].grad().defined() ? 1 : 0;
    ranks->maximum(counts);
    std::vector<bool> found(parameters.size());
    for (size_t i = 0; i < parameters.size(); ++i) found[i] = own[i] != 0;
    return found;
  }

  void receive(Bucket& bucket, const std::vector<bool>& wanted) {
    const at::NoGradGuard no_grad;
    std::exchange(bucket.pending, nullptr)->wait();
    size_t at = 0;
    for_each(bucket, [&](const at::Tensor& parameter, const at::Tensor& part) {
      const size_t i = bucket.parameters[at++];
      at::Tensor& gradient = parameter.mutable_grad();
      if (!wanted[i] || (gradient.defined() && gradient.data_ptr() == part.data_ptr())) return;
      if (!gradient.defined()) gradient = at::empty_like(parameter, at::MemoryFormat::Contiguous);
      gradient.copy_(part.view(parameter.sizes()));
    });
    bucket.sums = at::Tensor();
  }
};

namespace {

class Arrival final : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit Arrival(std::function<void()> body) : body_(std::move(body)) {}
  void operator()(const torch::autograd::Variable&) override { body_(); }

 private:
  std::function<void()> body_;
};

}  // namespace

GradientSum::GradientSum(Communicator& ranks, std::vector<at::Tensor> parameters, int64_t bucket_bytes)
    : state_(std::make_unique<State>()) {
  state_->ranks = &ranks;
  state_->parameters = std::move(parameters);
  if (ranks.size() == 1) return;
  state_->divide(bucket_bytes);
  state_->reset();
  for (size_t i = 0; i < state_->parameters.size(); ++i) {
    if (!state_->parameters[i].requires_grad()) continue;
    torch::autograd::impl::set_post_acc_grad_hooks(
        state_->parameters[i], std::make_unique<Arrival>([state = state_.get(), i] { state->arrive(i); }));
  }
}

GradientSum::~GradientSum() {
  if (state_->ranks->size() == 1) return;
  for (const at::Tensor& parameter : state_->parameters) {
    if (parameter.requires_grad()) torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
  }
}

void GradientSum::begin() {
  if (state_->ranks->size() == 1) return;
  state_->reset();
  state_->listening = true;
}

void GradientSum::finish() {
  State& state = *state_;
  if (state.ranks->size() == 1) return;
  if (!state.listening) state.reset();
  state.listening = false;
  while (state.sent < state.buckets.size()) state.send(state.buckets[state.sent++]);
  const std::vector<bool> wanted = state.present();
  for (State::Bucket& bucket : state.buckets) state.receive(bucket, wanted);
  state.reset();
}

}  // namespace performer::distributed
