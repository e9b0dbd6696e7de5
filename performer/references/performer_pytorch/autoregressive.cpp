// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/autoregressive.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "performer/base/error.h"
#include "performer/nn/evaluation_scope.h"
#include "performer/references/performer_pytorch/sampling.h"

namespace performer::references::performer_pytorch {

void validate(const DecodingOptions& options) {
  check<UsageError>(options.temperature > 0 && std::isfinite(options.temperature),
                    "temperature must be a finite number above 0, not {}", options.temperature);
  check<UsageError>(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty),
                    "repetition_penalty must be a finite number above 0 (up to 1: none), not {}",
                    options.repetition_penalty);
  check<UsageError>(options.repetition_window >= 0, "repetition_window must be at least 0, not {}",
                    options.repetition_window);
  check<UsageError>(options.filter == "top_k" || options.filter == "top_p",
                    "filter '{}' is not known; choose top_k or top_p", options.filter);
  check<UsageError>(options.filter_threshold >= 0 && options.filter_threshold <= 1,
                    "filter_threshold must be in [0, 1], not {}", options.filter_threshold);
}

namespace {

at::Tensor last_columns(const at::Tensor& x, int64_t count) {
  const int64_t kept = std::min(count, x.size(1));
  return x.narrow(1, x.size(1) - kept, kept);
}

// Logits [B, V] of the token after those of `read`, after penalty and filter; `tokens` are all so far.
at::Tensor next_logits(PerformerLM& net, const PerformerLMInputs& read, const at::Tensor& tokens,
                       const DecodingOptions& options) {
  at::Tensor logits = net(read);
  logits = logits.select(1, logits.size(1) - 1);
  if (options.repetition_penalty > 1) {
    const int64_t rows = std::min(options.repetition_window, tokens.size(0));
    const at::Tensor seen = rows == 0 ? tokens : tokens.narrow(0, tokens.size(0) - rows, rows);
    logits = penalize_repetition(logits, seen, options.repetition_penalty);
  }
  logits = options.filter == "top_k" ? keep_top_k(logits, options.filter_threshold)
                                     : keep_top_p(logits, options.filter_threshold);
  check<UsageError>(!logits.isinf().all(-1).any().item<bool>(),
                    "filter {} with threshold {} keeps none of {} tokens; choose a threshold that keeps one",
                    options.filter, options.filter_threshold, logits.size(-1));
  return logits;
}

void check_start(const PerformerLMInputs& start, int64_t steps) {
  check<UsageError>(steps >= 0, "the number of tokens to generate must be at least 0, not {}", steps);
  check<UsageError>(
      start.tokens.dim() == 2 && start.tokens.scalar_type() == at::kLong && start.tokens.size(1) >= 1,
      "the start must be int64 [B, T] with at least one token, not {} [{}]",
      toString(start.tokens.scalar_type()), fmt::join(start.tokens.sizes(), ", "));
  check<UsageError>(!start.mask || (start.mask->scalar_type() == at::kBool &&
                                    start.mask->sizes().equals(start.tokens.sizes())),
                    "the mask of the start must be bool [{}]", fmt::join(start.tokens.sizes(), ", "));
}

}  // namespace

AutoregressiveImpl::AutoregressiveImpl(PerformerLM net, const AutoregressiveOptions& options)
    : options_(options) {
  check<UsageError>(net->options().stack.causal && net->options().output,
                    "an autoregressive model must be causal and have an output layer");
  net_ = register_module("net", std::move(net));
}

at::Tensor AutoregressiveImpl::forward(const PerformerLMInputs& inputs) {
  const at::Tensor& tokens = inputs.tokens;
  check<UsageError>(tokens.dim() == 2 && tokens.size(1) >= 2,
                    "a loss needs tokens [B, T] with T of at least 2, not [{}]",
                    fmt::join(tokens.sizes(), ", "));
  const int64_t length = tokens.size(1) - 1;
  const at::Tensor targets = tokens.narrow(1, 1, length);
  PerformerLMInputs read = inputs;
  read.tokens = tokens.narrow(1, 0, length);
  if (inputs.mask && inputs.mask->dim() == 2 && inputs.mask->size(1) == length + 1) {
    read.mask = inputs.mask->narrow(1, 0, length);
  }
  return at::cross_entropy_loss(net_(read).flatten(0, 1), targets.flatten(), {}, at::Reduction::Mean,
                                options_.ignore_index);
}

at::Tensor AutoregressiveImpl::generate(const PerformerLMInputs& start, int64_t steps,
                                        const DecodingOptions& options) {
  validate(options);
  check_start(start, steps);
  const at::NoGradGuard no_grad;
  const EvaluationScope evaluation(*net_);
  const int64_t longest = net_->options().max_length;
  at::Tensor tokens = start.tokens;
  at::Tensor mask = start.mask ? *start.mask : at::ones_like(tokens, at::kBool);
  PerformerLMInputs read = start;
  if (start.context && !start.context_mask) {
    read.context_mask = at::ones({start.context->size(0), start.context->size(1)}, mask.options());
  }
  for (int64_t step = 0; step < steps; ++step) {
    read.tokens = last_columns(tokens, longest);
    mask = last_columns(mask, longest);
    read.mask = mask;
    const at::Tensor logits = next_logits(net_, read, tokens, options);
    const at::Tensor sample = (logits / options.temperature).softmax(-1).multinomial(1);
    tokens = at::cat({tokens, sample}, 1);
    mask = at::constant_pad_nd(mask, {0, 1}, true);
    if (options.end_token >= 0 && sample.eq(options.end_token).all().item<bool>()) break;
  }
  return tokens.narrow(1, start.tokens.size(1), tokens.size(1) - start.tokens.size(1));
}

}  // namespace performer::references::performer_pytorch
