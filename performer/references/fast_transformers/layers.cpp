// SPDX-License-Identifier: Apache-2.0
#include "performer/references/fast_transformers/layers.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "performer/base/error.h"
#include "performer/ops/dropout.h"

namespace performer::references::fast_transformers {
namespace {

void check_sequence(const at::Tensor& x, const char* name) {
  check<UsageError>(x.dim() == 3, "{} must be [batch, tokens, d_model], found {} dimensions", name, x.dim());
}

AttentionMask mask_or_ones(const OptionalMask& mask, int64_t rows, int64_t columns) {
  return mask ? *mask : AttentionMask(FullMask(rows, columns));
}

AttentionSizes attention_sizes(const TransformerOptions& options, int64_t layer) {
  return {options.n_heads, options.query_dimensions, options.value_dimensions, layer};
}

LayerOptions layer_options(const TransformerOptions& options) {
  return {options.n_heads * options.value_dimensions, options.feed_forward_dimensions, options.dropout,
          options.activation};
}

AttentionLayer new_attention_layer(const TransformerOptions& options, InnerAttentionPtr attention) {
  return AttentionLayer(std::move(attention), options.n_heads * options.value_dimensions, options.n_heads,
                        options.query_dimensions, options.value_dimensions);
}

// `layer` with attention of another kind that draws as the old one did.
AttentionLayer mirrored(const AttentionLayer& layer, const std::string& type,
                        const InnerAttentionOptions& attention, const AttentionSizes& sizes) {
  return AttentionLayer(*layer, make_attention(type, attention, sizes, layer->attention()->randomness()));
}

void validate_transformer(const TransformerOptions& options) {
  for (const FieldInfo& field : list_fields("transformer", options)) parse_field(field, to_text(field.value));
  const auto positive = [](const char* name, int64_t value) {
    check<UsageError>(value >= 1, "transformer.{} must be at least 1, found {}", name, value);
  };
  positive("n_layers", options.n_layers);
  positive("n_heads", options.n_heads);
  positive("query_dimensions", options.query_dimensions);
  positive("value_dimensions", options.value_dimensions);
}

torch::nn::LayerNorm final_norm(const TransformerOptions& options) {
  if (!options.final_normalization) return nullptr;
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.n_heads * options.value_dimensions}));
}

template <class Layer>
torch::nn::ModuleList module_list(const std::vector<Layer>& layers) {
  check<UsageError>(!layers.empty(), "a Transformer needs at least one layer");
  torch::nn::ModuleList list;
  for (const Layer& layer : layers) list->push_back(layer);
  return list;
}

template <class State>
void start_states(std::vector<State>& state, size_t layers) {
  if (state.empty()) state.resize(layers);
  check<UsageError>(state.size() == layers, "the state is of {} layers, but the model has {}", state.size(),
                    layers);
}

}  // namespace

AttentionLayerImpl::AttentionLayerImpl(InnerAttentionPtr attention, int64_t d_model, int64_t n_heads,
                                       int64_t d_keys, int64_t d_values, int64_t d_model_keys)
    : n_heads_(n_heads), attention_(std::move(attention)) {
  check<UsageError>(attention_ != nullptr,
                    "an attention layer needs an attention; make one with make_attention()");
  check<UsageError>(
      d_model >= 1 && n_heads >= 1 && d_keys >= 0 && d_values >= 0 && d_model_keys >= 0,
      "an attention layer cannot have d_model {}, {} heads, d_keys {}, d_values {} and d_model_keys {}",
      d_model, n_heads, d_keys, d_values, d_model_keys);
  if (d_keys == 0) d_keys = d_model / n_heads;
  if (d_values == 0) d_values = d_model / n_heads;
  if (d_model_keys == 0) d_model_keys = d_model;
  check<UsageError>(d_keys >= 1 && d_values >= 1,
                    "d_model {} is too small for {} heads; give d_keys and d_values", d_model, n_heads);
  register_module("inner_attention", attention_);
  query_ = register_module("query_projection", torch::nn::Linear(d_model, d_keys * n_heads));
  key_ = register_module("key_projection", torch::nn::Linear(d_model_keys, d_keys * n_heads));
  value_ = register_module("value_projection", torch::nn::Linear(d_model_keys, d_values * n_heads));
  out_ = register_module("out_projection", torch::nn::Linear(d_values * n_heads, d_model));
}

