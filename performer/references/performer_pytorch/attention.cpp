// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <cmath>
#include <memory>
#include <tuple>
#include <utility>

#include "performer/base/error.h"
#include "performer/kernels/function.h"
#include "performer/ops/composed.h"
#include "performer/ops/dropout.h"
#include "performer/ops/projection.h"
#include "performer/references/performer_pytorch/fast_attention.h"

namespace performer::references::performer_pytorch {
namespace {

namespace performer_pytorch = references::performer_pytorch;

constexpr double kKernelEpsilon = 1e-3;  // of generalised features, as in Performers, appendix A

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
  check<UsageError>(options.compatible || !options.cross || !options.causal,
                    "cross-attention cannot be causal: queries and context have no common order");
  check<UsageError>(options.dropout >= 0 && options.dropout < 1,
                    "a dropout probability must be at least 0 and below 1, not {}", options.dropout);
  if (options.features == 0) options.features = performer_pytorch::default_features(options.dim_head);
  check<UsageError>(options.features >= 1,
                    "attention needs at least 1 random feature, found {} (head size {}): give `features`",
                    options.features, options.dim_head);
  if (options.generalized && !options.no_projection) {
    if (options.compatible) {
      ops::activation(options.kernel, at::zeros({1}));
    } else {
      kernels::function_from_name(options.kernel);
    }
  }
  return options;
}

void check_token_mask(const std::optional<at::Tensor>& mask, const char* name, const at::Tensor& tokens) {
  check<UsageError>(!mask || (mask->scalar_type() == at::kBool && mask->dim() == 2 &&
                              mask->size(0) == tokens.size(0) && mask->size(1) == tokens.size(1)),
                    "{} of attention must be bool [{}, {}]", name, tokens.size(0), tokens.size(1));
}

// Efficient attention over a whole sequence (Shen et al. 2021): queries softmaxed over features, keys over
// their tokens. query [B, T, H, D], key [B, S, H, D], value [B, S, H, E]; masked keys are not there. Each
// query's features and each feature's keys sum to 1, so nothing is divided. Keys and values give a summary
// [B, H, D, E].
at::Tensor efficient_summary(const at::Tensor& key, const at::Tensor& value,
                             const std::optional<at::Tensor>& key_mask) {
  at::Tensor phi_k = key;
  if (key_mask) {
    // A finite stand-in for minus infinity, so that a row without any key gives 0 instead of NaN.
    const at::Tensor hidden = key_mask->logical_not().unsqueeze(-1).unsqueeze(-1);
    phi_k = phi_k.masked_fill(hidden, -1e30).softmax(1).masked_fill(hidden, 0);
  } else {
    phi_k = phi_k.softmax(1);
  }
  return at::matmul(phi_k.permute({0, 2, 3, 1}), value.transpose(1, 2));
}

at::Tensor efficient_attention(const at::Tensor& query, const at::Tensor& summary) {
  return at::matmul(query.softmax(-1).transpose(1, 2), summary).transpose(1, 2);
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

  // The reference keeps a projection even where nothing reads it.
  const bool projected = options_.compatible || (global_heads_ > 0 && !options_.no_projection);
  if (projected) {
    const auto holder =
        register_module("fast_attention", std::make_shared<torch::nn::Module>("fast_attention"));
    projection_ = holder->register_buffer("projection_matrix", draw(0));
    if (options_.compatible && options_.redraw_interval >= 0) {
      calls_ = holder->register_buffer("calls_since_last_redraw", at::zeros({}, at::kLong));
      redraws_ = holder->register_buffer("redraws", at::zeros({}, at::kLong));
    }
  }
  if (options_.local_heads > 0) rates_ = nn::local_rotary_rates(options_.dim_head);
  if (options_.local_heads > 0 && options_.compatible) {
    const auto local = register_module("local_attn", std::make_shared<torch::nn::Module>("local_attn"));
    const auto positions = local->register_module("rel_pos", std::make_shared<torch::nn::Module>("rel_pos"));
    rates_ = positions->register_buffer("inv_freq", rates_);
  }
}

at::Tensor PerformerAttentionImpl::draw(int64_t index) const {
  if (!options_.compatible) {
    return ops::draw_projection("orthogonal", "chi", global_heads_, options_.features, options_.dim_head,
                                options_.seed, options_.layer, index);
  }
  return performer_pytorch::gaussian_orthogonal_random_matrix(
      performer_pytorch::random_matrix_draws(options_.features, options_.dim_head, options_.seed,
                                             options_.layer, index),
      options_.features, options_.dim_head);
}

void PerformerAttentionImpl::redraw(int64_t index) {
  if (!projection_.defined() || fixed_) return;
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
  } else {
    check<UsageError>(!inputs.context_mask || options_.compatible,
                      "self-attention takes no context mask, only a mask");
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

at::Tensor PerformerAttentionImpl::attend_compatible(const Heads& heads,
                                                     const PerformerAttentionInputs& inputs) const {
  std::optional<at::Tensor> key_mask = inputs.context_mask;
  if (!key_mask && !options_.cross) key_mask = inputs.mask;
  at::Tensor value = heads.value;
  if (key_mask) value = value.masked_fill(key_mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
  performer_pytorch::FastAttentionOptions with;
  with.causal = options_.causal;
  with.generalized = options_.generalized;
  with.no_projection = options_.no_projection;
  with.kernel = options_.kernel;
  return performer_pytorch::fast_attention(heads.query, heads.key, value, projection_, with);
}

PerformerAttentionImpl::Heads PerformerAttentionImpl::rotated(const Heads& heads,
                                                              const PerformerAttentionInputs& inputs) const {
  if (!inputs.positions || options_.cross) return heads;
  return {performer_pytorch::rotate_pairs(heads.query, *inputs.positions),
          performer_pytorch::rotate_pairs(heads.key, *inputs.positions), heads.value};
}

// Of our own mode; efficient attention over whole sequences has none.
ops::FeatureMap PerformerAttentionImpl::feature_map() const {
  ops::FeatureMap map;
  if (options_.no_projection) {
    // Queries softmaxed over features and exp(k): the softmax's normaliser cancels, which leaves exponential
    // features of the inputs themselves, whose log-scales cannot overflow.
    map.norm_weight = 0;
    return map;
  }
  map.scale = std::pow(static_cast<double>(options_.dim_head), -0.25);
  map.projection = projection_.to(at::kFloat);
  if (options_.generalized) {
    map.family = options_.kernel;
    map.epsilon = kKernelEpsilon;
  }
  return map;
}

at::Tensor PerformerAttentionImpl::attend_global(const Heads& heads,
                                                 const PerformerAttentionInputs& inputs) const {
  const Heads turned = rotated(heads, inputs);
  if (options_.compatible) return attend_compatible(turned, inputs);

  ops::AttentionInputs attention;
  attention.query = turned.query;
  attention.key = turned.key;
  attention.value = turned.value;
  attention.causal = options_.causal;
  attention.key_mask = options_.cross ? inputs.context_mask : inputs.mask;
  attention.query_mask = inputs.mask;
  if (options_.no_projection && !options_.causal) {
    const at::Tensor out =
        efficient_attention(turned.query, efficient_summary(turned.key, turned.value, attention.key_mask));
    if (!inputs.mask) return out;
    return out.masked_fill(inputs.mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
  }
  return std::get<0>(ops::favor_attention(attention, feature_map()));
}

nn::LocalAttentionOptions PerformerAttentionImpl::local_options() const {
  nn::LocalAttentionOptions with;
  with.window = options_.local_window_size;
  with.causal = options_.causal;
  with.dropout = is_training() ? options_.dropout : 0;
  with.compatible = options_.compatible;
  return with;
}

at::Tensor PerformerAttentionImpl::attend_local(const Heads& heads,
                                                const PerformerAttentionInputs& inputs) const {
  return nn::local_attention(heads.query, heads.key, heads.value, inputs.mask, rates_, local_options());
}

at::Tensor PerformerAttentionImpl::continue_global(const Heads& heads, const PerformerAttentionInputs& inputs,
                                                   PerformerAttentionState& state) const {
  const Heads turned = rotated(heads, inputs);
  if (turned.query.size(1) == 1 && state.global.defined()) {
    const auto token = [](const at::Tensor& x) { return x.squeeze(1); };
    return ops::favor_step(token(turned.query), token(turned.key), token(turned.value), state.global,
                           feature_map())
        .unsqueeze(1);
  }
  ops::AttentionInputs attention;
  attention.query = turned.query;
  attention.key = turned.key;
  attention.value = turned.value;
  attention.causal = true;
  if (state.global.defined()) attention.initial = state.global;
  attention.return_state = true;
  at::Tensor out;
  std::tie(out, state.global) = ops::favor_attention(attention, feature_map());
  return out;
}

at::Tensor PerformerAttentionImpl::continue_cross(const PerformerAttentionInputs& inputs,
                                                  PerformerAttentionState& state) {
  const bool first = !state.global.defined() && !state.context_summary.defined();
  PerformerAttentionInputs read = inputs;
  // Afterwards an empty context: all there is to know of it is in the state.
  if (!first) read.context = inputs.x.narrow(1, 0, 0);
  const Heads heads = project(read);
  if (options_.no_projection) {
    if (first) state.context_summary = efficient_summary(heads.key, heads.value, inputs.context_mask);
    return efficient_attention(heads.query, state.context_summary);
  }
  ops::AttentionInputs attention;
  attention.query = heads.query;
  attention.key = heads.key;
  attention.value = heads.value;
  if (first) {
    attention.key_mask = inputs.context_mask;
  } else {
    attention.initial = state.global;
  }
  attention.return_state = first;
  const auto [out, after] = ops::favor_attention(attention, feature_map());
  if (first) state.global = after;
  return out;
}

at::Tensor PerformerAttentionImpl::continue_from(const PerformerAttentionInputs& inputs,
                                                 PerformerAttentionState& state) {
  check<UsageError>(!options_.compatible,
                    "compatible attention has no state to continue from: it looks at whole sequences");
  check<UsageError>(options_.cross || options_.causal,
                    "self-attention that is not causal cannot be continued");
  check<UsageError>(!inputs.mask, "attention that is continued takes no mask: leave masked tokens out");
  check_inputs(inputs);
  const at::NoGradGuard no_grad;
  if (options_.cross) return to_out_(continue_cross(inputs, state).flatten(-2));
  const Heads heads = project(inputs);
  std::vector<at::Tensor> outputs;
  if (global_heads_ > 0) outputs.push_back(continue_global(heads.part(0, global_heads_), inputs, state));
  if (options_.local_heads > 0) {
    const Heads local = heads.part(global_heads_, options_.local_heads);
    outputs.push_back(nn::continue_local_attention(local.query, local.key, local.value, rates_,
                                                   local_options(), state.local));
  }
  return to_out_(at::cat(outputs, 2).flatten(-2));
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
