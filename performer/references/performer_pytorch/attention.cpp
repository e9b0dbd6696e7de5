// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <memory>
#include <utility>
#include <vector>

#include "performer/base/error.h"
#include "performer/ops/composed.h"
#include "performer/ops/dropout.h"
#include "performer/references/performer_pytorch/fast_attention.h"
#include "performer/references/performer_pytorch/local_attention.h"

namespace performer::references::performer_pytorch {
namespace {

// Options with the defaults that depend on other options put in.
PerformerAttentionOptions resolve_options(PerformerAttentionOptions options) {
  check<UsageError>(
      options.dim >= 1 && options.heads >= 1 && options.dim % options.heads == 0,
      "attention of width {} cannot be split into {} heads: the width must be a multiple of the "
      "heads",
      options.dim, options.heads);
  if (options.dim_head == 0) options.dim_head = options.dim / options.heads;
  check<UsageError>(options.dim_head >= 1, "head size must be at least 1, found {}", options.dim_head);
  check<UsageError>(options.local_heads >= 0 && options.local_heads <= options.heads,
                    "local heads must be 0 to the {} heads, found {}", options.heads, options.local_heads);
  check<UsageError>(!options.cross || options.local_heads == 0,
                    "local heads attend to their own sequence, so cross-attention must have none, found {}",
                    options.local_heads);
  check<UsageError>(options.local_heads == 0 || options.dim_head % 2 == 0,
                    "local heads have rotary positions, which need an even head size, found {}",
                    options.dim_head);
  check<UsageError>(options.local_window_size >= 1, "the window of local heads must be at least 1, found {}",
                    options.local_window_size);
  check<UsageError>(options.dropout >= 0 && options.dropout < 1,
                    "a dropout probability must be at least 0 and below 1, not {}", options.dropout);
  if (options.features == 0) options.features = default_features(options.dim_head);
  check<UsageError>(options.features >= 1,
                    "attention needs at least 1 random feature, found {} (head size {}): give `features`",
                    options.features, options.dim_head);
  if (options.generalized && !options.no_projection) {
    ops::activation(options.kernel, at::zeros({1}));  // throws for an unknown name
  }
  return options;
}

void check_token_mask(const std::optional<at::Tensor>& mask, const char* name, const at::Tensor& tokens) {
  check<UsageError>(!mask || (mask->scalar_type() == at::kBool && mask->dim() == 2 &&
                              mask->size(0) == tokens.size(0) && mask->size(1) == tokens.size(1)),
                    "{} of attention must be bool [{}, {}]", name, tokens.size(0), tokens.size(1));
}

}  // namespace

PerformerAttentionImpl::PerformerAttentionImpl(PerformerAttentionOptions options)
    : options_(resolve_options(std::move(options))), global_heads_(options_.heads - options_.local_heads) {
  const int64_t inner = options_.heads * options_.dim_head;
  const auto linear = [&](const char* name, int64_t in, int64_t out, bool bias) {
    return register_module(name, torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(bias)));
  };
  to_q_ = linear("to_q", options_.dim, inner, options_.qkv_bias);
  to_k_ = linear("to_k", options_.dim, inner, options_.qkv_bias);
  to_v_ = linear("to_v", options_.dim, inner, options_.qkv_bias);
  to_out_ = linear("to_out", inner, options_.dim, options_.out_bias);

  // Kept even where nothing reads it, as in the reference.
  const auto holder =
      register_module("fast_attention", std::make_shared<torch::nn::Module>("fast_attention"));
  projection_ = holder->register_buffer("projection_matrix", draw(0));
  if (options_.redraw_interval >= 0) {
    calls_ = holder->register_buffer("calls_since_last_redraw", at::zeros({}, at::kLong));
    redraws_ = holder->register_buffer("redraws", at::zeros({}, at::kLong));
  }
  if (options_.local_heads > 0) {
    const auto local = register_module("local_attn", std::make_shared<torch::nn::Module>("local_attn"));
    const auto positions = local->register_module("rel_pos", std::make_shared<torch::nn::Module>("rel_pos"));
    rates_ = positions->register_buffer("inv_freq", nn::local_rotary_rates(options_.dim_head));
  }
}

at::Tensor PerformerAttentionImpl::draw(int64_t index) const {
  const RandomMatrixDraws draws =
      random_matrix_draws(options_.features, options_.dim_head, options_.seed, options_.layer, index);
  return gaussian_orthogonal_random_matrix(draws, options_.features, options_.dim_head);
}

