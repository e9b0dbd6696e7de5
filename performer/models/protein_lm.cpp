// SPDX-License-Identifier: Apache-2.0
#include "performer/models/protein_lm.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/nn/init.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/nn/initialize.h"
#include "performer/nn/positions.h"
#include "performer/nn/recompute.h"

namespace performer {

ProteinLMImpl::ProteinLMImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t vocabulary)
    : model_(model), attention_(attention), vocabulary_(vocabulary) {
  validate(model, attention);
  check<UsageError>(vocabulary >= 1, "the vocabulary must have at least one token, not {}", vocabulary);
  embedding_ = register_module("embedding", torch::nn::Embedding(vocabulary, model.width));
  if (model.positions == "learned") {
    const at::Tensor table = nn::sinusoids(at::arange(model.max_length), model.width).to(at::kFloat);
    learned_positions_ = register_parameter("positions", table);
  }
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    blocks_.push_back(register_module(fmt::format("blocks_{}", layer), nn::Block(model, attention, layer)));
  }
  final_norm_ = register_module(
      "final_norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({model.width}).eps(model.norm_epsilon)));
  if (model.tied_output) {
    tied_bias_ = register_parameter("output_bias", at::empty({vocabulary}));
  } else {
    output_ = register_module("output", torch::nn::Linear(model.width, vocabulary));
  }
  if (model.regression_head) regression_ = register_module("regression", torch::nn::Linear(model.width, 1));
  initialize();
}

void ProteinLMImpl::initialize() {
  // Not scaled by the width: protein_lm adds the plain embedding to sinusoids of the same size, and every
  // block reads it through a layer norm.
  torch::nn::init::normal_(embedding_->weight, 0, 1);
  if (model_.tied_output) {
    torch::nn::init::normal_(tied_bias_, 0, nn::kDenseBiasStd);
  } else {
    nn::initialize_linear(output_, nn::kDenseBiasStd);
  }
  if (regression_) nn::initialize_linear(regression_, nn::kDenseBiasStd);
}

void ProteinLMImpl::check_batch(const at::Tensor& tokens, const at::Tensor& positions) const {
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
  if (!learned_positions_.defined()) return;
  const int64_t length = positions.max().item<int64_t>() + 1;
  check<UsageError>(
      length <= model_.max_length,
      "a sequence of {} tokens is longer than the learned positions of this model (model.max_length = {}); "
      "shorten it, or train with model.positions = rotary, which has no limit",
      length, model_.max_length);
}

at::Tensor ProteinLMImpl::embed(const at::Tensor& tokens, const at::Tensor& positions,
                                const ops::TokenWindow* window) {
  check_batch(tokens, positions);
  at::Tensor x = tokens.is_floating_point()
                     ? at::matmul(tokens.to(embedding_->weight.scalar_type()), embedding_->weight)
                     : embedding_(tokens);
  if (model_.positions == "learned") {
    x = x + at::embedding(learned_positions_, positions);
  } else if (model_.positions == "sinusoidal") {
    x = x + nn::sinusoids(positions, model_.width).to(x.scalar_type());
  }
  if (!is_training()) return x;
  return window != nullptr ? ops::dropout(x, model_.dropout, *window) : ops::dropout(x, model_.dropout);
}

at::Tensor ProteinLMImpl::run_block(nn::Block& block, const at::Tensor& x, const SequenceBatch& batch) {
  if (!checkpoint_activations_ || !at::GradMode::is_enabled()) return block(x, batch);
  // The batch and the block are captured by value (handles): they must outlive this call.
  return nn::recompute([block, batch](const at::Tensor& input) mutable { return block(input, batch); }, x,
                       block->parameters());
}

at::Tensor ProteinLMImpl::rotary(const at::Tensor& positions) const {
  if (model_.positions != "rotary") return {};
  return nn::rotary_table(positions, head_size(model_), embedding_->weight.scalar_type());
}