AttentionLayerImpl::AttentionLayerImpl(const AttentionLayerImpl& other, InnerAttentionPtr attention)
    : n_heads_(other.n_heads_), attention_(std::move(attention)) {
  register_module("inner_attention", attention_);
  query_ = register_module("query_projection", other.query_);
  key_ = register_module("key_projection", other.key_);
  value_ = register_module("value_projection", other.value_);
  out_ = register_module("out_projection", other.out_);
}

at::Tensor AttentionLayerImpl::forward(const at::Tensor& queries, const at::Tensor& keys,
                                       const at::Tensor& values, const AttentionMask& mask,
                                       const AttentionMask& query_lengths, const AttentionMask& key_lengths) {
  check_sequence(queries, "queries");
  check_sequence(keys, "keys");
  check_sequence(values, "values");
  at::Tensor weights;
  const InnerInputs inputs{heads(query_(queries)), heads(key_(keys)), heads(value_(values)),         mask,
                           query_lengths,          key_lengths,       observer_ ? &weights : nullptr};
  const at::Tensor output = attention_->forward(inputs);
  if (observer_) observer_({name_, false, inputs.query, inputs.key, inputs.value, weights, output});
  return out_(output.flatten(-2));
}

at::Tensor AttentionLayerImpl::step(const at::Tensor& x, AttentionState& state) {
  check<UsageError>(x.dim() == 2,
                    "a step takes one token of each sequence, [batch, d_model], found {} dimensions",
                    x.dim());
  const at::Tensor query = heads(query_(x)), key = heads(key_(x)), value = heads(value_(x));
  const at::Tensor output = attention_->step(query, key, value, state);
  if (observer_) observer_({name_, true, query, key, value, {}, output});
  return out_(output.flatten(-2));
}

at::Tensor AttentionLayerImpl::cross_step(const at::Tensor& x, const at::Tensor& memory,
                                          const AttentionMask& memory_lengths, AttentionState& state) {
  check<UsageError>(x.dim() == 2,
                    "a step takes one token of each sequence, [batch, d_model], found {} dimensions",
                    x.dim());
  if (!state.defined()) {
    check_sequence(memory, "the memory");
    state = attention_->summarize(heads(key_(memory)), heads(value_(memory)), memory_lengths);
  }
  const at::Tensor query = heads(query_(x));
  const at::Tensor output = attention_->cross_step(query, state);
  if (observer_) observer_({name_, true, query, {}, {}, {}, output});
  return out_(output.flatten(-2));
}

void AttentionLayerImpl::observe(std::string name, AttentionObserver observer) {
  name_ = std::move(name);
  observer_ = std::move(observer);
}

LayerParts make_layer_parts(const LayerOptions& options, int64_t norms) {
  check<UsageError>(options.d_model >= 1 && options.feed_forward_dimensions >= 0,
                    "a layer cannot have d_model {} and feed_forward_dimensions {}", options.d_model,
                    options.feed_forward_dimensions);
  check<UsageError>(options.dropout >= 0 && options.dropout < 1,
                    "dropout must be at least 0 and below 1, found {}", options.dropout);
  check<UsageError>(options.activation == "relu" || options.activation == "gelu",
                    "activation must be relu or gelu, found '{}'", options.activation);
  const int64_t inner =
      options.feed_forward_dimensions > 0 ? options.feed_forward_dimensions : 4 * options.d_model;
  LayerParts parts{options.dropout,
                   options.activation == "gelu",
                   torch::nn::Linear(options.d_model, inner),
                   torch::nn::Linear(inner, options.d_model),
                   {}};
  for (int64_t i = 0; i < norms; ++i) {
    parts.norms.push_back(torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.d_model})));
  }
  return parts;
}

PostNormLayer::PostNormLayer(LayerParts parts) : parts_(std::move(parts)) {
  register_module("linear1", parts_.linear1);
  register_module("linear2", parts_.linear2);
  for (size_t i = 0; i < parts_.norms.size(); ++i)
    register_module(fmt::format("norm{}", i + 1), parts_.norms[i]);
}

at::Tensor PostNormLayer::drop(const at::Tensor& x) const {
  return is_training() && parts_.dropout > 0 ? ops::dropout(x, parts_.dropout) : x;
}

at::Tensor PostNormLayer::add_and_norm(size_t norm, const at::Tensor& x, const at::Tensor& branch) {
  return parts_.norms.at(norm)(x + drop(branch));
}

