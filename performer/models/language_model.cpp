// SPDX-License-Identifier: Apache-2.0
#include "performer/models/language_model.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/nn/init.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/models/token_dropout.h"
#include "performer/nn/dense.h"
#include "performer/nn/initialize.h"
#include "performer/nn/positions.h"
#include "performer/nn/recompute.h"
#include "performer/ops/block.h"
#include "performer/ops/linear.h"

namespace performer {

LanguageModelImpl::LanguageModelImpl(const ModelConfig& model, const AttentionConfig& attention,
                                     int64_t vocabulary, const LanguageModelParts& parts)
    : model_(model), attention_(attention), vocabulary_(vocabulary), parts_(parts) {
  validate(model, attention);
  check<UsageError>(!parts.cross_attention || !model.reversible,
                    "blocks with cross-attention are not reversible: set model.reversible = false");
  check<UsageError>(vocabulary >= 1, "the vocabulary must have at least one token, not {}", vocabulary);
  embedding_ = register_module("embedding", torch::nn::Embedding(vocabulary, model.width));
  if (model.positions == "learned" || model.added_positions) {
    const at::Tensor table = nn::sinusoids(at::arange(model.max_length), model.width).to(at::kFloat);
    learned_positions_ = register_parameter("positions", table);
  } else if (model.positions == "axial") {
    axial_positions_ = register_module(
        "axial_positions",
        nn::AxialPositions(nn::axial_shape(model.max_length, nn::parse_axial_axes(model.axial_axes)),
                           model.width));
  }
  const auto shared = std::make_shared<nn::SharedWeights>();
  if (model.rotary_stored) {
    rotary_rates_ =
        register_buffer("rotary_rates", nn::rotary_rates(head_size(model), model.rotary_base).to(at::kFloat));
  }
  if (model.embedding_norm) embedding_norm_ = register_module("embedding_norm", nn::Norm(model));
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    blocks_.push_back(register_module(fmt::format("blocks_{}", layer),
                                      nn::Block(model, attention, layer, parts.cross_attention, shared)));
  }
  if (model.final_norm) final_norm_ = register_module("final_norm", nn::Norm(model));
  if (parts.output && model.output_head == "transform") {
    output_dense_ = register_module("output_dense", torch::nn::Linear(model.width, model.width));
    output_norm_ = register_module("output_norm", nn::Norm(model));
  }
  if (!parts.output) {
    // Encodings only.
  } else if (model.tied_output) {
    tied_bias_ = register_parameter("output_bias", at::empty({vocabulary}));
  } else {
    output_ = register_module("output", torch::nn::Linear(model.width, vocabulary));
  }
  if (model.regression_head) regression_ = register_module("regression", torch::nn::Linear(model.width, 1));
  initialize();
}

void LanguageModelImpl::initialize() {
  // Not scaled by the width: protein_lm adds the plain embedding to sinusoids of the same size, and every
  // block reads it through a layer norm.
  torch::nn::init::normal_(embedding_->weight, 0, 1);
  if (output_dense_) nn::initialize_linear(output_dense_, nn::kDenseBiasStd);
  if (tied_bias_.defined()) {
    torch::nn::init::normal_(tied_bias_, 0, nn::kDenseBiasStd);
  } else if (output_) {
    nn::initialize_linear(output_, nn::kDenseBiasStd);
  }
  if (regression_) nn::initialize_linear(regression_, nn::kDenseBiasStd);
}

void LanguageModelImpl::check_batch(const at::Tensor& tokens, const at::Tensor& positions) const {
  const bool soft = tokens.is_floating_point();
  check<UsageError>(!soft || (tokens.dim() > 0 && tokens.size(-1) == vocabulary_),
                    "soft tokens [{}] must be distributions over the {} tokens of this model",
                    fmt::join(tokens.sizes(), ", "), vocabulary_);
  const at::IntArrayRef places = soft ? tokens.sizes().slice(0, tokens.dim() - 1) : tokens.sizes();
  check<UsageError>(places.equals(positions.sizes()),
                    "tokens [{}] and positions [{}] must have the same shape",
                    fmt::join(tokens.sizes(), ", "), fmt::join(positions.sizes(), ", "));
  if (tokens.numel() == 0) return;
  const int64_t lowest = soft ? 0 : tokens.min().item<int64_t>(),
                highest = soft ? 0 : tokens.max().item<int64_t>();
  check<UsageError>(lowest >= 0 && highest < vocabulary_,
                    "token {} is not in the vocabulary 0..{} of this model", lowest < 0 ? lowest : highest,
                    vocabulary_ - 1);
  if (!learned_positions_.defined() && !axial_positions_) return;
  const int64_t length = positions.max().item<int64_t>() + 1;
  check<UsageError>(
      length <= model_.max_length,
      "a sequence of {} tokens is longer than the learned positions of this model (model.max_length = {}); "
      "shorten it, or train with model.positions = rotary, which has no limit",
      length, model_.max_length);
}

