// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/language_model.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/nn/init.h>

#include <algorithm>
#include <array>

#include "performer/base/error.h"
#include "performer/ops/dropout.h"

namespace performer::references::performer_pytorch {

void validate(const PerformerLMOptions& options) {
  check<UsageError>(options.vocabulary >= 1, "vocabulary must be at least 1, not {}", options.vocabulary);
  check<UsageError>(options.max_length >= 1, "max_length must be at least 1 token, not {}",
                    options.max_length);
  constexpr std::array<const char*, 5> kKnown = {"rotary", "rotary-only", "axial", "learned", "none"};
  check<UsageError>(std::find(kKnown.begin(), kKnown.end(), options.positions) != kKnown.end(),
                    "positions '{}' are not known; choose {}", options.positions, fmt::join(kKnown, ", "));
  check<UsageError>(options.axial_shape.empty() || options.positions == "axial",
                    "axial_shape is given, but positions are {}", options.positions);
  check<UsageError>(options.embedding_dropout >= 0 && options.embedding_dropout < 1,
                    "embedding_dropout must be in [0, 1), not {}", options.embedding_dropout);
  validate(options.stack);
}

PerformerLMImpl::PerformerLMImpl(const PerformerLMOptions& options) : options_(options) {
  validate(options);
  const PerformerStackOptions& stack = options.stack;
  token_embedding_ = register_module("token_embedding", torch::nn::Embedding(options.vocabulary, stack.dim));
  torch::nn::init::normal_(token_embedding_->weight, 0, 0.02);
  if (options.positions == "rotary" || options.positions == "rotary-only") {
    const int64_t head = stack.dim_head == 0 ? stack.dim / stack.heads : stack.dim_head;
    rotary_table_ =
        register_buffer("rotary_table", nn::sinusoid_table(options.max_length, head).to(at::kFloat));
  }
  if (options.positions == "rotary") {
    position_table_ =
        register_buffer("position_table", nn::sinusoid_table(options.max_length, stack.dim).to(at::kFloat));
  } else if (options.positions == "learned") {
    learned_positions_ =
        register_module("learned_positions", nn::LearnedPositions(options.max_length, stack.dim));
  } else if (options.positions == "axial") {
    const auto shape =
        options.axial_shape.empty() ? nn::axial_shape(options.max_length) : options.axial_shape;
    axial_positions_ = register_module("axial_positions", nn::AxialPositions(shape, stack.dim));
  }
  stack_ = register_module("stack", PerformerStack(stack));
  final_norm_ = register_module("final_norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({stack.dim})));
  if (options.output && !options.tied_output) {
    output_ = register_module("output", torch::nn::Linear(stack.dim, options.vocabulary));
  }
}

void PerformerLMImpl::check_tokens(const at::Tensor& tokens) const {
  check<UsageError>(tokens.dim() == 2 && tokens.scalar_type() == at::kLong,
                    "tokens must be int64 [B, T], not {} [{}]", toString(tokens.scalar_type()),
                    fmt::join(tokens.sizes(), ", "));
  check<UsageError>(tokens.size(1) <= options_.max_length,
                    "a sequence of {} tokens is longer than this model's max_length {}; shorten it",
                    tokens.size(1), options_.max_length);
  if (tokens.numel() == 0) return;
  const int64_t lowest = tokens.min().item<int64_t>(), highest = tokens.max().item<int64_t>();
  check<UsageError>(lowest >= 0 && highest < options_.vocabulary,
                    "token {} is not in the vocabulary 0..{} of this model", lowest < 0 ? lowest : highest,
                    options_.vocabulary - 1);
}

at::Tensor PerformerLMImpl::position_rows(int64_t length) {
  if (position_table_.defined()) return position_table_.narrow(0, 0, length);
  if (learned_positions_) return learned_positions_(length);
  if (axial_positions_) return axial_positions_(length);
  return {};
}

at::Tensor PerformerLMImpl::embed(const at::Tensor& tokens) {
  at::Tensor x = token_embedding_(tokens);
  const at::Tensor rows = position_rows(tokens.size(1));
  if (rows.defined()) x = x + rows.to(x.scalar_type());
  return is_training() ? ops::dropout(x, options_.embedding_dropout) : x;
}

at::Tensor PerformerLMImpl::encode(const PerformerLMInputs& inputs) {
  check_tokens(inputs.tokens);
  PerformerStackInputs with;
  with.x = embed(inputs.tokens);
  with.mask = inputs.mask;
  with.context = inputs.context;
  with.context_mask = inputs.context_mask;
  if (rotary_table_.defined()) with.positions = rotary_table_.narrow(0, 0, inputs.tokens.size(1));
  return final_norm_(stack_(with));
}

at::Tensor PerformerLMImpl::forward(const PerformerLMInputs& inputs) {
  check<UsageError>(options_.output, "this model has no output layer: use encode()");
  return logits(encode(inputs));
}

at::Tensor PerformerLMImpl::logits(const at::Tensor& hidden) {
  return options_.tied_output ? at::linear(hidden, token_embedding_->weight) : output_(hidden);
}

void PerformerLMImpl::share_token_embedding(torch::nn::Embedding other) {
  check<UsageError>(other->weight.sizes().equals(token_embedding_->weight.sizes()),
                    "token embeddings to share must have the same shape, not [{}] and [{}]",
                    fmt::join(other->weight.sizes(), ", "),
                    fmt::join(token_embedding_->weight.sizes(), ", "));
  if (named_children().contains("token_embedding")) unregister_module("token_embedding");
  token_embedding_ = std::move(other);
}

}  // namespace performer::references::performer_pytorch