at::Tensor PostNormLayer::feed_forward(const at::Tensor& x) {
  const at::Tensor inner = parts_.linear1(x);
  const at::Tensor active = parts_.gelu ? at::gelu(inner) : at::relu(inner);
  return add_and_norm(parts_.norms.size() - 1, x, parts_.linear2(drop(active)));
}

TransformerEncoderLayerImpl::TransformerEncoderLayerImpl(AttentionLayer attention,
                                                         const LayerOptions& options)
    : TransformerEncoderLayerImpl(std::move(attention), make_layer_parts(options, 2)) {}

TransformerEncoderLayerImpl::TransformerEncoderLayerImpl(AttentionLayer attention, LayerParts parts)
    : PostNormLayer(std::move(parts)), attention_(std::move(attention)) {
  register_module("attention", attention_);
}

at::Tensor TransformerEncoderLayerImpl::forward(const at::Tensor& x, const AttentionMask& mask,
                                                const AttentionMask& lengths) {
  return feed_forward(add_and_norm(0, x, attention_(x, x, x, mask, lengths, lengths)));
}

at::Tensor TransformerEncoderLayerImpl::step(const at::Tensor& x, AttentionState& state) {
  return feed_forward(add_and_norm(0, x, attention_->step(x, state)));
}

TransformerDecoderLayerImpl::TransformerDecoderLayerImpl(AttentionLayer self_attention,
                                                         AttentionLayer cross_attention,
                                                         const LayerOptions& options)
    : TransformerDecoderLayerImpl(std::move(self_attention), std::move(cross_attention),
                                  make_layer_parts(options, 3)) {}

TransformerDecoderLayerImpl::TransformerDecoderLayerImpl(AttentionLayer self_attention,
                                                         AttentionLayer cross_attention, LayerParts parts)
    : PostNormLayer(std::move(parts)), self_(std::move(self_attention)), cross_(std::move(cross_attention)) {
  register_module("self_attention", self_);
  register_module("cross_attention", cross_);
}

at::Tensor TransformerDecoderLayerImpl::forward(const at::Tensor& x, const at::Tensor& memory,
                                                const AttentionMask& x_mask, const AttentionMask& x_lengths,
                                                const AttentionMask& memory_mask,
                                                const AttentionMask& memory_lengths) {
  const at::Tensor own = add_and_norm(0, x, self_(x, x, x, x_mask, x_lengths, x_lengths));
  const at::Tensor both =
      add_and_norm(1, own, cross_(own, memory, memory, memory_mask, x_lengths, memory_lengths));
  return feed_forward(both);
}

at::Tensor TransformerDecoderLayerImpl::step(const at::Tensor& x, const at::Tensor& memory,
                                             const AttentionMask& memory_lengths, DecoderLayerState& state) {
  const at::Tensor own = add_and_norm(0, x, self_->step(x, state.self));
  return feed_forward(add_and_norm(1, own, cross_->cross_step(own, memory, memory_lengths, state.cross)));
}

TransformerEncoderImpl::TransformerEncoderImpl(std::vector<TransformerEncoderLayer> layers,
                                               torch::nn::LayerNorm norm)
    : layers_(std::move(layers)), norm_(std::move(norm)) {
  register_module("layers", module_list(layers_));
  if (!norm_.is_empty()) register_module("norm", norm_);
}

at::Tensor TransformerEncoderImpl::forward(const at::Tensor& x, const OptionalMask& mask,
                                           const OptionalMask& lengths) {
  check_sequence(x, "the input");
  const AttentionMask sees = mask_or_ones(mask, x.size(1), x.size(1)),
                      valid = mask_or_ones(lengths, x.size(0), x.size(1));
  at::Tensor y = x;
  for (TransformerEncoderLayer& layer : layers_) y = layer(y, sees, valid);
  return norm_.is_empty() ? y : norm_(y);
}

at::Tensor TransformerEncoderImpl::step(const at::Tensor& x, std::vector<AttentionState>& state) {
  start_states(state, layers_.size());
  at::Tensor y = x;
  for (size_t i = 0; i < layers_.size(); ++i) y = layers_[i]->step(y, state[i]);
  return norm_.is_empty() ? y : norm_(y);
}

void TransformerEncoderImpl::observe(const AttentionObserver& observer) {
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i]->attention()->observe(fmt::format("layers.{}.attention", i), observer);
  }
}

TransformerDecoderImpl::TransformerDecoderImpl(std::vector<TransformerDecoderLayer> layers,
                                               torch::nn::LayerNorm norm)
    : layers_(std::move(layers)), norm_(std::move(norm)) {
  register_module("layers", module_list(layers_));
  if (!norm_.is_empty()) register_module("norm", norm_);
}