at::Tensor LanguageModelImpl::embed(const SequenceBatch& batch, const ops::TokenWindow* window) const {
  const at::Tensor &tokens = batch.tokens, &positions = batch.positions;
  check_batch(tokens, positions);
  at::Tensor x = tokens.is_floating_point()
                     ? at::matmul(tokens.to(embedding_->weight.scalar_type()), embedding_->weight)
                     : at::embedding(embedding_->weight, tokens);
  // MASK is the last of the markers, which follow the symbols.
  if (model_.token_dropout) x = drop_masked_tokens(x, batch, vocabulary_ - 1);
  if (model_.embedding_scale != 1) x = x * model_.embedding_scale;
  if (learned_positions_.defined()) {
    x = x + at::embedding(learned_positions_, positions);
  } else if (axial_positions_) {
    x = x + axial_positions_->rows(positions);
  } else if (model_.positions == "sinusoidal") {
    x = x + nn::sinusoids(positions, model_.width).to(x.scalar_type());
  }
  if (embedding_norm_) x = embedding_norm_->forward(x);
  if (!is_training()) return x;
  return ops::dropout(x, model_.dropout, window != nullptr ? *window : batch.window);
}

at::Tensor LanguageModelImpl::run_block(nn::Block& block, const at::Tensor& x, const SequenceBatch& batch,
                                        const nn::Context* context) {
  // A context wants gradients too, which recomputing from x alone would lose.
  const bool keeps = !checkpoint_activations_ || !at::GradMode::is_enabled() || context != nullptr;
  if (keeps) return block(x, batch, context);
  // The batch and the block are captured by value (handles): they must outlive this call.
  return nn::recompute([block, batch](const at::Tensor& input) mutable { return block(input, batch); }, x,
                       block->read_parameters());
}

at::Tensor LanguageModelImpl::rotary(const at::Tensor& positions) const {
  if (model_.positions != "rotary") return {};
  const at::ScalarType type = embedding_->weight.scalar_type();
  if (rotary_rates_.defined()) return nn::rotary_table(positions, rotary_rates_, type);
  return nn::rotary_table(positions, head_size(model_), type, model_.rotary_base);
}

SequenceBatch LanguageModelImpl::with_rotary(SequenceBatch batch) const {
  batch.rotary = rotary(batch.positions);
  return batch;
}

void LanguageModelImpl::check_context(const nn::Context* context) const {
  check<UsageError>(context != nullptr || !parts_.cross_attention,
                    "this model has cross-attention and needs a context");
  check<UsageError>(context == nullptr || parts_.cross_attention,
                    "this model has no cross-attention: leave out the context");
}

at::Tensor LanguageModelImpl::through_blocks(const at::Tensor& input, const SequenceBatch& batch,
                                             const nn::Context* context, std::vector<at::Tensor>* outputs) {
  check_context(context);
  if (model_.reversible) return through_reversible_blocks(input, batch, outputs);
  at::Tensor x = input;
  for (nn::Block& block : blocks_) {
    x = run_block(block, x, batch, context);
    if (outputs != nullptr) outputs->push_back(x);
  }
  return x;
}

at::Tensor LanguageModelImpl::through_reversible_blocks(const at::Tensor& x, const SequenceBatch& batch,
                                                        std::vector<at::Tensor>* outputs) {
  std::vector<nn::ReversibleLayer> layers;
  for (nn::Block& block : blocks_) layers.push_back(block->reversible_layer(batch));
  nn::Streams streams{x, x};
  if (outputs == nullptr) {
    streams = nn::reversible_sequence(layers, streams);
    return streams.first + streams.second;
  }
  for (const nn::ReversibleLayer& layer : layers) {
    streams = nn::reversible_sequence({layer}, streams);
    outputs->push_back(streams.first + streams.second);
  }
  return outputs->empty() ? x + x : outputs->back();
}

at::Tensor LanguageModelImpl::normalized(const at::Tensor& x) const {
  return final_norm_ ? final_norm_->forward(x) : x;
}

at::Tensor LanguageModelImpl::hidden(const SequenceBatch& given, const nn::Context* context) {
  const SequenceBatch batch = with_rotary(given);
  return normalized(through_blocks(embed(batch), batch, context, nullptr));
}

Representations LanguageModelImpl::represent(const SequenceBatch& given) {
  const SequenceBatch batch = with_rotary(given);
  Representations made;
  made.input = embed(batch);
  made.output = normalized(through_blocks(made.input, batch, nullptr, &made.layers));
  made.logits = logits(made.output);
  if (regression_) made.regression = regression_(made.output).squeeze(-1);
  return made;
}

// Embeddings are N(0, 1): without a factor tied logits would start with a standard deviation of sqrt(width).
double LanguageModelImpl::output_scale() const {
  if (model_.output_scale > 0) return model_.output_scale;
  return model_.tied_output ? 1 / std::sqrt(static_cast<double>(model_.width)) : 1;
}

