// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/stack.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "performer/base/error.h"
#include "performer/nn/position_embeddings.h"

namespace performer::references::performer_pytorch {
namespace {

PerformerStackOptions small_stack() {
  PerformerStackOptions options;
  options.dim = 8;
  options.depth = options.heads = options.ff_mult = 2;
  options.dim_head = 4;
  options.features = 8;
  return options;
}

PerformerStackInputs inputs_of(int64_t batch, int64_t length, at::ScalarType type = at::kFloat) {
  PerformerStackInputs inputs;
  inputs.x = at::randn({batch, length, 8}, type);
  inputs.positions = nn::sinusoid_table(length, 4).to(type);
  return inputs;
}

// Gradients of everything after one training step's forward pass with dropout.
std::vector<at::Tensor> gradients(PerformerStack& stack, const PerformerStackInputs& inputs,
                                  bool reconstruct) {
  stack->zero_grad();
  stack->set_reconstruct(reconstruct);
  PerformerStackInputs with = inputs;
  with.x = inputs.x.detach().requires_grad_();
  if (inputs.context) with.context = inputs.context->detach().requires_grad_();
  torch::manual_seed(17);
  const at::Tensor y = stack(with);
  y.square().sum().backward();
  std::vector<at::Tensor> found{y.detach(), with.x.grad().clone()};
  if (with.context) found.push_back(with.context->grad().clone());
  for (const auto& parameter : stack->named_parameters()) {
    EXPECT_TRUE(parameter.value().grad().defined()) << parameter.key();
    found.push_back(parameter.value().grad().clone());
  }
  return found;
}

void expect_same_gradients(const PerformerStackOptions& options, const PerformerStackInputs& inputs) {
  PerformerStack stack(options);
  stack->to(at::kDouble);
  for (auto& parameter : stack->named_parameters()) {  // ReZero's gains start small: little would flow
    const at::NoGradGuard no_grad;
    if (parameter.key().ends_with(".gain")) parameter.value().fill_(0.7);
  }
  const auto plain = gradients(stack, inputs, false), reversed = gradients(stack, inputs, true);
  ASSERT_EQ(plain.size(), reversed.size());
  for (size_t i = 0; i < plain.size(); ++i) {
    const double largest = plain[i].abs().max().item<double>();
    EXPECT_GT(largest, 0) << i;
    EXPECT_LT((plain[i] - reversed[i]).abs().max().item<double>(), 1e-9 * largest) << i;
  }
  stack->eval();  // no dropout: the values with it must have been others
  stack->set_reconstruct(true);
  EXPECT_FALSE(at::allclose(stack(inputs), plain[0], 1e-3, 1e-3));
}

TEST(PerformerStack, ReversibleGradientsEqualThePlainOnes) {
  torch::manual_seed(2);
  for (const char* norm : {"layer-norm", "scale-norm", "rezero"}) {
    PerformerStackOptions options = small_stack();
    options.depth = 3;
    options.reversible = options.causal = options.shift_tokens = options.ff_glu = true;
    options.norm = norm;
    options.ff_dropout = options.attn_dropout = 0.3;
    options.ff_chunks = 2;
    options.local_heads = {0, 1, 0};
    options.local_window_size = 4;
    PerformerStackInputs inputs = inputs_of(2, 7, at::kDouble);
    inputs.mask = at::tensor({1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0}).to(at::kBool).view({2, 7});
    SCOPED_TRACE(norm);
    expect_same_gradients(options, inputs);
  }
}

TEST(PerformerStack, ReversibleCrossAttentionGradientsEqualThePlainOnes) {
  torch::manual_seed(3);
  PerformerStackOptions options = small_stack();
  options.reversible = options.cross_attend = options.causal = true;
  options.ff_dropout = options.attn_dropout = 0.3;
  PerformerStackInputs inputs = inputs_of(1, 6, at::kDouble);
  inputs.context = at::randn({1, 5, 8}, at::kDouble);
  expect_same_gradients(options, inputs);
}

TEST(PerformerStack, ReversibleOutputsAreTheSumOfTwoStreams) {
  PerformerStackOptions options = small_stack();
  options.norm = "rezero";
  options.reversible = true;
  PerformerStack stack(options);
  const at::NoGradGuard no_grad;
  for (auto& parameter : stack->named_parameters()) {
    if (parameter.key().ends_with(".gain")) parameter.value().zero_();
  }
  const PerformerStackInputs inputs = inputs_of(1, 4);
  EXPECT_TRUE(at::allclose(stack(inputs), 2 * inputs.x)) << "with gains of 0 both streams stay x";
}

// Forward calls in training mode at which the projections changed, counted from 1.
std::vector<int64_t> redraws(const PerformerStackOptions& options, int64_t calls) {
  PerformerStack stack(options);
  std::vector<int64_t> changed;
  for (int64_t call = 1; call <= calls; ++call) {
    const int64_t before = stack->redraw_state().index;
    stack(inputs_of(1, 3));
    if (stack->redraw_state().index != before) changed.push_back(call);
    stack->eval();
    stack(inputs_of(1, 3));  // does not count
    stack->train();
  }
  return changed;
}

TEST(PerformerStack, RedrawsInEveryCallBehindTheInterval) {
  PerformerStackOptions options = small_stack();
  options.redraw_interval = 3;
  EXPECT_EQ(redraws(options, 9), (std::vector<int64_t>{4, 8}));
  options.redraw_interval = 0;
  EXPECT_EQ(redraws(options, 3), (std::vector<int64_t>{1, 2, 3}));
  options.redraw_interval = -1;
  EXPECT_EQ(redraws(options, 3), std::vector<int64_t>{});
  options.redraw_interval = 1;
  options.auto_redraw = false;
  EXPECT_EQ(redraws(options, 5), std::vector<int64_t>{});
}

TEST(PerformerStack, RedrawReplacesProjectionsUntilTheyAreFixed) {
  PerformerStack stack(small_stack());
  const auto projection = [&] {
    for (const auto& buffer : stack->named_buffers()) {
      if (buffer.key().ends_with("projection_matrix")) return buffer.value().clone();
    }
    return at::Tensor();
  };
  const at::Tensor first = projection();
  ASSERT_TRUE(first.defined());
  stack->redraw(1);
  const at::Tensor second = projection();
  EXPECT_FALSE(at::equal(first, second));
  stack->fix_projections();
  stack->redraw(2);
  EXPECT_TRUE(at::equal(projection(), second));
  EXPECT_EQ(stack->redraw_state().index, 1);
  PerformerStack again(small_stack());
  again->redraw(1);
  EXPECT_TRUE(at::equal(again->buffers()[0], stack->buffers()[0])) << "a draw is named by its index";
}

TEST(PerformerStack, RefusesImpossibleOptionsAndInputs) {
  PerformerStackOptions options = small_stack();
  options.local_heads = {1, 0, 0};
  EXPECT_THROW(PerformerStack{options}, UsageError);
  options.local_heads = {3};
  EXPECT_THROW(PerformerStack{options}, UsageError);
  options = small_stack();
  options.heads = 3;
  EXPECT_THROW(PerformerStack{options}, UsageError);
  options = small_stack();
  options.norm = "none";
  EXPECT_THROW(PerformerStack{options}, UsageError);
  PerformerStack stack(small_stack());
  PerformerStackInputs inputs = inputs_of(1, 3);
  inputs.context = at::randn({1, 2, 8});
  EXPECT_THROW(stack(inputs), UsageError);
  options = small_stack();
  options.cross_attend = true;
  EXPECT_THROW(PerformerStack(options)->forward(inputs_of(1, 3)), UsageError);
}

}  // namespace
}  // namespace performer::references::performer_pytorch