at::Tensor TransformerDecoderImpl::forward(const at::Tensor& x, const at::Tensor& memory,
                                           const OptionalMask& x_mask, const OptionalMask& x_lengths,
                                           const OptionalMask& memory_mask,
                                           const OptionalMask& memory_lengths) {
  check_sequence(x, "the input");
  check_sequence(memory, "the memory");
  const AttentionMask own = mask_or_ones(x_mask, x.size(1), x.size(1)),
                      valid = mask_or_ones(x_lengths, x.size(0), x.size(1));
  const AttentionMask sees = mask_or_ones(memory_mask, x.size(1), memory.size(1)),
                      there = mask_or_ones(memory_lengths, memory.size(0), memory.size(1));
  at::Tensor y = x;
  for (TransformerDecoderLayer& layer : layers_) y = layer(y, memory, own, valid, sees, there);
  return norm_.is_empty() ? y : norm_(y);
}

at::Tensor TransformerDecoderImpl::step(const at::Tensor& x, const at::Tensor& memory,
                                        std::vector<DecoderLayerState>& state,
                                        const OptionalMask& memory_lengths) {
  start_states(state, layers_.size());
  const bool readable = memory.defined() && memory.dim() == 3;  // else it had better be summarized already
  const AttentionMask there =
      mask_or_ones(memory_lengths, readable ? memory.size(0) : 0, readable ? memory.size(1) : 0);
  at::Tensor y = x;
  for (size_t i = 0; i < layers_.size(); ++i) y = layers_[i]->step(y, memory, there, state[i]);
  return norm_.is_empty() ? y : norm_(y);
}

void TransformerDecoderImpl::observe(const AttentionObserver& observer) {
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i]->self_attention()->observe(fmt::format("layers.{}.self_attention", i), observer);
    layers_[i]->cross_attention()->observe(fmt::format("layers.{}.cross_attention", i), observer);
  }
}

TransformerEncoder make_transformer_encoder(const TransformerOptions& options) {
  validate_transformer(options);
  std::vector<TransformerEncoderLayer> layers;
  for (int64_t i = 0; i < options.n_layers; ++i) {
    const auto attention =
        make_attention(options.attention_type, options.attention, attention_sizes(options, i));
    layers.emplace_back(new_attention_layer(options, attention), layer_options(options));
  }
  return TransformerEncoder(std::move(layers), final_norm(options));
}

TransformerDecoder make_transformer_decoder(const TransformerOptions& options) {
  validate_transformer(options);
  std::vector<TransformerDecoderLayer> layers;
  for (int64_t i = 0; i < options.n_layers; ++i) {
    const auto self = make_attention(options.attention_type, options.attention, attention_sizes(options, i));
    const auto cross = make_attention(options.cross_attention_type, options.cross_attention,
                                      attention_sizes(options, options.n_layers + i));
    layers.emplace_back(new_attention_layer(options, self), new_attention_layer(options, cross),
                        layer_options(options));
  }
  return TransformerDecoder(std::move(layers), final_norm(options));
}

TransformerEncoder mirror(const TransformerEncoder& model, const TransformerOptions& options) {
  std::vector<TransformerEncoderLayer> layers;
  for (const TransformerEncoderLayer& layer : model->layers()) {
    const AttentionSizes sizes = attention_sizes(options, static_cast<int64_t>(layers.size()));
    layers.emplace_back(mirrored(layer->attention(), options.attention_type, options.attention, sizes),
                        layer->parts());
  }
  TransformerEncoder made(std::move(layers), model->norm());
  made->train(model->is_training());
  return made;
}

TransformerDecoder mirror(const TransformerDecoder& model, const TransformerOptions& options) {
  std::vector<TransformerDecoderLayer> layers;
  for (const TransformerDecoderLayer& layer : model->layers()) {
    const auto index = static_cast<int64_t>(layers.size());
    layers.emplace_back(mirrored(layer->self_attention(), options.attention_type, options.attention,
                                 attention_sizes(options, index)),
                        mirrored(layer->cross_attention(), options.cross_attention_type,
                                 options.cross_attention, attention_sizes(options, options.n_layers + index)),
                        layer->parts());
  }
  TransformerDecoder made(std::move(layers), model->norm());
  made->train(model->is_training());
  return made;
}

}  // namespace performer::references::fast_transformers