SequenceBatch ProteinLMImpl::with_rotary(SequenceBatch batch) const {
  batch.rotary = rotary(batch.positions);
  return batch;
}

at::Tensor ProteinLMImpl::hidden(const SequenceBatch& given) {
  const SequenceBatch batch = with_rotary(given);
  at::Tensor x = embed(batch.tokens, batch.positions);
  for (nn::Block& block : blocks_) x = run_block(block, x, batch);
  return final_norm_(x);
}

Representations ProteinLMImpl::represent(const SequenceBatch& given) {
  const SequenceBatch batch = with_rotary(given);
  Representations made;
  at::Tensor x = made.input = embed(batch.tokens, batch.positions);
  for (nn::Block& block : blocks_) made.layers.push_back(x = run_block(block, x, batch));
  made.output = final_norm_(x);
  made.logits = logits(made.output);
  if (regression_) made.regression = regression_(made.output).squeeze(-1);
  return made;
}

at::Tensor ProteinLMImpl::logits(const at::Tensor& hidden) {
  if (output_) return output_(hidden);
  // Embeddings are N(0, 1): without the factor tied logits would start with a standard deviation of
  // sqrt(width).
  const double scale = 1 / std::sqrt(static_cast<double>(model_.width));
  return at::linear(hidden * scale, embedding_->weight, tied_bias_);
}

at::Tensor ProteinLMImpl::forward(const SequenceBatch& batch) {
  return logits(hidden(batch));
}

at::Tensor ProteinLMImpl::forward_chunk(const SequenceBatch& given, const ops::TokenWindow& window,
                                        const std::vector<ops::State>& initial,
                                        std::vector<ops::State>* final) {
  check<UsageError>(initial.empty() || initial.size() == blocks_.size(),
                    "the state before a chunk has {} layers, the model {}: take it from the chunk before",
                    initial.size(), blocks_.size());
  if (final != nullptr) final->assign(blocks_.size(), {});
  const SequenceBatch chunk = with_rotary(given);
  at::Tensor x = embed(chunk.tokens, chunk.positions, &window);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    x = blocks_[layer]->forward_chunk(x, chunk, window, initial.empty() ? ops::State{} : initial[layer],
                                      final != nullptr ? &(*final)[layer] : nullptr);
  }
  return logits(final_norm_(x));
}

DecodeState ProteinLMImpl::begin(int64_t batch_size) const {
  check<UsageError>(
      model_.objective == "causal",
      "a model with model.objective = {} sees both sides of a residue and cannot be fed one token at a time",
      model_.objective);
  return {std::vector<nn::LayerState>(blocks_.size()),
          at::zeros({batch_size}, at::TensorOptions(embedding_->weight.device()).dtype(at::kLong))};
}

at::Tensor ProteinLMImpl::step(const at::Tensor& tokens, DecodeState& state) {
  const at::NoGradGuard no_grad;
  check<UsageError>(state.layers.size() == blocks_.size(),
                    "the decode state has {} layers, the model {}: make it with begin()", state.layers.size(),
                    blocks_.size());
  const at::Tensor table = rotary(state.positions.unsqueeze(1));
  at::Tensor x = embed(tokens, state.positions);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    x = blocks_[layer]->step(x, state.positions, state.layers[layer], table);
  }
  state.positions = state.positions + 1;
  return logits(final_norm_(x));
}

void ProteinLMImpl::redraw(int64_t index) {
  for (nn::Block& block : blocks_) block->redraw(index);
  redraw_index_ = index;
}

void ProteinLMImpl::observe_attention(const LayerObserver& observer) {
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

void ProteinLMImpl::update_statistics() {
  for (nn::Block& block : blocks_) block->update_statistics();
}

int64_t ProteinLMImpl::parameter_count() const {
  int64_t count = 0;
  for (const at::Tensor& parameter : parameters()) count += parameter.numel();
  return count;
}

}  // namespace performer