at::Tensor LanguageModelImpl::logits(const at::Tensor& hidden) const {
  check<UsageError>(parts_.output, "this model has no output layer: use hidden()");
  at::Tensor x = hidden;
  if (output_dense_) {
    x = ops::activate(model_.activation, ops::linear(x, output_dense_->weight), output_dense_->bias, {});
    x = output_norm_->forward(x);
  }
  if (const double scale = output_scale(); scale != 1) x = x * scale;
  return output_ ? nn::dense(output_, x) : ops::linear(x, embedding_->weight, tied_bias_);
}

at::Tensor LanguageModelImpl::forward(const SequenceBatch& batch, const nn::Context* context) {
  return logits(hidden(batch, context));
}

DecodeState DecodeState::select(const at::Tensor& rows) const {
  DecodeState selected;
  for (const nn::BlockCache& block : blocks) selected.blocks.push_back(block.select(rows));
  selected.positions = positions.index_select(0, rows);
  return selected;
}

bool LanguageModelImpl::streams() const {
  return model_.objective == "causal" && nn::find_kind(attention_.kind).capabilities.streams;
}

DecodeState LanguageModelImpl::begin(int64_t batch_size, const nn::Context* context) const {
  check_context(context);
  check<UsageError>(
      model_.objective == "causal",
      "a model with model.objective = {} sees both sides of a token and cannot be fed one token at a time",
      model_.objective);
  DecodeState state;
  for (const nn::Block& block : blocks_) state.blocks.push_back(block->begin(batch_size, context));
  state.positions = at::zeros({batch_size}, at::TensorOptions(embedding_->weight.device()).dtype(at::kLong));
  return state;
}

// Of one token of each sequence, [B] -> [B, width], or of several, [B, T] -> [B, T, width].
at::Tensor LanguageModelImpl::next_hidden(const at::Tensor& tokens, DecodeState& state,
                                          std::vector<at::Tensor>* layers) const {
  const at::NoGradGuard no_grad;
  check<UsageError>(state.blocks.size() == blocks_.size(),
                    "the decode state has {} layers, the model {}: make it with begin()", state.blocks.size(),
                    blocks_.size());
  const int64_t count = tokens.dim() == 1 ? 1 : tokens.size(1);
  const at::Tensor places = state.positions.unsqueeze(1) + at::arange(count, state.positions.options());
  const at::Tensor table = rotary(places), positions = tokens.dim() == 1 ? state.positions : places;
  SequenceBatch next;
  next.tokens = tokens;
  next.positions = positions;
  at::Tensor x = embed(next);
  if (layers != nullptr) *layers = {x};
  nn::Streams streams{x, x};  // of reversible layers
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    if (model_.reversible) {
      blocks_[layer]->step_reversible(streams, positions, state.blocks[layer], table);
      x = streams.first + streams.second;
    } else {
      x = blocks_[layer]->step(x, positions, state.blocks[layer], table);
    }
    if (layers != nullptr) layers->push_back(x);
  }
  state.positions = state.positions + count;
  return normalized(x);
}

at::Tensor LanguageModelImpl::step(const at::Tensor& tokens, DecodeState& state) const {
  const at::NoGradGuard no_grad;
  return logits(next_hidden(tokens, state, nullptr));
}

at::Tensor LanguageModelImpl::advance(const at::Tensor& tokens, DecodeState& state,
                                      std::vector<at::Tensor>* layers) const {
  check<UsageError>(tokens.dim() == 2, "advance() takes tokens [B, T], not {} dimensions", tokens.dim());
  return next_hidden(tokens, state, layers);
}

void LanguageModelImpl::redraw(int64_t index) {
  for (nn::Block& block : blocks_) block->redraw(index);
  redraw_index_ = index;
}

void LanguageModelImpl::observe_attention(const LayerObserver& observer) {
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    if (!observer) {
      blocks_[layer]->observe_attention({});
      continue;
    }
    blocks_[layer]->observe_attention(
        [observer, layer](const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
          observer(static_cast<int64_t>(layer), query, key, value);
        });
  }
}

nn::MultiHeadAttention LanguageModelImpl::attention(int64_t layer) const {
  return blocks_.at(static_cast<size_t>(layer))->attention();
}

void LanguageModelImpl::after_step() {
  for (nn::Block& block : blocks_) block->after_step();
}

std::vector<at::Tensor> LanguageModelImpl::statistics() const {
  std::vector<at::Tensor> found;
  for (const auto& module : modules(/*include_self=*/false)) {
    const auto* kind = dynamic_cast<const nn::Attention*>(module.get());
    if (kind == nullptr) continue;
    const std::vector<at::Tensor> own = kind->statistics();
    found.insert(found.end(), own.begin(), own.end());
  }
  return found;
}

int64_t LanguageModelImpl::parameter_count() const {
  int64_t count = 0;
  for (const at::Tensor& parameter : parameters()) count += parameter.numel();
  return count;
}

}  // namespace performer
