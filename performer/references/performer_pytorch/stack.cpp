// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/stack.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <utility>

#include "performer/base/error.h"
#include "performer/nn/reversible.h"
#include "performer/nn/token_shift.h"

namespace performer::references::performer_pytorch {

void validate(const PerformerStackOptions& options) {
  check<UsageError>(options.depth >= 1, "a Performer needs a depth of at least 1, not {}", options.depth);
  check<UsageError>(options.heads >= 1 && options.dim >= 1 && options.dim % options.heads == 0,
                    "dim {} must be divisible by heads {}", options.dim, options.heads);
  const size_t given = options.local_heads.size();
  check<UsageError>(given == 1 || given == static_cast<size_t>(options.depth),
                    "local_heads ({}) must be one number for all layers or one for each of the {} layers",
                    fmt::join(options.local_heads, ", "), options.depth);
  for (const int64_t local : options.local_heads) {
    check<UsageError>(local >= 0 && local <= options.heads,
                      "local_heads ({}): each must be between 0 and the {} heads",
                      fmt::join(options.local_heads, ", "), options.heads);
  }
  check<UsageError>(options.attn_dropout >= 0 && options.attn_dropout < 1,
                    "attn_dropout must be in [0, 1), not {}", options.attn_dropout);
}

namespace {

PerformerAttentionOptions attention_options(const PerformerStackOptions& options, int64_t layer,
                                            int64_t local_heads, bool cross) {
  PerformerAttentionOptions attention;
  attention.dim = options.dim;
  attention.heads = options.heads;
  attention.dim_head = options.dim_head;
  attention.local_heads = local_heads;
  attention.local_window_size = options.local_window_size;
  attention.features = options.features;
  attention.redraw_interval = -1;  // the stack counts for all its layers
  attention.causal = options.causal && !cross;
  attention.generalized = options.generalized;
  attention.kernel = options.kernel;
  attention.no_projection = options.no_projection;
  attention.qkv_bias = options.qkv_bias;
  attention.out_bias = options.out_bias;
  attention.cross = cross;
  attention.dropout = options.attn_dropout;
  attention.seed = options.seed;
  attention.layer = layer;
  return attention;
}

FeedForwardOptions feed_forward_options(const PerformerStackOptions& options) {
  FeedForwardOptions feed_forward;
  feed_forward.dim = options.dim;
  feed_forward.mult = options.ff_mult;
  feed_forward.glu = options.ff_glu;
  feed_forward.dropout = options.ff_dropout;
  feed_forward.chunks = options.ff_chunks;
  return feed_forward;
}

}  // namespace

PerformerBlockImpl::PerformerBlockImpl(const PerformerStackOptions& options, int64_t layer,
                                       int64_t local_heads, bool cross)
    : cross_(cross) {
  if (options.shift_tokens && !cross) shifts_ = nn::stack_shifts(options.causal);
  attention_norm_ = register_module("attention_norm", BranchNorm(options.norm, options.dim));
  attention_ =
      register_module("attention", PerformerAttention(attention_options(options, layer, local_heads, cross)));
  feed_forward_norm_ = register_module("feed_forward_norm", BranchNorm(options.norm, options.dim));
  feed_forward_ = register_module("feed_forward", FeedForward(feed_forward_options(options)));
}

at::Tensor PerformerBlockImpl::attend(const at::Tensor& x, const PerformerStackInputs& with) {
  PerformerAttentionInputs inputs;
  inputs.x = attention_norm_->before(x);
  inputs.mask = with.mask;
  if (!shifts_.empty()) inputs.x = nn::shift_tokens(inputs.x, shifts_, with.mask);
  if (cross_) {
    inputs.context = with.context;
    inputs.context_mask = with.context_mask;
  } else {
    inputs.positions = with.positions;
  }
  return attention_norm_->after(attention_(inputs));
}

at::Tensor PerformerBlockImpl::transform(const at::Tensor& x) {
  at::Tensor inner = feed_forward_norm_->before(x);
  if (!shifts_.empty()) inner = nn::shift_tokens(inner, shifts_);
  return feed_forward_norm_->after(feed_forward_(inner));
}

PerformerStackImpl::PerformerStackImpl(const PerformerStackOptions& options) : options_(options) {
  validate(options);
  for (int64_t layer = 0; layer < options.depth; ++layer) {
    const auto add = [&](int64_t local_heads, bool cross) {
      const auto index = static_cast<int64_t>(blocks_.size());
      blocks_.push_back(register_module(fmt::format("blocks_{}", index),
                                        PerformerBlock(options, index, local_heads, cross)));
    };
    add(options.local_heads[options.local_heads.size() == 1 ? 0 : layer], false);
    if (options.cross_attend) add(0, true);
  }
}

void PerformerStackImpl::check_inputs(const PerformerStackInputs& inputs) const {
  check<UsageError>(inputs.x.defined() && inputs.x.dim() == 3 && inputs.x.size(2) == options_.dim,
                    "a Performer of dim {} reads [B, T, {}], not [{}]", options_.dim, options_.dim,
                    inputs.x.defined() ? fmt::format("{}", fmt::join(inputs.x.sizes(), ", ")) : "nothing");
  check<UsageError>(inputs.context.has_value() || !options_.cross_attend,
                    "a Performer with cross_attend needs a context");
  check<UsageError>(!inputs.context.has_value() || options_.cross_attend,
                    "a Performer without cross_attend reads no context: build it with cross_attend");
  check<UsageError>(!inputs.context_mask || inputs.context, "a context_mask needs a context");
}

void PerformerStackImpl::redraw(int64_t index) {
  if (fixed_) return;
  for (PerformerBlock& block : blocks_) block->redraw(index);
  redraws_ = {0, index};
}

void PerformerStackImpl::count_training_call() {
  if (!is_training() || !options_.auto_redraw || options_.redraw_interval < 0 || fixed_) return;
  if (redraws_.calls < options_.redraw_interval) {
    ++redraws_.calls;
  } else {
    redraw(redraws_.index + 1);  // this call is not counted
  }
}

at::Tensor PerformerStackImpl::forward_reversible(const PerformerStackInputs& inputs) {
  // Blocks and inputs are captured by value (handles): the backward pass calls them again. x itself is not
  // used by the branches and must not be kept alive.
  PerformerStackInputs with = inputs;
  with.x = at::Tensor();
  std::vector<nn::ReversibleLayer> layers;
  for (PerformerBlock& block : blocks_) {
    nn::ReversibleLayer& layer = layers.emplace_back();
    layer.f = [block, with](const at::Tensor& x) mutable { return block->attend(x, with); };
    layer.g = [block](const at::Tensor& x) mutable { return block->transform(x); };
    layer.used = block->parameters();
    for (const at::Tensor& buffer : block->buffers()) layer.used.push_back(buffer);
    if (block->cross()) layer.used.push_back(*inputs.context);
  }
  const nn::Streams y = nn::reversible_sequence(layers, {inputs.x, inputs.x}, reconstruct_);
  return y.first + y.second;
}

at::Tensor PerformerStackImpl::forward(const PerformerStackInputs& inputs) {
  check_inputs(inputs);
  count_training_call();
  if (options_.reversible) return forward_reversible(inputs);
  at::Tensor x = inputs.x;
  for (PerformerBlock& block : blocks_) {
    x = x + block->attend(x, inputs);
    x = x + block->transform(x);
  }
  return x;
}

}  // namespace performer::references::performer_pytorch