void PerformerAttentionImpl::redraw(int64_t index) {
  if (fixed_) return;
  const at::NoGradGuard no_grad;
  projection_.copy_(draw(index));
}

void PerformerAttentionImpl::count_training_forward() {
  if (!calls_.defined() || fixed_ || !is_training()) return;
  const at::NoGradGuard no_grad;
  if (calls_.item<int64_t>() < options_.redraw_interval) {
    calls_.add_(1);
    return;
  }
  calls_.zero_();
  redraws_.add_(1);
  redraw(redraws_.item<int64_t>());
}

void PerformerAttentionImpl::check_inputs(const PerformerAttentionInputs& inputs) const {
  check<UsageError>(inputs.x.dim() == 3 && inputs.x.size(2) == options_.dim,
                    "attention of width {} needs inputs [B, T, {}], found [{}]", options_.dim, options_.dim,
                    fmt::join(inputs.x.sizes(), ", "));
  check<UsageError>(inputs.context.has_value() == options_.cross, "{}",
                    options_.cross ? "cross-attention needs a context"
                                   : "self-attention takes no context: build it with cross = true");
  check_token_mask(inputs.mask, "mask", inputs.x);
  if (options_.cross) {
    check<UsageError>(inputs.context->dim() == 3 && inputs.context->size(0) == inputs.x.size(0) &&
                          inputs.context->size(2) == options_.dim,
                      "the context of attention of width {} must be [{}, S, {}], found [{}]", options_.dim,
                      inputs.x.size(0), options_.dim, fmt::join(inputs.context->sizes(), ", "));
  }
  check_token_mask(inputs.context_mask, "context mask", options_.cross ? *inputs.context : inputs.x);
}

PerformerAttentionImpl::Heads PerformerAttentionImpl::project(const PerformerAttentionInputs& inputs) {
  const at::Tensor& source = options_.cross ? *inputs.context : inputs.x;
  const auto split = [&](const at::Tensor& flat) {
    return flat.unflatten(-1, {options_.heads, options_.dim_head});
  };
  return {split(to_q_(inputs.x)), split(to_k_(source)), split(to_v_(source))};
}

PerformerAttentionImpl::Heads PerformerAttentionImpl::Heads::part(int64_t first, int64_t count) const {
  return {query.narrow(2, first, count), key.narrow(2, first, count), value.narrow(2, first, count)};
}

at::Tensor PerformerAttentionImpl::attend_global(const Heads& heads,
                                                 const PerformerAttentionInputs& inputs) const {
  std::optional<at::Tensor> key_mask = inputs.context_mask;
  if (!key_mask && !options_.cross) key_mask = inputs.mask;
  at::Tensor query = heads.query, key = heads.key, value = heads.value;
  if (inputs.positions && !options_.cross) {
    query = rotate_pairs(query, *inputs.positions);
    key = rotate_pairs(key, *inputs.positions);
  }
  if (key_mask) value = value.masked_fill(key_mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
  FastAttentionOptions with;
  with.causal = options_.causal;
  with.generalized = options_.generalized;
  with.no_projection = options_.no_projection;
  with.kernel = options_.kernel;
  return fast_attention(query, key, value, projection_, with);
}

at::Tensor PerformerAttentionImpl::attend_local(const Heads& heads,
                                                const PerformerAttentionInputs& inputs) const {
  nn::LocalAttentionOptions with;
  with.window = options_.local_window_size;
  with.causal = options_.causal;
  with.dropout = is_training() ? options_.dropout : 0;
  return performer_pytorch::local_attention(heads.query, heads.key, heads.value, inputs.mask, rates_, with);
}

at::Tensor PerformerAttentionImpl::forward(const PerformerAttentionInputs& inputs) {
  check_inputs(inputs);
  count_training_forward();
  const Heads heads = project(inputs);
  std::vector<at::Tensor> outputs;
  if (global_heads_ > 0) outputs.push_back(attend_global(heads.part(0, global_heads_), inputs));
  if (options_.local_heads > 0) {
    outputs.push_back(attend_local(heads.part(global_heads_, options_.local_heads), inputs));
  }
  const at::Tensor out = to_out_(at::cat(outputs, 2).flatten(-2));
  return ops::dropout(out, is_training() ? options_.dropout : 0);
}

}  // namespace performer::references::performer_pytorch
